"""Exports of shops, written here in their true form and with the mistakes that real ones have."""

from __future__ import annotations

import csv
import io
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import lookalike
from conftest import draw
from lookalike.errors import InputError
from lookalike.sources import Source, open_source, table
from lookalike.sources.shops import _in_force, _money


def columns(text: str, between: str = ",") -> list[str]:
    return text.split(between)


CDN = "https://cdn.shopify.com/s/files/1/0001/files"
SHOPIFY = columns(
    "Handle,Title,Body (HTML),Vendor,Product Category,Type,Tags,Published,Option1 Name,Option1 Value,"
    "Option1 Linked To,Option2 Name,Option2 Value,Option2 Linked To,Option3 Name,Option3 Value,"
    "Option3 Linked To,Variant SKU,Variant Grams,Variant Inventory Tracker,Variant Inventory Qty,"
    "Variant Inventory Policy,Variant Fulfillment Service,Variant Price,Variant Compare At Price,"
    "Variant Requires Shipping,Variant Taxable,Variant Barcode,Image Src,Image Position,Image Alt Text,"
    "Gift Card,SEO Title,SEO Description,Google Shopping / Gender,"
    "Material (product.metafields.custom.material),Variant Image,Variant Weight Unit,Cost per item,Status"
)
WOO = columns(
    "ID,Type,SKU,GTIN UPC EAN or ISBN,Name,Published,Is featured?,Visibility in catalog,Short description,"
    "Description,Date sale price starts,Date sale price ends,Tax status,In stock?,Stock,Sale price,"
    "Regular price,Categories,Tags,Images,Parent,Upsells,Position,Brands,Attribute 1 name,"
    "Attribute 1 value(s),Attribute 1 visible,Attribute 1 global,Attribute 2 name,Attribute 2 value(s),"
    "Attribute 2 visible,Attribute 2 global"
)


def sheet(path: Path, header: list[str], rows: list[dict[str, Any]], **options: Any) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, header, **options)
    writer.writeheader()
    writer.writerows(rows)
    path.write_bytes(text.getvalue().encode())
    return path


def read(path: Path) -> Source:
    """A source without anything being fetched: the photos stay addresses."""
    return table.read(path)


def photos(source: Source, n: int = 0) -> list[str]:
    return [str(p) for p in source.products[n].photos]


def shopify_rows() -> list[dict[str, Any]]:
    body = '<p>Soft, "light"\nand <b>red</b>.</p>\r\n<ul><li>Silk</li></ul>'
    return [
        {"Handle": "silk-dress", "Title": "Silk Dress", "Body (HTML)": body, "Vendor": "Puma", "Type": "Dresses",
         "Product Category": "Apparel & Accessories > Clothing > Dresses", "Tags": "summer, new", "Published": "true",
         "Option1 Name": "Color", "Option1 Value": "Red", "Option2 Name": "Size", "Option2 Value": "S",
         "Variant SKU": "'0042", "Variant Price": "59.90", "Variant Compare At Price": "79.90", "Image Src": f"{CDN}/b.jpg?v=1",
         "Variant Barcode": "4006381333931", "Image Position": "2", "Google Shopping / Gender": "female", "Status": "active",
         "Material (product.metafields.custom.material)": "Silk"},
        {"Handle": "silk-dress", "Option1 Value": "Red", "Option2 Value": "M", "Variant SKU": "D-M", "Variant Price": "54.90",
         "Image Src": f"{CDN}/a.jpg?v=1", "Image Position": "1", "Variant Image": f"{CDN}/m.jpg"},
        {"Handle": "silk-dress", "Option1 Value": "Blue", "Option2 Value": "M", "Variant SKU": "D-B", "Variant Price": "64.90",
         "Variant Image": f"{CDN}/a.jpg?v=1"},
        {"Handle": "silk-dress", "Image Src": f"{CDN}/a.jpg?v=1", "Image Position": "3"},
        {"Handle": "silk-dress", "Image Src": "//cdn.shopify.com/s/files/c.jpg", "Image Position": "4"},
        {"Handle": "bag", "Title": "Bag", "Published": "TRUE", "Option1 Name": "Title", "Option1 Value": "Default Title",
         "Product Category": "Apparel & Accessories > Handbags", "Variant Price": "12.00", "Image Src": f"{CDN}/bag.jpg",
         "Image Position": "1", "Status": "ACTIVE", "Option2 Name": "Gender", "Option2 Value": "unisex",
         "Option3 Name": "Price", "Option3 Value": "low"},
        {"Handle": "cap", "Title": "Cap", "Published": "true", "Option1 Name": "COLOR", "Option1 Value": "Black",
         "Variant Price": "9.5", "Status": "active"},
        {"Handle": "draft", "Title": "Draft", "Published": "true", "Image Src": f"{CDN}/d.jpg", "Status": "draft"},
        {"Handle": "old", "Title": "Old", "Published": "true", "Image Src": f"{CDN}/o.jpg", "Status": "archived"},
        {"Handle": "offline", "Title": "Offline", "Published": "false", "Image Src": f"{CDN}/x.jpg", "Status": "active"},
        {"Title": "No handle", "Image Src": f"{CDN}/n.jpg"},
    ]  # fmt: skip


