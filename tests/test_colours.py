from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lookalike import colours
from lookalike.errors import UsageError


def garment(fill: tuple[int, int, int], box: tuple[int, int, int, int], ground: str = "white") -> Image.Image:
    image = Image.new("RGB", (120, 160), ground)
    ImageDraw.Draw(image).rectangle(box, fill)
    return image


def test_cielab_is_that_of_the_standard():
    found = colours.to_lab(np.array([[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]], np.uint8))
    wanted = [[100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [0, 0, 0]]
    assert np.allclose(found, wanted, atol=0.1)
    assert np.allclose(colours.to_lab(np.array([255.0, 0, 0])), wanted[1], atol=0.1)  # floats as bytes


def test_the_garment_is_told_from_a_plain_background():
    x0, y0, x1, y1 = colours.box(garment((200, 30, 40), (30, 40, 89, 139))) or ()
    assert abs(x0 - 0.25) < 0.04 and abs(x1 - 0.75) < 0.04 and abs(y0 - 0.25) < 0.04 and abs(y1 - 0.875) < 0.04
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (160, 120, 3), np.uint8))
    assert colours.box(noise) is None
    assert colours.box(Image.new("RGB", (3, 900), "white")) is None  # nothing on it, and hardly a photo


def test_the_palette_is_the_garments_not_the_backgrounds():
    image = garment((200, 30, 40), (30, 40, 89, 139))
    ImageDraw.Draw(image).rectangle((30, 40, 89, 64), (20, 40, 160))
    found = colours.palette(image)
    assert found.shape == (colours.PALETTE, 4)
    assert [colours.shown(c) for c in found[:2]] == ["#c81e28", "#1428a0"]
    assert 0.6 < found[0, 3] / 255 < 0.85
    white = colours.palette(garment((255, 255, 255), (30, 40, 89, 139)))  # white on white: the middle of the photo
    assert colours.shown(white[0]) == "#ffffff"


def test_a_wanted_colour_prefers_what_has_most_of_it():
    palettes = np.stack(
        [colours.palette(garment(c, (30, 40, 89, 139))) for c in [(200, 30, 40), (170, 60, 60), (20, 40, 160)]]
    )
    near = colours.Wardrobe(palettes).closeness(colours.parse("#c81e28"))
    assert near[0] == pytest.approx(1, abs=0.02)
    assert near[0] > near[1] > near[2] and near[2] < 0.01


@pytest.mark.parametrize("text", ["red", "#12345", "#1234567", "12345g", "#12345g"])
def test_a_colour_is_written_as_in_html(text: str):
    with pytest.raises(UsageError, match="#rrggbb"):
        colours.parse(text)
