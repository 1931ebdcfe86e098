"""Shared set-up: drawn photos, small catalogs with the fake encoder, and the real data where they are."""

from __future__ import annotations

import csv
import importlib
import os
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import lookalike

COLOURS = {"red": (200, 30, 40), "blue": (40, 80, 190), "green": (40, 140, 60), "black": (20, 20, 20)}
KINDS = ("shirt", "dress", "bag")
DATA = Path(os.environ.get("LOOKALIKE_DATA", Path(__file__).parents[2] / "shared" / "data"))


def draw(path: Path, colour: str, kind: str, shade: int = 0) -> Path:
    """A garment of one colour on white; ``shade`` makes two of a kind differ."""
    image = Image.new("RGB", (60, 80), "white")
    fill = tuple(min(255, c + shade * 9) for c in COLOURS[colour])
    pen = ImageDraw.Draw(image)
    if kind == "shirt":
        pen.rectangle((14, 20, 46, 60), fill)
        pen.rectangle((4, 20, 56, 34), fill)
    elif kind == "dress":
        pen.polygon([(24, 8), (36, 8), (52, 74), (8, 74)], fill)
    else:
        pen.ellipse((10, 30, 50, 70), fill)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=92)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``women|men / kind / colour-n.jpg``: 24 photos, regular folders."""
    root = tmp_path / "photos"
    for gender in ("women", "men"):
        for kind in KINDS:
            for n, colour in enumerate(COLOURS):
                draw(root / gender / kind / f"{colour}-{n}.jpg", colour, kind, 0 if gender == "men" else 3)
    return root


def write_csv(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(k for r in rows for k in r)))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A CSV of 12 products with their photos; the first has two."""
    rows = []
    for n, (kind, colour) in enumerate((k, c) for k in KINDS for c in COLOURS):
        draw(tmp_path / "img" / f"{n}.jpg", colour, kind)
        rows.append(
            {"sku": f"p{n:02}", "name": f"{colour} {kind}", "image": f"img/{n}.jpg", "colour": colour.title(),
             "gender": "Women" if n % 2 else "Men", "price": 10 + n * 5.5, "new": n % 3 == 0, "ean": f"00{n}"}
        )  # fmt: skip
    draw(tmp_path / "img" / "0b.jpg", "red", "shirt", 4)
    rows.insert(1, {**rows[0], "image": "img/0b.jpg"})
    return write_csv(tmp_path / "products.csv", rows)


@pytest.fixture
def catalog(tmp_path: Path, table: Path) -> lookalike.Catalog:
    """The table above, indexed by the fake encoder."""
    made = lookalike.open(tmp_path / "shop.catalog", encoder="fake")
    made.index(table)
    return made


@pytest.fixture(scope="session")
def data() -> Path:
    """The real data; tests that need them are skipped where they are not."""
    if not DATA.is_dir():
        pytest.skip(f"no real data at {DATA.name}: set LOOKALIKE_DATA to the folder that has them")
    return DATA


@pytest.fixture(scope="session")
def torchvision_operators() -> None:
    """timm and open_clip can be imported."""
    importlib.import_module("torchvision_shim")