def test_shopify(tmp_path: Path):
    source = read(sheet(tmp_path / "products_export.csv", SHOPIFY, shopify_rows()))
    assert [p.id for p in source.products] == ["silk-dress", "bag"]
    dress, bag = source.products
    assert dress.title == "Silk Dress"
    assert dress.where == "products_export.csv, line 2"
    assert {k: v for k, v in dress.attributes.items() if v is not None} == {
        "Vendor": "Puma", "category": "Dresses", "Product Category": "Apparel & Accessories > Clothing > Dresses",
        "Tags": "summer, new", "gender": "female", "Color": "Red, Blue", "Size": "S, M", "Material": "Silk",
        "Variant SKU": "'0042, D-M, D-B", "Variant Barcode": "4006381333931", "price": 54.9,
    }  # fmt: skip
    assert photos(source) == [
        f"{CDN}/a.jpg?v=1", f"{CDN}/b.jpg?v=1", "https://cdn.shopify.com/s/files/c.jpg", f"{CDN}/m.jpg",
    ]  # fmt: skip
    assert {k: v for k, v in bag.attributes.items() if v is not None} == {
        "category": "Handbags", "Product Category": "Apparel & Accessories > Handbags", "gender": "unisex",
        "Price (option)": "low", "price": 12.0,
    }  # fmt: skip
    assert source.roles == {
        "id": "Handle", "title": "Title", "image": "Image Src", "category": "category", "colour": "Color",
        "gender": "gender", "price": "price",
    }  # fmt: skip
    assert source.hidden == 3
    assert [(q.item, q.reason) for q in source.quarantined] == [
        ("products_export.csv, line 10, id cap", "the product has no photo"),
        ("products_export.csv, line 14", "the row has no Handle; fill it in"),
    ]


def test_shopify_with_a_mark_upper_case_and_semicolons_reads_the_same(tmp_path: Path):
    known = read(sheet(tmp_path / "a.csv", SHOPIFY, shopify_rows())).products
    rows = [{k.upper(): v for k, v in row.items()} for row in shopify_rows()]
    other = sheet(tmp_path / "b.csv", [c.upper() for c in SHOPIFY], rows, delimiter=";")
    other.write_bytes(b"\xef\xbb\xbf" + other.read_bytes())
    found = read(other).products
    assert [(p.id, p.title, p.photos) for p in found] == [(p.id, p.title, p.photos) for p in known]
    assert {k.lower(): v for k, v in found[0].attributes.items()} == {
        k.lower(): v for k, v in known[0].attributes.items()
    }


def test_shopify_in_its_newer_form(tmp_path: Path):
    header = columns(
        "Title,URL handle,Description,Vendor,Product category,Type,Tags,Published on online store,Status,SKU,"
        "Barcode,Option1 name,Option1 value,Price,Compare-at price,Product image URL,Image position,"
        "Variant image URL"
    )
    rows = [
        {"Title": "Tee", "URL handle": "tee", "Published on online store": "TRUE", "Status": "Active", "SKU": "T1",
         "Option1 name": "Colour", "Option1 value": "Navy", "Price": "20", "Compare-at price": "25",
         "Product image URL": f"{CDN}/t.jpg", "Image position": "1"},
        {"URL handle": "tee", "Option1 value": "Olive", "SKU": "T2", "Price": "22", "Variant image URL": f"{CDN}/o.jpg"},
    ]  # fmt: skip
    source = read(sheet(tmp_path / "p.csv", header, rows))
    assert source.products[0].attributes == {
        "Colour": "Navy, Olive", "Variant SKU": "T1, T2", "price": 20.0, "list_price": 25.0,
    }  # fmt: skip
    assert photos(source) == [f"{CDN}/t.jpg", f"{CDN}/o.jpg"]
    assert source.roles["colour"] == "Colour"


