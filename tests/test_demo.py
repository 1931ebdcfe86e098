import csv
import math
import re
from random import Random

import pytest
from PIL import Image, ImageStat

from lookalike import demo
from lookalike.errors import UsageError

PRODUCTS = 30


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return demo.draw(tmp_path_factory.mktemp("demo"), PRODUCTS, seed=3)


@pytest.fixture(scope="module")
def rows(catalog):
    return rows_of(catalog)


def files_of(path):
    return {file.name: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}


def test_the_table_and_the_files_agree(catalog, rows):
    assert catalog.name == "products.csv"
    assert list(rows[0]) == ["id", "title", "category", "gender", "colour", "pattern", "price", "image"]
    assert [row["id"] for row in rows if "-2" not in row["image"]] == [f"P{n:04d}" for n in range(1, PRODUCTS + 1)]
    images = [row["image"] for row in rows]
    assert len(set(images)) == len(images)
    assert {file.relative_to(catalog.parent).as_posix() for file in (catalog.parent / "images").iterdir()} == set(
        images
    )
    for row in rows:
        with Image.open(catalog.parent / row["image"]) as image:
            assert image.size == (360, 480) and image.mode == "RGB"


def test_every_photo_shows_a_garment_on_white_and_no_two_are_the_same(catalog, rows):
    assert len({(catalog.parent / row["image"]).read_bytes() for row in rows}) == len(rows)
    for row in (row for row in rows if "-2" not in row["image"]):
        with Image.open(catalog.parent / row["image"]) as image:
            grey = image.convert("L")
        corners = [grey.getpixel(at) for at in ((2, 2), (357, 2), (2, 477), (357, 477))]
        assert min(corners) > 245, row
        left, top, right, bottom = grey.point([255 * (v < 238) for v in range(256)]).getbbox()
        assert max((right - left) / 360, (bottom - top) / 480) > 0.8, row
        assert ImageStat.Stat(grey).stddev[0] > 8, row


def test_a_second_photo_shares_every_column(catalog, rows):
    second = [row for row in rows if "-2" in row["image"]]
    assert second
    first = {row["id"]: row for row in rows if "-2" not in row["image"]}
    for row in second:
        assert {**row, "image": ""} == {**first[row["id"]], "image": ""}


def test_about_one_in_five_has_a_second_photo():
    kind = next(kind for kind in demo.KINDS if kind.category == "Socks")
    shots = [len(demo.photographs(Random(f"{n}"), kind, "Men", (200, 40, 40), "Plain")) for n in range(40)]
    assert set(shots) == {1, 2} and 2 <= shots.count(2) <= 16


def test_the_words_are_plausible(rows):
    kinds = {kind.category: kind for kind in demo.KINDS}
    assert {row["category"] for row in rows} == set(kinds) and len(kinds) >= 12
    for row in rows:
        kind = kinds[row["category"]]
        assert row["gender"] in kind.genders and row["pattern"] in kind.patterns and row["colour"] in kind.colours
        assert row["title"].startswith(demo.BRANDS) and row["title"].endswith(row["category"])
        assert row["colour"] in row["title"] and (row["pattern"] in row["title"]) == (row["pattern"] != "Plain")
        assert (row["gender"] in row["title"]) == (row["gender"] != "Unisex")
        assert re.fullmatch(r"\d+\.\d\d", row["price"]) and kind.prices[0] <= float(row["price"]) <= kind.prices[1] + 1
    for kind in demo.KINDS:
        assert set(kind.genders) <= {"Men", "Women", "Boys", "Girls", "Unisex"}
        assert set(kind.patterns) <= {"Plain", "Striped", "Checked", "Dotted", "Floral"}
        assert set(kind.colours) <= set(demo.COLOURS)
        if kind.category in ("Skirt", "Dress", "Heels"):
            assert not {"Men", "Boys", "Unisex"} & set(kind.genders)


@pytest.mark.parametrize("kind", demo.KINDS, ids=lambda kind: kind.category)
def test_the_colour_that_is_named_is_the_colour_that_is_drawn(kind):
    red, blue = (
        demo.photographs(Random("same"), kind, kind.genders[0], demo.COLOURS[c], "Plain") for c in ("Red", "Blue")
    )
    (r1, _, b1), (r2, _, b2) = (ImageStat.Stat(shots[0]).mean for shots in (red, blue))
    assert r1 - b1 > r2 - b2 + 2
    white = demo.photographs(Random("same"), kind, kind.genders[0], demo.COLOURS["White"], "Plain")[0]
    assert ImageStat.Stat(white.convert("L")).stddev[0] > 5, "a white garment has an outline on white"


def test_the_same_seed_gives_the_same_bytes_and_mends_a_broken_run(tmp_path):
    whole = files_of(demo.draw(tmp_path / "a", 8, seed=1))
    (tmp_path / "b/images").mkdir(parents=True)
    (tmp_path / "b/images/P0001.jpg").write_bytes(whole["P0001.jpg"][:99])
    assert files_of(demo.draw(tmp_path / "b", 8, seed=1)) == whole
    assert files_of(demo.draw(tmp_path / "b", 8, seed=1)) == whole


def test_a_smaller_catalog_is_the_beginning_of_a_larger_one(catalog, rows, tmp_path):
    small = demo.draw(tmp_path, 5, seed=3)
    begun = rows_of(small)
    assert begun == rows[: len(begun)]
    assert all((tmp_path / row["image"]).read_bytes() == (catalog.parent / row["image"]).read_bytes() for row in begun)


def test_another_seed_gives_other_products(catalog, tmp_path):
    other = files_of(demo.draw(tmp_path, 5, seed=4))
    mine = files_of(catalog)
    assert not {name for name in other if other[name] == mine.get(name)}


def test_progress_counts_products(tmp_path):
    seen = []
    demo.draw(tmp_path, 3, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        demo.draw(tmp_path / "none", 0)
    assert not (tmp_path / "none").exists()


def test_curves_pass_their_points_and_do_not_overshoot():
    points = demo.outline("|0,0~ 100,10~ 100,300 0,310~")
    path = list(demo.curve(points, closed=True))
    assert all(min(abs(at - point) for point in path) < 1e-9 for at, _ in points)
    assert max(abs(at.real) for at in path) < 115 and min(at.imag for at in path) > -15
    assert math.isclose(sum(at.real for at, _ in points), 0, abs_tol=1e-9)
