"""Known data sets: miniatures of their true layouts, drawn here, with the mistakes that real copies have."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lookalike
from conftest import COLOURS, draw
from lookalike import images
from lookalike.errors import InputError, UsageError
from lookalike.sources import Source, deepfashion, open_source
from lookalike.sources.street import street_photos


def write_list(file: Path, header: str, rows: list[str], count: int | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([str(len(rows) if count is None else count), header, *rows]) + "\n")
    return file


def told(source: Source) -> dict[str, str]:
    return {q.item: q.reason for q in source.quarantined}


# In-Shop

SHOP = [
    ("WOMEN/Dresses/id_00000001/02_1_front.jpg", "id_00000001", "train", "red"),
    ("WOMEN/Dresses/id_00000001/02_2_side.jpg", "id_00000001", "train", "red"),
    ("MEN/Tees_Tanks/id_00000002/01_1_front.jpg", "id_00000002", "query", "blue"),
    ("MEN/Tees_Tanks/id_00000002/01_2_side.jpg", "id_00000002", "gallery", "blue"),
    ("MEN/Tees_Tanks/id_00000002/01_7_additional.jpg", "id_00000002", "gallery", "blue"),
    ("WOMEN/Skirts/id_00000003/01_1_front.jpg", "id_00000003", "query", "green"),
    ("WOMEN/Skirts/id_00000003/01_4_full.jpg", "id_00000003", "gallery", "green"),
]


def in_shop(root: Path) -> Path:
    """Seven photos of three items: the garment fills a box of 30×40 pixels, around it is black."""
    for name, _, _, colour in SHOP:
        photo = Image.new("RGB", (60, 80), "black")
        photo.paste(COLOURS[colour], (10, 20, 40, 60))
        (root / "img" / name).parent.mkdir(parents=True, exist_ok=True)
        photo.save(root / "img" / name, quality=95)
    write_list(
        root / "Eval" / "list_eval_partition.txt",
        "image_name item_id evaluation_status",
        [f"img/{name:<68}{item} {status}" for name, item, status, _ in SHOP],
    )
    write_list(
        root / "Anno" / "list_bbox_inshop.txt",
        "image_name clothes_type pose_type x_1 y_1 x_2 y_2",
        [f"img/{name:<68}{1 + n % 3} 1 010 020 040 060" for n, (name, *_) in enumerate(SHOP)],
    )
    return root


def test_in_shop_items_are_products_with_their_boxes(tmp_path: Path):
    root = in_shop(tmp_path)
    write_list(root / "Anno" / "attributes" / "list_attr_cloth.txt", "attribute_names", ["zip", "long sleeve", "knit"])
    write_list(
        root / "Anno" / "attributes" / "list_attr_items.txt",
        "item_id attribute_labels",
        ["id_00000001 -1  1 1", "id_00000002  1 -1 -1"],
    )
    colours = [f"img/{name}     {'Light Blue' if 'MEN/T' in name else 'Red'}" for name, *_ in SHOP[:5]]
    write_list(root / "Anno" / "attributes" / "list_color_cloth.txt", "image_name  color", colours)
    items = [{"item": "id_00000003", "color": "Green", "description": ["A skirt.", "To wear."]}]
    (root / "Anno" / "list_description_inshop.json").write_text(json.dumps(items))
    source = open_source(root)
    assert source.quarantined == []
    assert source.roles == {"category": "category", "colour": "colour", "gender": "gender"}
    one, two, three = source.products
    assert (one.id, one.title, len(one.photos), one.where) == (
        "id_00000001", "Red Dresses", 2, "Eval/list_eval_partition.txt, line 3",
    )  # fmt: skip
    assert one.attributes == {
        "gender": "WOMEN", "category": "Dresses", "clothes_type": "upper-body", "colour": "Red",
        "attributes": "long sleeve, knit", "split": "train",
    }  # fmt: skip
    assert two.attributes["colour"] == "Light Blue"
    assert (two.attributes["attributes"], two.attributes["split"]) == ("zip", "test")
    assert two.attributes["category"] == "Tees Tanks"
    assert (three.title, three.attributes["description"]) == ("Green Skirts", "A skirt. To wear.")
    assert str(one.photos[0]).endswith("02_1_front.jpg#xywh=10,20,30,40")

    made = lookalike.open(tmp_path / "c", encoder="fake")
    assert made.index(root).added == 7
    part = images.read(made.search("red", k=1)[0].path)
    assert part.size == (30, 40)
    assert np.abs(np.asarray(part).mean((0, 1)) - COLOURS["red"]).max() < 12  # no black is left
    with pytest.raises(UsageError, match="is a data set"):
        open_source(root, product_from="folder")


def test_in_shop_photo_by_photo_for_the_protocol(tmp_path: Path):
    listed, quarantined = deepfashion.in_shop(in_shop(tmp_path))
    assert not quarantined
    assert [(one.item, one.status) for one in listed] == [(item, status) for _, item, status, _ in SHOP]
    assert listed[0].photo.endswith("#xywh=10,20,30,40")
    whole, _ = deepfashion.in_shop(tmp_path, crop=False)
    assert [one.photo for one in whole] == [str(tmp_path / "img" / name) for name, *_ in SHOP]


@pytest.mark.parametrize("layout", ["root", "fine", "Img", "Img/img", "no prefix", "crlf", "no header", "case", "tabs"])
def test_in_shop_as_copies_have_it(tmp_path: Path, layout: str):
    root = in_shop(tmp_path / "data")
    known = [(p.id, p.attributes, [Path(f).name for f in p.photos]) for p in open_source(root).products]
    lists = [root / "Eval" / "list_eval_partition.txt", root / "Anno" / "list_bbox_inshop.txt"]
    if layout == "root":
        for file in lists:
            file.rename(root / file.name)
    elif layout == "fine":
        (root / "Anno").rename(root / "Anno_fine")
    elif layout == "Img":
        (root / "img").rename(root / "aside")
        (root / "aside").rename(root / "Img")
    elif layout == "Img/img":
        (root / "img").rename(root / "aside")
        (root / "Img").mkdir()
        (root / "aside").rename(root / "Img" / "img")
    elif layout == "case":
        for file in sorted((root / "img").rglob("*_front.jpg")):
            file.rename(file.with_suffix(".JPG"))
        known = [(i, a, [f.replace("_front.jpg", "_front.JPG") for f in files]) for i, a, files in known]
    else:
        for file in lists:
            text = file.read_text()
            text = text.replace("img/", "") if layout == "no prefix" else text
            text = "".join(text.splitlines(keepends=True)[2:]) if layout == "no header" else text
            text = "\t".join(text.split(" ")).replace("\t\t", "\t") if layout == "tabs" else text
            file.write_text("\ufeff" + text.replace("\n", "\r\n") if layout == "crlf" else text)
    source = open_source(root)
    assert source.quarantined == []
    assert [(p.id, p.attributes, [Path(f).name for f in p.photos]) for p in source.products] == known


def test_in_shop_mistakes_are_told_with_file_and_line(tmp_path: Path):
    root = in_shop(tmp_path)
    partition = root / "Eval" / "list_eval_partition.txt"
    rows = partition.read_text().splitlines()[2:]
    rows[1] = rows[1].replace("train", "query")  # one item in train and in test
    rows.insert(3, rows[0])  # line 6: twice
    rows.insert(4, rows[0].replace("id_00000001 train", "id_00000009 gallery"))  # line 7: twice, and otherwise
    rows.append("img/WOMEN/Skirts/id_00000004/01_1_front.jpg id_00000004 gallery")  # line 12: not there
    rows.append(rows[-2].replace("gallery", "galle"))  # line 13
    rows.append("img/WOMEN/Skirts/id_0000")  # line 14: here the copy ends
    write_list(partition, "image_name item_id evaluation_status", rows, count=52712)
    boxes = root / "Anno" / "list_bbox_inshop.txt"
    rows = boxes.read_text().splitlines()[2:]
    rows[0] = rows[0].replace("010 020 040 060", "040 060 010 020")  # reversed
    rows[1] = rows[1].replace("010 020 040 060", "010 020 400 600")  # over the edge
    rows[2] = rows[2].replace("010 020 040 060", "010 020 010 060")  # line 5: without width
    rows[3] = rows[3].replace("010 020 040 060", "100 120 140 160")  # outside of the photo
    rows[4] = rows[4].replace("010 020 040 060", "010 020 zz 060")  # line 7
    rows.append(rows[0])  # line 10
    write_list(boxes, "image_name clothes_type pose_type x_1 y_1 x_2 y_2", rows, count=7)
    source = open_source(root)
    items = {p.id: p for p in source.products}
    assert list(items) == ["id_00000001", "id_00000002", "id_00000003"]
    reasons = told(source)
    for item, reason in {
        "Anno/list_bbox_inshop.txt, line 5": "no box",
        "Anno/list_bbox_inshop.txt, line 7": "no box",
        "Anno/list_bbox_inshop.txt, line 10": "the same photo as line 3",
        "Anno/list_bbox_inshop.txt, line 1": "says 7 rows, 8 follow; the rows count",
        "Eval/list_eval_partition.txt, line 6": "the same photo as line 3",
        "Eval/list_eval_partition.txt, line 7": "which says otherwise",
        "Eval/list_eval_partition.txt, line 12, id id_00000004": "is not there",
        "Eval/list_eval_partition.txt, line 13, id id_00000003": "'galle' is none of train, query, gallery",
        "Eval/list_eval_partition.txt, line 14": "1 of 3 columns; the line is cut short",
        "Eval/list_eval_partition.txt, line 1": "says 52712 rows, 12 follow; it may be cut short",
        "Eval/list_eval_partition.txt, line 3, id id_00000001": "in test and train; it counts as train",
    }.items():
        assert reason in reasons.pop(item), item
    assert not reasons
    first = [str(p).rsplit("#", 1)[-1] for p in items["id_00000001"].photos]
    assert first == ["xywh=10,20,30,40", "xywh=10,20,390,580"]
    assert "#" not in str(items["id_00000002"].photos[0])

    made = lookalike.open(tmp_path / "c", encoder="fake")
    report = made.index(root)
    assert report.added == 6
    assert [q.reason for q in made.quarantine() if "lies outside" in q.reason] == [
        "its box 100,120,40,40 lies outside of the photo's 60×80 pixels; mend it"
    ]
    write_list(
        partition, "image_name item_id evaluation_status", rows=partition.read_text().splitlines()[2:4], count=99
    )
    assert made.index(root, prune=True).removed == 0  # what a list that is cut short no longer names stays
    write_list(partition, "image_name item_id evaluation_status", rows=partition.read_text().splitlines()[2:4])
    assert made.index(root, prune=True).removed == 4


def test_lists_name_no_photos_elsewhere(tmp_path: Path):
    root = in_shop(tmp_path / "in-shop")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.jpg")
    partition = root / "Eval" / "list_eval_partition.txt"
    rows = [*partition.read_text().splitlines()[2:], "img/../../secret.jpg id_00000009 gallery"]
    write_list(partition, "image_name item_id evaluation_status", rows)
    source = open_source(root)
    assert [p.id for p in source.products] == ["id_00000001", "id_00000002", "id_00000003"]
    assert "the photo img/../../secret.jpg is not there" in " ".join(told(source).values())


def test_a_deepfashion_without_what_it_needs_gets_one_clear_error(tmp_path: Path):
    root = in_shop(tmp_path)
    partition = root / "Eval" / "list_eval_partition.txt"
    text = partition.read_text()
    partition.unlink()
    with pytest.raises(InputError, match=r"without list_eval_partition\.txt"):
        open_source(root)
    partition.write_text("hello\nworld\n")
    (root / "Anno" / "list_bbox_inshop.txt").rename(root / "aside")
    with pytest.raises(InputError, match="not a partition of DeepFashion"):
        open_source(root)
    partition.write_text(text)
    assert len(open_source(root).products) == 3  # told by its columns
    (root / "img").rename(root / "elsewhere")
    (root / "img.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"the first: img/WOMEN/Dresses/.*unpack img\.zip"):
        open_source(root)
    with pytest.raises(InputError, match="not DeepFashion's In-Shop"):
        deepfashion.in_shop(tmp_path / "elsewhere")


# Consumer-to-Shop


def consumer_to_shop(root: Path) -> Path:
    rows = []
    for group, category, item, status in (
        ("CLOTHING", "Summer_Wear", "id_00000004", "train"),
        ("TOPS", "Blouse", "id_00000007", "val"),
        ("DRESSES", "Dress", "id_00000009", "test"),
    ):
        folder = f"img/{group}/{category}/{item}"
        for name in ("shop_01.jpg", "comsumer_01.jpg", "comsumer_02.jpg"):
            draw(root / folder / name, "red", "dress")
        rows += [f"{folder}/comsumer_0{n}.jpg  {folder}/shop_01.jpg   {item}   {status}" for n in (1, 2)]
    write_list(
        root / "Eval" / "list_eval_partition.txt", "image_pair_name_1 image_pair_name_2 item_id evaluation_status", rows
    )
    photos = [p.relative_to(root).as_posix() for p in sorted((root / "img").rglob("*.jpg"))]
    boxes = [f"{p}   {3 if 'Dress' in p else 1} {1 if 'shop_' in p else 2} 005 006 055 076" for p in photos]
    write_list(
        root / "Anno" / "list_bbox_consumer2shop.txt", "image_name clothes_type source_type x_1 y_1 x_2 y_2", boxes
    )
    return root


def test_consumer_to_shop_items_have_the_shops_photos_first(tmp_path: Path):
    root = consumer_to_shop(tmp_path)
    source = open_source(root)
    assert source.quarantined == []
    assert [p.id for p in source.products] == ["id_00000004", "id_00000007", "id_00000009"]
    assert [Path(str(f).split("#")[0]).name for f in source.products[0].photos] == [
        "shop_01.jpg", "comsumer_01.jpg", "comsumer_02.jpg",
    ]  # fmt: skip
    assert str(source.products[0].photos[1]).endswith("#xywh=5,6,50,70")
    assert source.products[0].attributes == {
        "group": "CLOTHING", "category": "Summer Wear", "clothes_type": "upper-body", "split": "train",
    }  # fmt: skip
    assert [p.attributes["split"] for p in source.products] == ["train", "val", "test"]
    assert source.products[2].attributes["clothes_type"] == "full-body"


def test_consumer_to_shop_mistakes_are_told(tmp_path: Path):
    root = consumer_to_shop(tmp_path)
    (root / "img/TOPS/Blouse/id_00000007/comsumer_02.jpg").unlink()
    partition = root / "Eval" / "list_eval_partition.txt"
    rows = partition.read_text().splitlines()[2:]
    rows[1] = rows[1].replace("train", "test")
    rows += [rows[0], rows[4].replace("test", "gallery"), rows[5][:50]]
    write_list(partition, "image_pair_name_1 image_pair_name_2 item_id evaluation_status", rows, 9)
    source = open_source(root)
    reasons = told(source)
    for item, reason in {
        "Eval/list_eval_partition.txt, line 6, id id_00000007": "comsumer_02.jpg is not there",
        "Eval/list_eval_partition.txt, line 9": "the same pair as line 3",
        "Eval/list_eval_partition.txt, line 10, id id_00000009": "'gallery' is none of train, val, test",
        "Eval/list_eval_partition.txt, line 11": "2 of 4 columns",
        "Eval/list_eval_partition.txt, line 3, id id_00000004": "in test and train; it counts as train",
    }.items():
        assert reason in reasons.pop(item), item
    assert not reasons
    assert [len(p.photos) for p in source.products] == [3, 2, 3]


# Category and Attribute Prediction

CLOTHES = [
    ("Sheer_Pleated-Front_Blouse/img_00000001.jpg", 2, "train", "1 -1 1"),
    ("Sheer_Pleated-Front_Blouse/img_00000002.jpg", 2, "val", "-1 -1 -1"),
    ("Floral_Maxi_Dress/img_00000001.jpg", 3, "test", "-1 1 1"),
]


def category_and_attribute(root: Path, fine: bool = False) -> Path:
    for name, *_ in CLOTHES:
        draw(root / "img" / name, "blue", "shirt")
    anno = root / ("Anno_fine" if fine else "Anno_coarse")
    write_list(anno / "list_category_cloth.txt", "category_name  category_type", [
        "Anorak            1", "Button Down Blouse          1", "Dress             3",
    ])  # fmt: skip
    write_list(anno / "list_attr_cloth.txt", "attribute_name  attribute_type", [
        "abstract animal print      1", "maxi      3", "chiffon     2",
    ])  # fmt: skip
    if fine:
        for part in ("train", "val", "test"):
            own = [c for c in CLOTHES if c[2] == part]
            (anno / f"{part}.txt").write_text("".join(f"img/{c[0]}\n" for c in own))
            (anno / f"{part}_cate.txt").write_text("".join(f"{c[1]}\n" for c in own))
            (anno / f"{part}_attr.txt").write_text("".join(c[3].replace("-1", "0") + "\n" for c in own))
            (anno / f"{part}_bbox.txt").write_text("010 012 050 070\n" * len(own))
        return root
    write_list(anno / "list_category_img.txt", "image_name  category_label", [f"img/{c[0]:<70}{c[1]}" for c in CLOTHES])
    write_list(anno / "list_attr_img.txt", "image_name attribute_labels", [f"img/{c[0]:<70}{c[3]}" for c in CLOTHES])
    write_list(
        anno / "list_bbox.txt", "image_name  x_1  y_1  x_2  y_2", [f"img/{c[0]:<70}010 012 050 070" for c in CLOTHES]
    )
    write_list(
        root / "Eval" / "list_eval_partition.txt",
        "image_name  evaluation_status",
        [f"img/{c[0]:<70}{c[2]}" for c in CLOTHES],
    )
    return root


@pytest.mark.parametrize("fine", [False, True])
def test_category_and_attribute_photos_are_products(tmp_path: Path, fine: bool):
    source = open_source(category_and_attribute(tmp_path, fine))
    assert source.quarantined == []
    assert [p.id for p in source.products] == [c[0].removesuffix(".jpg") for c in CLOTHES]
    one, two, three = source.products
    assert one.title == "Sheer Pleated-Front Blouse"
    assert one.attributes == {
        "category": "Button Down Blouse", "clothes_type": "upper-body", "texture": "abstract animal print",
        "fabric": "chiffon", "split": "train",
    }  # fmt: skip
    assert two.attributes == {"category": "Button Down Blouse", "clothes_type": "upper-body", "split": "val"}
    assert three.attributes["shape"] == "maxi"
    assert str(one.photos[0]).endswith("#xywh=10,12,40,58")
    assert source.roles == {"category": "category"}


def test_category_and_attribute_mistakes_are_told(tmp_path: Path):
    root = category_and_attribute(tmp_path)
    anno = root / "Anno_coarse"
    name = CLOTHES[0][0]
    rows = [f"img/{c[0]} {c[1]}" for c in CLOTHES]
    rows[2] = rows[2].replace(" 3", " 51")
    write_list(
        anno / "list_category_img.txt", "image_name  category_label", [*rows, f"{name} 2", f"img/{name} 3", "img/x"]
    )
    write_list(
        anno / "list_attr_img.txt", "image_name attribute_labels", [f"img/{name} 1 -1", f"img/{CLOTHES[2][0]} 1 1 1"]
    )
    statuses = [f"{name} train", f"{name} test", f"{CLOTHES[1][0]} valid"]
    write_list(root / "Eval" / "list_eval_partition.txt", "image_name evaluation_status", statuses)
    source = open_source(root)
    reasons = told(source)
    for item, reason in {
        "Anno_coarse/list_category_img.txt, line 5, id Floral_Maxi_Dress/img_00000001": "category 51 is none of the 3",
        "Anno_coarse/list_category_img.txt, line 6": "the same photo as line 3",
        "Anno_coarse/list_category_img.txt, line 7": "which says otherwise",
        "Anno_coarse/list_category_img.txt, line 8": "1 of 2 columns",
        "Anno_coarse/list_attr_img.txt, line 3": "3 of 4 columns",
        "Eval/list_eval_partition.txt, line 4": "which says otherwise",
        "Eval/list_eval_partition.txt, line 5": "'valid' is none of",
    }.items():
        assert reason in reasons.pop(item), item
    assert not reasons
    assert source.products[0].attributes["split"] == "train"
    assert "split" not in source.products[1].attributes
    assert "category" not in source.products[2].attributes
    short = category_and_attribute(tmp_path / "fine", fine=True)
    (short / "Anno_fine" / "train_cate.txt").write_text("")
    (short / "Anno_fine" / "val_bbox.txt").write_text("10 20\n")
    found = told(open_source(short))
    assert "0 rows beside 1 photos" in found["train_cate.txt"]
    assert "no box" in found["Anno_fine/val_bbox.txt, line 1"]


# The clothing dataset


def test_the_clothing_dataset_has_kinds_senders_and_a_split(tmp_path: Path):
    lines = ["image,sender_id,label,kids"]
    for n in range(12):
        draw(tmp_path / "images" / f"s{n}.jpg", "green", "bag")
        lines.append(f"s{n},{n // 2},{('T-Shirt', 'Not sure', 'Hat')[n % 3]},{n == 4}")
    lines += ["s0,0,T-Shirt,False", "gone,7,Hat,False", "s1,3"]
    (tmp_path / "images.csv").write_text("\r\n".join(lines) + "\r\n")
    source = open_source(tmp_path)
    assert source.roles == {"id": "image", "category": "label"}
    assert len(source.products) == 12
    assert source.products[4].attributes["kids"] is True
    assert "label" not in source.products[4].attributes
    assert source.products[0].attributes["label"] == source.products[0].title == "T-Shirt"
    assert told(source) == {
        "images.csv, line 14": "the same photo as line 2",
        "images.csv, line 15, id gone": "the photo is not in images/",
        "images.csv, line 16": "2 of 4 columns; the line is cut short",
    }
    files, kinds, test = street_photos(tmp_path)
    by_file = {Path(p.photos[0]): p.attributes for p in source.products if "label" in p.attributes}
    assert [(by_file[f]["label"], by_file[f]["split"] == "test") for f in files] == list(zip(kinds, test, strict=True))
    assert {a["split"] for a in by_file.values()} == {"train", "test"}
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"none of the photos of images\.csv .*the first: s0"):
        open_source(tmp_path)


# Fashion-MNIST


def fashion_mnist(root: Path, packed: bool = True, sign: str = "-") -> np.ndarray:
    """Six pictures to train and three to test on."""
    root.mkdir(parents=True, exist_ok=True)
    pictures = np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8)
    for prefix, part in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        own = pictures[part]
        labels = bytes(range(len(own)))
        for name, content in (
            (f"{prefix}-images{sign}idx3-ubyte", struct.pack(">4I", 0x803, len(own), 28, 28) + own.tobytes()),
            (f"{prefix}-labels{sign}idx1-ubyte", struct.pack(">2I", 0x801, len(own)) + labels),
        ):
            (root / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return pictures


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(("packed", "folder", "sign"), [(True, "", "-"), (False, "raw", "-"), (False, "", ".")])
def test_fashion_mnist_becomes_photos_written_once(tmp_path: Path, cache: Path, packed: bool, folder: str, sign: str):
    pictures = fashion_mnist(tmp_path / "data" / folder, packed, sign)
    source = open_source(tmp_path / "data")
    assert source.quarantined == []
    assert [p.id for p in source.products] == [
        *(f"train/{n:05}" for n in range(6)),
        *(f"test/{n:05}" for n in range(3)),
    ]
    assert source.products[0].attributes == {"category": "T-shirt/top", "split": "train"}
    assert source.products[8].attributes == {"category": "Pullover", "split": "test"}
    for product, picture in zip(source.products, pictures, strict=True):
        assert np.array_equal(np.asarray(images.read(product.photos[0]))[..., 0], picture)
    files = sorted(cache.rglob("*.png"))
    assert len(files) == 9
    before = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    files[4].unlink()  # one is lost: it comes back, the others stay
    assert [p.photos for p in open_source(tmp_path / "data").products] == [p.photos for p in source.products]
    after = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    assert [b for b, _ in before] == [b for b, _ in after]
    assert before[:4] == after[:4]
    made = lookalike.open(tmp_path / "c", encoder="fake")
    assert made.index(tmp_path / "data").added == 9
    assert made.index(tmp_path / "data").unchanged == 9


def test_fashion_mnist_mistakes_are_told(tmp_path: Path, cache: Path):
    root = tmp_path / "data"
    fashion_mnist(root, packed=False)
    labels = root / "train-labels-idx1-ubyte"
    labels.write_bytes(struct.pack(">2I", 0x801, 5) + bytes([0, 1, 2, 99, 4]))
    photos = root / "t10k-images-idx3-ubyte"
    photos.write_bytes(photos.read_bytes()[:-100])
    source = open_source(root)
    reasons = told(source)
    for item, reason in {
        "train-images-idx3-ubyte, picture 3, id train/00003": "its label is 99, not 0 to 9",
        "train-images-idx3-ubyte, picture 5, id train/00005": "train-labels-idx1-ubyte ends before it",
        "t10k-images-idx3-ubyte": "promises 3 entries and holds 2; it is cut short",
        "t10k-labels-idx1-ubyte": "3 labels for 2 pictures",
    }.items():
        assert reason in reasons.pop(item), item
    assert not reasons
    assert len(source.products) == 8
    assert source.products[3].attributes == {"split": "train"}

    fashion_mnist(root, packed=True)
    labels.unlink()
    packed = root / "train-labels-idx1-ubyte.gz"
    packed.write_bytes(packed.read_bytes()[:-12])
    assert "cut short" in told(open_source(root))["train-labels-idx1-ubyte.gz"]
    packed.unlink()
    with pytest.raises(InputError, match="train-images-idx3-ubyte without train-labels"):
        open_source(root)
    labels.write_bytes(b"no labels at all")
    with pytest.raises(InputError, match=r"train-labels-idx1-ubyte: not an IDX file"):
        open_source(root)
    (root / "train-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 1, 32, 32) + bytes(1024))
    with pytest.raises(InputError, match="holds pictures of 32×32"):
        open_source(root)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fashion_mnist(tmp_path / "data")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be kept there .*LOOKALIKE_CACHE"):
        open_source(tmp_path / "data")


def test_other_folders_are_still_folders_of_photos(tmp_path: Path, folder: Path):
    (folder / "images.csv").write_text("a,b\n1,2\n")
    (folder / "eval").mkdir()
    (folder / "eval" / "notes.txt").write_text("1\n")
    assert len(open_source(folder).products) == 24