def test_descriptions_longer_than_the_csv_reader_likes(tmp_path: Path):
    rows = shopify_rows()
    rows[0]["Body (HTML)"] = f'<img src="data:image/png;base64,{"A" * 500_000}">'
    assert len(read(sheet(tmp_path / "a.csv", SHOPIFY, rows)).products) == 2


def woo_rows() -> list[dict[str, Any]]:
    up = "https://shop.example/wp-content/uploads/2024/05"
    return [
        {"ID": "10", "Type": "simple", "SKU": "007", "GTIN UPC EAN or ISBN": "4006381333931", "Name": "'-20 °C Jacket",
         "Published": "1", "Visibility in catalog": "visible", "Description": "<p>Warm,\nvery</p>", "Regular price": "99,90",
         "Sale price": "79.5", "Categories": "Clothing, Clothing > Outdoor > Jackets\\, Coats, Uncategorized",
         "Tags": "winter", "Images": f"{up}/w_300,h_400/jacket.jpg, {up}/jacket-2.jpg, {up}/jacket-2.jpg", "Brands": "Puma",
         "Attribute 1 name": "Color", "Attribute 1 value(s)": "Black"},
        {"ID": "20", "Type": "variable", "SKU": "tee", "Name": "Tee", "Published": "1", "Visibility in catalog": "search",
         "Categories": "Clothing > Shirts", "Images": f"{up}/tee.jpg", "Attribute 1 name": "Color",
         "Attribute 1 value(s)": "Blue, Green, Red", "Attribute 2 name": "Size", "Attribute 2 value(s)": "S, M"},
        {"ID": "21", "Type": "variation", "SKU": "tee-b", "Name": "Tee - Blue", "Published": "1", "Parent": "id:20",
         "Regular price": "20", "Images": f"{up}/tee-blue.jpg", "Attribute 1 name": "color", "Attribute 1 value(s)": "Blue"},
        {"ID": "22", "Type": "variation, downloadable", "SKU": "tee-g", "Name": "Tee - Green", "Published": "1",
         "Parent": "tee", "Regular price": "18", "Sale price": "15", "Date sale price ends": "2001-01-01",
         "Images": f"{up}/tee.jpg", "Attribute 1 name": "Color", "Attribute 1 value(s)": "Green"},
        {"ID": "23", "Type": "variation", "Name": "Tee - Red", "Published": "0", "Parent": "id:20", "Regular price": "1",
         "Images": f"{up}/tee-red.jpg"},
        {"ID": "24", "Type": "variation", "Name": "Orphan", "Published": "1", "Parent": "id:999", "Images": f"{up}/x.jpg"},
        {"ID": "30", "Type": "simple", "Name": "Private", "Published": "0", "Images": f"{up}/x.jpg"},
        {"ID": "31", "Type": "simple", "Name": "Draft", "Published": "-1", "Images": f"{up}/x.jpg"},
        {"ID": "32", "Type": "simple", "Name": "Hidden", "Published": "1", "Visibility in catalog": "hidden",
         "Images": f"{up}/x.jpg"},
        {"ID": "33", "Type": "simple", "Name": "Not for searches", "Published": "1", "Visibility in catalog": "catalog",
         "Images": f"{up}/x.jpg"},
        {"ID": "40", "Type": "simple", "Name": "No photo", "Published": "1"},
        {"ID": "10", "Type": "simple", "Name": "Twice", "Published": "1", "Images": f"{up}/x.jpg"},
    ]  # fmt: skip


