from __future__ import annotations

import csv
import json
import os
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lookalike
from conftest import draw, write_csv
from lookalike.errors import InputError, UsageError
from lookalike.sources import open_source
from lookalike.sources import table as table_module
from lookalike.sources.table import csv_rows, kind_of
from lookalike.types import Product


def test_folder_gives_a_product_per_photo_with_attributes_from_regular_folders(folder: Path):
    source = open_source(folder)
    assert len(source.products) == 24
    first = source.products[0]
    assert first.id == "men/bag/black-3"
    assert first.title == "black 3"
    assert first.attributes == {"gender": "men", "category": "bag"}
    assert source.roles == {"gender": "gender", "category": "category"}


def test_folder_without_regular_depth_has_no_attributes(folder: Path):
    draw(folder / "loose.jpg", "red", "bag")
    assert all(not p.attributes for p in open_source(folder).products)


def test_ids_that_would_clash_keep_their_suffix(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    draw(tmp_path / "a.png", "blue", "bag")
    draw(tmp_path / "b.png", "blue", "bag")
    assert [p.id for p in open_source(tmp_path).products] == ["a.jpg", "a.png", "b"]


def test_product_from_folder(folder: Path):
    source = open_source(folder, product_from="folder")
    assert [p.id for p in source.products][:2] == ["men/bag", "men/dress"]
    assert [len(p.photos) for p in source.products] == [4] * 6


def test_folder_leaves_hidden_files_and_other_catalogs_and_counts_the_rest(folder: Path):
    draw(folder / ".hidden" / "x.jpg", "red", "bag")
    (folder / "notes.txt").write_text("x")
    (folder / "photo.heic").write_bytes(b"x")
    (folder / "c" / "photos.lance").mkdir(parents=True)
    (folder / "c" / "catalog.json").write_text("{}")
    draw(folder / "c" / "photos.lance" / "x.jpg", "red", "bag")
    source = open_source(folder)
    assert len(source.products) == 24
    assert source.left == 1
    assert [q.item for q in source.quarantined] == ["photo.heic"]
    assert "convert" in source.quarantined[0].reason


def test_table_joins_rows_of_one_product_and_tells_kinds(table: Path):
    source = open_source(table)
    assert len(source.products) == 12
    assert len(source.products[0].photos) == 2
    assert source.products[1].attributes == {
        "colour": "Blue", "gender": "Women", "price": 15.5, "new": False, "ean": "001",
    }  # fmt: skip
    assert source.roles["id"] == "sku"
    assert source.roles["title"] == "name"


@pytest.mark.parametrize("form", ["tsv", "jsonl", "parquet", "semicolon", "utf-16", "bom"])
def test_every_form_of_table_reads_the_same(table: Path, form: str):
    columns, rows = csv_rows(table)
    records = [dict(zip(columns, cells, strict=True)) for _, cells in rows]
    text = table.read_text()
    if form == "tsv":
        other = table.with_suffix(".tsv")
        other.write_text(text.replace(",", "\t"))
    elif form == "semicolon":
        other = table.with_name("s.csv")
        other.write_text(text.replace(",", ";"))
    elif form in ("utf-16", "bom"):
        other = table.with_name("u.csv")
        other.write_text(text, encoding="utf-16" if form == "utf-16" else "utf-8-sig")
    elif form == "jsonl":
        other = table.with_suffix(".jsonl")
        typed = [{**r, "price": float(r["price"]), "new": r["new"] == "True"} for r in records]
        other.write_text("\n".join(json.dumps(r) for r in typed))
    else:
        other = table.with_suffix(".parquet")
        typed = [{**r, "price": float(r["price"]), "new": r["new"] == "True"} for r in records]
        pq.write_table(pa.Table.from_pylist(typed), other)
    known, found = open_source(table).products, open_source(other).products
    assert [(p.id, p.title, p.attributes, p.photos) for p in found] == [
        (p.id, p.title, p.attributes, p.photos) for p in known
    ]


def test_several_photos_in_one_cell(tmp_path: Path):
    for name in ("a.jpg", "b.jpg"):
        draw(tmp_path / name, "red", "bag")
    table = write_csv(tmp_path / "t.csv", [{"id": 1, "images": "a.jpg | b.jpg"}])
    assert [Path(p).name for p in open_source(table).products[0].photos] == ["a.jpg", "b.jpg"]


def kaggle(root: Path, quoted: bool) -> Path:
    """Kaggle's layout as downloaded: commas in titles not quoted, a product without photo, missing values."""
    for n in (1, 2):
        draw(root / "images" / f"{n}.jpg", "red", "bag")
    title = '"Red Bag, small, with zip"' if quoted else "Red Bag, small, with zip"
    (root / "styles.csv").write_text(
        "id,gender,articleType,baseColour,season,year,usage,productDisplayName\n"
        f"1,Women,Handbags,Red,Summer,2012,Casual,{title}\n"
        "2,Men,Bags,,NA,,,Plain Bag\n"
        "3,Men,Bags,Black,Fall,2011,Casual,Nowhere Bag\n"
    )
    return root


@pytest.mark.parametrize("quoted", [True, False])
def test_kaggle_layout(tmp_path: Path, quoted: bool):
    source = open_source(kaggle(tmp_path, quoted))
    assert [p.id for p in source.products] == ["1", "2"]
    assert source.products[0].title == "Red Bag, small, with zip"
    assert source.products[0].attributes["year"] == 2012
    assert source.products[1].attributes["baseColour"] is None
    assert source.products[1].attributes["season"] is None
    assert [(q.item, q.reason) for q in source.quarantined] == [
        ("styles.csv, line 4, id 3", "the photo images/3 is not there")
    ]
    assert source.roles["category"] == "articleType"
    assert source.roles["colour"] == "baseColour"


def test_photos_without_suffix_in_a_folder_beside(tmp_path: Path):
    draw(tmp_path / "images" / "abc.jpg", "red", "bag")
    table = write_csv(tmp_path / "images.csv", [{"image": "abc", "label": "Bag"}])
    product = open_source(table).products[0]
    assert (product.id, [Path(p).name for p in product.photos]) == ("abc", ["abc.jpg"])


def test_rows_of_one_id_that_contradict_are_refused_by_line(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    rows = [{"id": 1, "image": "a.jpg", "colour": "Red"}, {"id": 1, "image": "a.jpg", "colour": "Blue"}]
    with pytest.raises(InputError, match=r"'1' \(lines 2 and 3: colour is 'Red' and 'Blue'\)"):
        open_source(write_csv(tmp_path / "t.csv", rows))


def test_a_row_that_stands_twice_is_quarantined(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    source = open_source(write_csv(tmp_path / "t.csv", [{"id": 1, "image": "a.jpg"}] * 2))
    assert [q.reason for q in source.quarantined] == ["the same product and photo as line 2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("id,image\n", "no rows"),
        ("id,title\n1,x\n", "no column of image paths .* --map image=COLUMN"),
        ("id,image\n1,nowhere.jpg\n", r"none of its photos .*nowhere.jpg.*--map image"),
        ("id,id,image\n1,2,x.jpg\n", "two columns are called 'id'"),
        ("lk_x,image\n1,x.jpg\n", "lk_x"),
        (b"id,image\n1,caf\xe9.jpg\n", "not UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, content: str | bytes, message: str):
    file = tmp_path / "t.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        open_source(file)
    assert "t.csv" in str(caught.value)


def test_map_names_columns_and_wrong_ones_are_refused(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    table = write_csv(tmp_path / "t.csv", [{"code": 7, "shot": "a.jpg", "text": "Bag"}])
    source = open_source(table, {"image": "shot", "id": "code", "title": "text"})
    assert (source.products[0].id, source.products[0].title) == ("7", "Bag")
    with pytest.raises(InputError, match=r"no column 'foto'.*code, shot, text"):
        open_source(table, {"image": "foto"})
    with pytest.raises(UsageError, match="no such role"):
        open_source(table, {"picture": "shot"})


@pytest.mark.parametrize("what", ["nowhere", "https://example.com/a.csv", 7])
def test_sources_that_are_none(what: object):
    with pytest.raises(InputError):
        open_source(what)


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path):
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(InputError, match=r"no photos in it \(1 other files\); looked for .*jpg"):
        open_source(tmp_path)


def test_products_from_python(tmp_path: Path):
    photo = draw(tmp_path / "a.jpg", "red", "bag")
    source = open_source([Product("1", [photo], "Bag", {"price": 3.0}), Product("2", [])])
    assert [p.id for p in source.products] == ["1"]
    assert [q.item for q in source.quarantined] == ["2"]
    with pytest.raises(InputError, match="occurs twice"):
        open_source([Product("1", [photo]), Product("1", [photo])])
    with pytest.raises(InputError, match="item 0: a str"):
        open_source(["x"])


def test_kinds():
    assert [kind_of(v) for v in ("1", "2.5", "-3", "007", "1e5", "true", "x", True, 3)] == [
        "number", "number", "number", "text", "text", "flag", "text", "flag", "number",
    ]  # fmt: skip
    assert kind_of("4006381333931") == "number"
    assert kind_of("12345678901234567890") == "text"


def test_the_real_kaggle_table_in_both_forms(data: Path, tmp_path: Path):
    """As delivered (quoted) and as downloaded (commas not quoted): the same 44,446 rows."""
    import zipfile

    archive = zipfile.ZipFile(data / "fashion-product-images-small.zip")
    name = next(n for n in archive.namelist() if n.endswith("styles.csv"))
    (tmp_path / "quoted.csv").write_bytes(archive.read(name))
    columns, rows = csv_rows(tmp_path / "quoted.csv")
    known = [cells for _, cells in rows]
    with (tmp_path / "plain.csv").open("w") as file:
        for cells in [columns, *known]:
            file.write(",".join(cells) + "\n")
    _, rows = csv_rows(tmp_path / "plain.csv")
    assert len(known) == 44446
    assert [cells for _, cells in rows] == known
    assert any("," in cells[-1] for cells in known)


def test_ids_from_file_names_never_clash(tmp_path: Path):
    for name in ("a.jpg", "a.png", "b.png.jpg", "b.png", "c.jpg"):
        draw(tmp_path / name, "red", "bag")
    assert [p.id for p in open_source(tmp_path).products] == ["a.jpg", "a.png", "b", "b.png.jpg", "c"]
    draw(tmp_path / tmp_path.name / "d.jpg", "red", "bag")
    grouped = open_source(tmp_path, product_from="folder").products
    assert [(p.id, len(p.photos)) for p in grouped] == [(".", 5), (tmp_path.name, 1)]


def test_an_open_quote_is_told_with_the_line_where_it_opens(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    sheet = tmp_path / "t.csv"
    sheet.write_text('id,image,title\n1,a.jpg,Bag\n2,a.jpg,"Bag\n3,a.jpg,Bag\n4,a.jpg,Bag\n')
    with pytest.raises(InputError, match=r"t\.csv, line 3: cannot be read as CSV .*quotes"):
        open_source(sheet)
    sheet.write_text('id,image,title\n1,a.jpg,"two\nlines"\n2,a.jpg,5" heel\n')
    assert [p.title for p in open_source(sheet).products] == ["two\nlines", '5" heel']


def test_values_of_parquet_and_numpy_become_plain_ones(tmp_path: Path):
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    draw(tmp_path / "a.jpg", "red", "bag")
    columns = {
        "id": pa.array([2**60]),
        "image": pa.array(["a.jpg"]),
        "since": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
        "weight": pa.array([float("inf")]),
        "tags": pa.array([["new", "sale"]]),
        "size": pa.array([38.0]),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    product = open_source(tmp_path / "t.parquet").products[0]
    assert product.id == str(2**60)
    assert product.attributes == {"since": "2023-11-14T22:13:20", "tags": "new, sale", "size": 38.0}
    with pytest.raises(InputError, match="item 0, id x: photos must be paths"):
        open_source([Product("x", [b"bytes"])])  # type: ignore[list-item]
    with pytest.raises(InputError, match="item 0: id and title must be text, not 7"):
        open_source([Product(7, ["a.jpg"])])  # type: ignore[arg-type]
    made = open_source([Product("x", ["a.jpg"], attributes={"day": datetime.date(2026, 1, 2), "tags": ("a", "b")})])
    assert made.products[0].attributes == {"day": "2026-01-02", "tags": "a, b"}


# What others send ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_marked_encodings_are_read(tmp_path: Path, encoding: str, form: str):
    draw(tmp_path / "a.jpg", "red", "bag")
    text = "id,title,image\n1,größe 日本 👗,a.jpg\n"
    if form == "jsonl":
        text = '{"id": 1, "title": "größe 日本 👗", "image": "a.jpg"}\n'
    (tmp_path / f"t.{form}").write_bytes(text.encode(encoding))
    assert [p.title for p in open_source(tmp_path / f"t.{form}").products] == ["größe 日本 👗"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "gb18030", "utf-16-le", "utf-16-be", "utf-32-le", "cp037"])
def test_other_encodings_are_refused_by_name(tmp_path: Path, encoding: str):
    (tmp_path / "t.csv").write_bytes("id,title,image\n1,größe,a.jpg\n".encode(encoding))
    with pytest.raises(InputError, match=r"t\.csv.*save it as UTF-8"):
        open_source(tmp_path / "t.csv")


def test_rows_with_nul_characters_are_quarantined_and_the_rest_is_read(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    rows = [{"id": "1", "title": "a\0b", "image": "a.jpg"}, {"id": "2", "title": "whole", "image": "a.jpg"}]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    source = open_source(tmp_path / "t.jsonl")
    assert [p.id for p in source.products] == ["2"]
    assert [(q.item, q.reason[:26]) for q in source.quarantined] == [("t.jsonl, line 1", "title: has a NUL character")]
    (tmp_path / "t.csv").write_text("id,im\0age\n1,a.jpg\n")
    with pytest.raises(InputError, match=r"t\.csv, line 1: has NUL characters.*save it as UTF-8"):
        open_source(tmp_path / "t.csv")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_too_many_columns_are_refused_at_once(tmp_path: Path, form: str):
    names = ["image", *(f"c{n}" for n in range(100_000))]
    text = ",".join(names) if form == "csv" else "\n".join(json.dumps({"image": "a.jpg", n: 1}) for n in names)
    (tmp_path / f"t.{form}").write_text(text)
    start = time.process_time()
    with pytest.raises(InputError, match=r"columns, at most 1,000 are read; leave some out"):
        open_source(tmp_path / f"t.{form}")
    assert time.process_time() - start < 2


def test_messages_about_huge_cells_stay_short(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    huge = "x" * 1_000_000
    rows = [
        {"id": "1", "title": huge, "image": "a.jpg", "note": huge},
        {"id": huge, "title": "", "image": "a.jpg", "note": ""},
        {"id": "3", "title": "", "image": huge, "note": ""},
    ]
    source = open_source(write_csv(tmp_path / "t.csv", rows))
    assert [p.id for p in source.products] == ["1"]
    assert len(source.products[0].title) == len(str(source.products[0].attributes["note"])) == 100_000
    assert [(q.item, q.reason[:45]) for q in source.quarantined] == [
        ("t.csv, line 3", "the id 'xxxxxxxxxxxxxxxxxxxx… (1,000,000 chara"[:45]),
        ("t.csv, line 2, id 1", "title: 1,000,000 characters; the first 100,000 are kept"[:45]),
        ("t.csv, line 2, id 1", "note: 1,000,000 characters; the first 100,000 are kept"[:45]),
        ("t.csv, line 4, id 3", "the photo " + "x" * 35),
    ]
    assert all(len(q.reason) < 300 for q in source.quarantined)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table_module, "MAX_LINE", 1000)
    for name, text in (("t.csv", "id,image\n1," + "x" * 5000), ("u.csv", "x" * 5000), ("t.jsonl", "{" + " " * 5000)):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name}, line \d: is longer than"):
            open_source(tmp_path / name)


def test_a_table_names_no_photos_outside_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shop, elsewhere = tmp_path / "shop", tmp_path / "elsewhere"
    draw(shop / "a.jpg", "red", "bag")
    secret = draw(elsewhere / "secret.jpg", "blue", "dress")
    names = [
        "a.jpg",
        str(secret),
        "../elsewhere/secret.jpg",
        "x/../../elsewhere/secret.jpg",
        "./a.jpg",
        str(shop / "a.jpg"),
    ]
    path = write_csv(shop / "t.csv", [{"id": n, "image": name} for n, name in enumerate(names)])
    source = open_source(path)
    assert [p.id for p in source.products] == ["0", "4", "5"]
    assert [q.item[-4:] for q in source.quarantined] == ["id 1", "id 2", "id 3"]
    assert all(
        f"lies outside of {shop}; move it there, or set LOOKALIKE_PHOTOS" in q.reason for q in source.quarantined
    )
    assert source.broken == {"1", "2", "3"}  # not pruned: they may be allowed again
    alone = write_csv(shop / "u.csv", [{"id": 1, "image": str(secret)}])
    with pytest.raises(InputError, match=r"they lie outside of its folder.*LOOKALIKE_PHOTOS="):
        open_source(alone)
    monkeypatch.setenv("LOOKALIKE_PHOTOS", f"/nowhere{os.pathsep}{elsewhere}")
    assert len(open_source(path).products) == 6
    monkeypatch.setenv("LOOKALIKE_PHOTOS", str(tmp_path / "else"))  # a folder, not the beginning of a name
    assert len(open_source(path).products) == 3


def test_parquet_files_that_unpack_to_far_more_are_refused(tmp_path: Path):
    for rows, text in ((200_000, "x"), (1, "x" * 5_000_000)):
        same = pa.array([0] * rows, pa.int32())
        columns = {
            n: pa.DictionaryArray.from_arrays(same, [v]) for n, v in (("id", "1"), ("image", "a.jpg"), ("t", text))
        }
        pq.write_table(pa.table(columns), tmp_path / "t.parquet", compression="zstd")
        with pytest.raises(InputError, match=r"t\.parquet: .* rows and .* bytes are packed into"):
            open_source(tmp_path / "t.parquet")


def test_parquet_with_dates_that_python_does_not_have_and_texts_that_repeat(tmp_path: Path):
    draw(tmp_path / "a.jpg", "red", "bag")
    columns = {
        "id": [str(n) for n in range(2500)],
        "image": ["a.jpg"] * 2500,
        "day": pa.array([2**30] * 2500, pa.date32()),
        "kind": pa.array(["bag", None] * 1250),
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    products = open_source(tmp_path / "t.parquet").products
    assert [p.id for p in products] == columns["id"]
    assert [p.attributes["kind"] for p in products[:2]] == ["bag", None]
    assert products[0].attributes["kind"] is products[2400].attributes["kind"]
    assert isinstance(products[0].attributes["day"], str)


def test_a_damaged_parquet_file_is_refused_by_row(tmp_path: Path):
    pq.write_table(pa.table({"id": [str(n) for n in range(500)], "image": ["a.jpg"] * 500}), tmp_path / "t.parquet")
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[4:200] = bytes(196)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"t\.parquet.*(row 1 or after: )?cannot be read|not a Parquet"):
        open_source(tmp_path / "t.parquet")


def test_parquet_that_points_out_of_its_dictionary_is_refused(tmp_path: Path):
    pq.write_table(pa.table({"id": ["1", "2"] * 4, "image": ["a.jpg"] * 8}), tmp_path / "t.parquet", compression="none")
    whole = (tmp_path / "t.parquet").read_bytes()
    refused = 0
    for at in range(20, len(whole) // 3):
        (tmp_path / "t.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ 0x0F]) + whole[at + 1 :])
        try:
            open_source(tmp_path / "t.parquet")
        except InputError as error:
            refused += "t.parquet" in str(error)
    assert refused


FORMULAS = ["=cmd|' /C calc'!A0", "+1+1", "@SUM(A1)", "-2+3", "\t=1", "'=1", "''=1", "-", "-5", "'quoted'", "plain"]


def test_exports_hold_no_formulas_and_read_back_the_same(tmp_path: Path):
    photo = draw(tmp_path / "a.jpg", "red", "bag")
    products = [Product(f, [photo], f, {"note": f, "=name": "x"}) for f in FORMULAS if f.isprintable()]
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(products)
    catalog.export(tmp_path / "e.csv")
    with (tmp_path / "e.csv").open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [c for c in cells if c[:1] in ("=", "+", "@", "-", "\t") and c != "-5"] == []
    again = {p.id: p for p in open_source(tmp_path / "e.csv").products}
    assert again.keys() == {p.id for p in products}
    assert all(again[p.id].attributes["note"] == p.attributes["note"] for p in products)
    assert "=name" in again["plain"].attributes
    for text in FORMULAS:
        assert table_module.unguarded(table_module.guarded(text)) == text


def test_frames_whose_columns_have_numbers_for_names():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(InputError, match="no column of image paths found among 0, 1"):
        open_source(pandas.DataFrame([["a", "b"]]))


def test_ids_of_products_have_a_length(tmp_path: Path):
    photo = draw(tmp_path / "a.jpg", "red", "bag")
    with pytest.raises(InputError, match=r"item 0: the id 'x+… \(1,001 characters\)' is longer than 1,000"):
        open_source([Product("x" * 1001, [photo])])
    assert open_source([Product("x" * 1000, [photo])]).products


def test_links_that_loop_are_walked_once(folder: Path):
    (folder / "loop").symlink_to(folder)
    (folder / "women" / "itself").symlink_to("itself")
    before = len(open_source(folder).products)
    (folder / "men" / "up").symlink_to(folder / "women")
    assert before == len(open_source(folder).products) == 24


def test_products_with_nul_characters_or_without_an_id_are_quarantined(tmp_path: Path):
    photo = draw(tmp_path / "a.jpg", "red", "bag")
    given = [Product("a\0", [photo]), Product("b", [photo], "\0"), Product("c", [photo], "", {"x": "\0"})]
    source = open_source([*given, Product(" ", [photo]), Product("d", [photo])])
    assert [p.id for p in source.products] == ["d"]
    assert [q.reason.partition(":")[0] for q in source.quarantined] == [
        "the id",
        "the title",
        "x",
        "the id is empty; fill it in",
    ]
    assert source.broken == {"a\0", "b", "c", " "}


@pytest.mark.parametrize("name", [".", "..", "/", "./", "#xywh=0,0,1,1", ".jpg"])
def test_names_of_photos_that_are_no_files(tmp_path: Path, name: str):
    draw(tmp_path / "a.jpg", "red", "bag")
    source = open_source(write_csv(tmp_path / "t.csv", [{"image": name}, {"image": "a.jpg"}]))
    assert [p.id for p in source.products] == ["a"]
    assert len(source.quarantined) == 1