def test_woocommerce(tmp_path: Path):
    header = [c.replace("GTIN UPC EAN or ISBN", "GTIN, UPC, EAN, or ISBN") for c in WOO]
    rows = [{k.replace("GTIN UPC EAN or ISBN", "GTIN, UPC, EAN, or ISBN"): v for k, v in r.items()} for r in woo_rows()]
    source = read(sheet(tmp_path / "wc.csv", header, rows))
    assert [p.id for p in source.products] == ["10", "20"]
    jacket, tee = source.products
    assert jacket.title == "-20 °C Jacket"
    assert jacket.attributes == {
        "SKU": "007", "category": "Jackets, Coats",
        "Categories": "Clothing, Clothing > Outdoor > Jackets, Coats, Uncategorized",
        "Tags": "winter", "Brands": "Puma", "GTIN, UPC, EAN, or ISBN": "4006381333931", "Color": "Black", "price": 79.5,
        "list_price": 99.9, "Size": None,
    }  # fmt: skip
    assert [p.rsplit("/", 2)[1:] for p in photos(source)] == [["w_300,h_400", "jacket.jpg"], ["05", "jacket-2.jpg"]]
    assert tee.attributes["Color"] == "Blue, Green, Red"
    assert tee.attributes["Size"] == "S, M"
    assert tee.attributes["SKU"] == "tee, tee-b, tee-g"
    assert tee.attributes["price"] == 18.0  # the sale is over, and what is switched off has no price
    assert [p.rsplit("/", 1)[1] for p in photos(source, 1)] == ["tee.jpg", "tee-blue.jpg"]
    assert source.hidden == 4
    assert [(q.item, q.reason) for q in source.quarantined] == [
        ("wc.csv, line 13, id 40", "the product has no photo"),
        ("wc.csv, line 14", "the ID 10 occurs twice; the first is kept"),
        ("wc.csv, line 8", "its parent id:999 is not in the file; export the whole shop"),
    ]
    assert source.roles["colour"] == "Color"


def test_woocommerce_with_photos_of_its_own_library(tmp_path: Path):
    draw(tmp_path / "images" / "tee.jpg", "red", "shirt")
    rows = [{"ID": "1", "Type": "simple", "Name": "Tee", "Published": "1", "Images": "tee.jpg, tee-2.jpg"}]
    source = open_source(sheet(tmp_path / "wc.csv", WOO, rows))
    assert photos(source) == [str(tmp_path / "images" / "tee.jpg")]
    assert [q.reason for q in source.quarantined] == ["the photo tee-2.jpg is not there"]


ITEMS = """
<item>
  <title>RSS's own title</title>
  <link>https://shop.example/p/1?a=1&amp;b=2</link>
  <g:id>1-S</g:id>
  <g:title><![CDATA[Tee & more]]></g:title>
  <g:description>&lt;p&gt;Nice&lt;/p&gt;</g:description>
  <g:image_link>
     https://shop.example/1.jpg?w=1&amp;h=2
  </g:image_link>
  <g:additional_image_link>https://shop.example/1b.jpg</g:additional_image_link>
  <g:additional_image_link>https://shop.example/1c.jpg?x=1&amp;amp;y=2</g:additional_image_link>
  <g:additional_image_link>https://shop.example/1b.jpg</g:additional_image_link>
  <g:price>25.00 EUR</g:price> <g:sale_price>19,90 EUR</g:sale_price>
  <g:shipping><g:country>DE</g:country><g:price>4.90 EUR</g:price></g:shipping>
  <g:brand>Puma</g:brand><g:color>Red</g:color><g:gender>female</g:gender><g:size>S</g:size>
  <g:product_type>Home &gt; Women &gt; Shirts</g:product_type>
  <g:google_product_category>212</g:google_product_category>
  <g:item_group_id>1</g:item_group_id><g:availability>out_of_stock</g:availability><g:gtin>04006381333931</g:gtin>
</item>
<item>
  <g:id>1-M</g:id><g:title>Tee M</g:title><g:image_link>https://shop.example/1.jpg?w=1&amp;h=2</g:image_link>
  <g:price>24.00 EUR</g:price><g:size>M</g:size><g:color>Red</g:color><g:item_group_id>1</g:item_group_id>
  <g:availability>in stock</g:availability>
</item>
<item>
  <g:id>1-blue</g:id><g:title>Tee blue</g:title><g:image_link>https://shop.example/1-blue.jpg</g:image_link>
  <g:price>1,234.50 EUR</g:price><g:sale_price>5 EUR</g:sale_price>
  <g:sale_price_effective_date>2001-01-01T00:00+0100/2001-02-01T00:00+0100</g:sale_price_effective_date>
  <g:color>Blue</g:color><g:item_group_id>1</g:item_group_id>
  <g:google_product_category>Apparel &amp; Accessories &gt; Clothing</g:google_product_category>
</item>
<item><g:id>1-M</g:id><g:title>Twice</g:title><g:image_link>https://shop.example/z.jpg</g:image_link></item>
<item><g:id>2</g:id><g:title>No photo</g:title></item>
<item><g:title>No id</g:title><g:image_link>https://shop.example/z.jpg</g:image_link></item>
"""
RSS = f"""<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel>
<title>Shop</title><link>https://shop.example</link><description>All</description>{ITEMS}</channel></rss>
"""


def check_google(source: Source) -> None:
    assert [p.id for p in source.products] == ["1-S", "1-blue"]
    tee, blue = source.products
    assert tee.title == "Tee & more"
    known = {k: v for k, v in tee.attributes.items() if v is not None and k != "link"}
    assert known == {
        "brand": "Puma", "color": "Red", "gender": "female", "size": "S, M", "product_type": "Home > Women > Shirts",
        "google_product_category": "212", "item_group_id": "1", "availability": "in stock", "gtin": "04006381333931",
        "category": "Shirts", "currency": "EUR", "variant_ids": "1-S, 1-M", "price": 19.9, "list_price": 25.0,
    }  # fmt: skip
    assert [str(p) for p in tee.photos] == [
        "https://shop.example/1.jpg?w=1&h=2", "https://shop.example/1b.jpg", "https://shop.example/1c.jpg?x=1&y=2",
    ]  # fmt: skip
    assert blue.attributes["price"] == 1234.5
    assert blue.attributes["category"] == "Clothing"
    assert {r: source.roles[r] for r in ("colour", "gender", "price", "category")} == {
        "colour": "color", "gender": "gender", "price": "price", "category": "category",
    }  # fmt: skip
    reasons = sorted(q.reason.split(",")[0] for q in source.quarantined)
    assert reasons == ["the id 1-M occurs twice", "the product has no photo", "the row has no id; fill it in"]


def atom() -> str:
    text = RSS.replace("<item>", "<entry>").replace("</item>", "</entry>")
    text = text.replace("<link>https://shop.example/p/1?a=1&amp;b=2</link>", '<link href="https://shop.example/p/1"/>')
    text = text.replace('<rss version="2.0"', '<feed xmlns="http://www.w3.org/2005/Atom"').replace("</rss>", "</feed>")
    return text.replace("<channel>", "").replace("</channel>", "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("feed.xml", RSS.encode()),
        ("feed.rss", b"\xef\xbb\xbf\r\n  " + RSS.encode()),
        ("feed", RSS.replace("UTF-8", "utf-16").encode("utf-16")),
        ("one-line.xml", RSS.replace("\n", " ").encode()),
        ("atom.xml", atom().encode()),
        ("undeclared.xml", RSS.replace(' xmlns:g="http://base.google.com/ns/1.0"', "").encode()),
        ("prefix.xml", RSS.replace("xmlns:g", "xmlns:gm").replace("<g:", "<gm:").replace("</g:", "</gm:").encode()),
    ],
)
def test_google_feeds(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    source = read(tmp_path / name)
    check_google(source)
    assert source.products[0].where == f"{name}, line {source.products[0].where.rsplit(' ', 1)[1]}"
    assert str(source.products[0].attributes["link"]).startswith("https://shop.example/p/1")


@pytest.mark.parametrize("form", ["plain", "spaces", "brackets", "repeated"])
def test_google_feeds_as_text(tmp_path: Path, form: str):
    names = columns(
        "id title description link image_link additional_image_link price sale_price sale_price_effective_date "
        "brand color gender size product_type google_product_category item_group_id availability gtin",
        " ",
    )
    one = (
        "1-S\tTee & more\tNice\thttps://shop.example/p/1\thttps://shop.example/1.jpg?w=1&h=2\t"
        "https://shop.example/1b.jpg,https://shop.example/1c.jpg?x=1&y=2\t25.00 EUR\t19,90 EUR\t\tPuma\tRed\tfemale\tS\t"
        "Home > Women > Shirts\t212\t1\tout_of_stock\t04006381333931"
    )
    rest = [
        "1-M\tTee M\t\t\thttps://shop.example/1.jpg?w=1&h=2\t\t24.00 EUR\t\t\t\tRed\t\tM\t\t\t1\tin stock\t",
        "1-blue\tTee blue\t\t\thttps://shop.example/1-blue.jpg\t\t1,234.50 EUR\t5 EUR\t"
        "2001-01-01T00:00+0100/2001-02-01T00:00+0100\t\tBlue\t\t\t\tApparel & Accessories > Clothing\t1\t\t",
        "1-M\tTwice\t\t\thttps://shop.example/z.jpg",
        "2\tNo photo",
        "\tNo id\t\t\thttps://shop.example/z.jpg",
    ]
    if form == "spaces":
        names = [c.replace("_", " ").title() for c in names]
    elif form == "brackets":
        names = [f"{c.replace('_', ' ').capitalize()} [{c}]" for c in names]
    elif form == "repeated":
        names.insert(6, "additional_image_link")
        one = one.replace("1b.jpg,", "1b.jpg\t")
        rest = ["\t".join([*r.split("\t")[:6], "", *r.split("\t")[6:]]) for r in rest]
    (tmp_path / "feed.tsv").write_text("\n".join(["\t".join(names), one, *rest]))
    check_google(read(tmp_path / "feed.tsv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            RSS.replace("<rss", '<!DOCTYPE rss [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n<rss', 1),
            "line 2: declares entities",
        ),
        (RSS.replace("<rss", '<!DOCTYPE rss [<!ENTITY x SYSTEM "file:///etc/passwd">]>\n<rss', 1), "declares entities"),
        (
            RSS.replace("<rss", '<!DOCTYPE rss [<!ENTITY % x SYSTEM "http://127.0.0.1/x"> %x;]>\n<rss', 1),
            "declares entities",
        ),
        (RSS.replace("Puma", "Puma&nbsp;"), r"line \d+: not well-formed XML \(undefined entity\)"),
        (RSS[: len(RSS) // 2], "not well-formed XML"),
        (RSS.replace("<item>", "<thing>").replace("</item>", "</thing>"), "no <item> or <entry> in it"),
        ("<html><body>Not found</body></html>", "no <item> or <entry> in it"),
        (RSS.replace("image_link", "picture"), "none of its photos"),
    ],
)
def test_feeds_that_cannot_be_used(tmp_path: Path, content: str, message: str):
    (tmp_path / "feed.xml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "feed.xml")
    assert "feed.xml" in str(caught.value)


def test_a_document_type_from_elsewhere_is_not_loaded(tmp_path: Path):
    """Such a line does no harm by itself; expat does not follow it."""
    (tmp_path / "x.dtd").write_text('<!ENTITY secret "s">')
    text = RSS.replace("<rss", f'<!DOCTYPE rss SYSTEM "file://{tmp_path}/x.dtd">\n<rss', 1)
    (tmp_path / "feed.xml").write_text(text)
    check_google(read(tmp_path / "feed.xml"))
    (tmp_path / "feed.xml").write_text(text.replace("Puma", "&secret;"))
    brands = [p.attributes.get("brand") for p in read(tmp_path / "feed.xml").products]
    assert not any(b == "s" for b in brands)


def test_a_large_feed_is_read_item_by_item(tmp_path: Path):
    """2,000 items, 50 MB, descriptions of 25,000 characters: what is kept is far less than the file."""
    item = (
        "<item><g:id>{n}</g:id><g:title>Product {n}</g:title><g:description>" + "word " * 5000 + "</g:description>"
        "<g:image_link>https://shop.example/{n}.jpg</g:image_link><g:price>12.00 EUR</g:price><g:brand>Puma</g:brand></item>\n"
    )
    with (tmp_path / "feed.xml").open("w") as file:
        file.write('<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel>')
        for n in range(2_000):
            file.write(item.replace("{n}", str(n)))
        file.write("</channel></rss>")
    size = (tmp_path / "feed.xml").stat().st_size
    tracemalloc.start()
    source = read(tmp_path / "feed.xml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(source.products) == 2_000
    assert size > 45 * 2**20
    assert peak < size / 4


def test_endless_text_is_cut(tmp_path: Path):
    (tmp_path / "feed.xml").write_text(RSS.replace("Puma", "P" * 5_000_000))
    assert len(str(read(tmp_path / "feed.xml").products[0].attributes["brand"])) <= 100_000


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("12.00 EUR", (12.0, "EUR")),
        ("EUR 12.00", (12.0, "EUR")),
        ("€ 12,50", (12.5, "")),
        ("1,299.00 USD", (1299.0, "USD")),
        ("1.299,00 EUR", (1299.0, "EUR")),
        ("1,299 USD", (1299.0, "USD")),
        ("1 299,00 SEK", (1299.0, "SEK")),
        ("CHF 1'299.50", (1299.5, "CHF")),
        ("1.299.000,00", (1299000.0, "")),
        ("12", (12.0, "")),
        ("ask us", (None, "")),
        ("", (None, "")),
        ("1.2.3", (None, "")),
    ],
)
def test_prices(text: str, known: tuple[float | None, str]):
    assert _money(text) == known


def test_sales_are_in_force_between_their_dates():
    assert _in_force("", "")
    assert _in_force("2001-01-01", "2999-01-01T00:00:00Z")
    assert not _in_force("2999-01-01", "")
    assert not _in_force("", "2001-02-01T00:00+0100")
    assert _in_force("soon", "later")


def test_roles_can_still_be_mapped_and_products_hidden_later_go_with_prune(tmp_path: Path):
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.jpg", "red", "bag", 1 if name == "a" else 2)
    rows = [
        {"ID": str(n), "Type": "simple", "SKU": f"S{n}", "Name": "Bag", "Published": "1", "Images": f"{name}.jpg"}
        for n, name in enumerate("ab")
    ]
    export = sheet(tmp_path / "wc.csv", WOO, rows)
    assert [p.id for p in open_source(export, {"id": "SKU"}).products] == ["S0", "S1"]
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    assert catalog.index(export).added == 2
    rows[1]["Published"] = "-1"
    sheet(export, WOO, rows)
    assert catalog.index(export, prune=True).removed == 1


def test_the_command_line_says_how_many_the_shop_does_not_show(tmp_path: Path):
    from test_cli import run

    draw(tmp_path / "a.jpg", "red", "bag")
    rows = [
        {"ID": str(n), "Type": "simple", "Name": "Bag", "Published": "1" if n else "0", "Images": "a.jpg"}
        for n in range(2)
    ]
    done = run("index", sheet(tmp_path / "wc.csv", WOO, rows), "--catalog", tmp_path / "c", "--encoder", "fake")
    assert done.returncode == 0, done.stderr
    assert "1 added" in done.stdout
    assert "1 products that the shop does not show" in done.stdout


@pytest.mark.parametrize("encoding", ["shift_jis", "gb18030", "utf-7", "utf-32", "idna", "zlib", "no-such", "x" * 500])
def test_feeds_in_encodings_that_are_not_read(tmp_path: Path, encoding: str):
    (tmp_path / "f.xml").write_text(f'<?xml version="1.0" encoding="{encoding}"?><rss><item><id>1</id></item></rss>')
    with pytest.raises(InputError, match=r"f\.xml.*encoding") as caught:
        open_source(tmp_path / "f.xml")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("start", ["<rss><item a='", "<rss><!--", "<?pi "])
def test_a_tag_without_end_is_not_read_over_and_over(tmp_path: Path, start: str):
    (tmp_path / "f.xml").write_text(start + "x" * 6_000_000)
    begun = time.process_time()
    with pytest.raises(InputError, match=r"f\.xml, line 1: a tag or comment longer than 4 MiB; take it out"):
        open_source(tmp_path / "f.xml")
    assert time.process_time() - begun < 3


def test_tags_millions_deep(tmp_path: Path):
    (tmp_path / "f.xml").write_text("<a>" * 100_000)
    with pytest.raises(InputError, match="1,000 deep"):
        open_source(tmp_path / "f.xml")


def test_messages_about_huge_ids_stay_short(tmp_path: Path):
    item = f"<item><g:id>{'x' * 90_000}</g:id><g:image_link>a.jpg</g:image_link></item>"
    (tmp_path / "f.xml").write_text(
        f"<rss>{item}{item}<item><g:id>1</g:id><g:image_link>a.jpg</g:image_link></item></rss>"
    )
    draw(tmp_path / "a.jpg", "red", "bag")
    source = open_source(tmp_path / "f.xml")
    assert [p.id for p in source.products] == ["1"]
    assert len(source.quarantined) == 2 and all(len(q.item) + len(q.reason) < 400 for q in source.quarantined)
