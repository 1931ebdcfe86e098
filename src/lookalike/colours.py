"""The garment on a photo and its colours: where it lies, its palette, and how near a palette is to a wanted colour.

Colours are compared in CIELAB (CIE 1976, white point D65), where equal distances look about equally different.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import UsageError

SIDE = 48
"""Pixels of the longer side of the copy that is looked at."""

PLAIN = 0.7
"""Share of the border that must have one colour for the background to count as plain."""

BACKGROUND = 9.0
"""Distance in CIELAB up to which a pixel is taken for the background's colour."""

PALETTE = 4
"""Colours kept of each photo."""

SAME = 14.0
"""Colours of one photo nearer than this are one."""

REACH = 20.0
"""Distance at which a colour counts 1/e of an equal one."""

LIGHTNESS = 0.6
"""Weight of a difference in lightness: folds and shadows change it, and hardly ever the hue."""


def to_lab(rgb: NDArray[np.generic]) -> NDArray[np.float32]:
    """SRGB 0 … 255 (…, 3) → CIELAB (…, 3) float32: L 0 … 100, a and b about −128 … 127."""
    linear = _LINEAR[rgb] if rgb.dtype == np.uint8 else _linear(np.asarray(rgb, np.float32))
    xyz = linear @ _XYZ
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 / 116) * xyz + np.float32(16 / 116))
    lab: NDArray[np.float32] = f @ _LAB
    lab[..., 0] -= 16
    return lab


def _linear(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    c = rgb / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)


BLOCK = 16_384
"""Photos at once."""

_LINEAR = _linear(np.arange(256, dtype=np.float32))
_XYZ = (
    np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T / [0.95047, 1.0, 1.08883]
).astype(np.float32)
_LAB = np.array([[0, 500, 0], [116, -500, 200], [0, 0, -200]], np.float32)


def parse(text: str) -> NDArray[np.uint8]:
    """``#rrggbb`` → (3,) uint8. Raises UsageError."""
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise UsageError(f"colour is {text[:40]!r}; it is written #rrggbb, like #c81e3a")
    return np.frombuffer(bytes.fromhex(text[1:]), np.uint8)


def shown(rgb: NDArray[np.generic]) -> str:
    """(3,) 0 … 255 → ``#rrggbb``."""
    return "#" + bytes(int(v) for v in rgb[:3]).hex()


def garment(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.bool_], bool]:
    """A small copy of the photo (h, w, 3), which of its pixels are the garment (h, w), and whether the background is plain.

    A pixel is background if nothing but the border's main colour lies between it and one side of the photo. Where there is
    no such colour, or next to nothing is left, the middle of the photo is taken for the garment.
    """
    scale = SIDE / max(image.size)
    size = (max(8, round(image.width * scale)), max(8, round(image.height * scale)))
    small = np.asarray(image.resize(size, Image.Resampling.BOX, reducing_gap=2.0))
    lab = to_lab(small)
    border = np.concatenate([lab[0], lab[-1], lab[1:-1, 0], lab[1:-1, -1]])
    centre = np.median(border, 0)
    h, w = small.shape[:2]
    if float((np.square(border - centre).sum(1) < BACKGROUND**2).mean()) >= PLAIN:
        near = np.square(lab - centre).sum(-1) < BACKGROUND**2
        run = np.logical_and.accumulate
        behind = run(near, 0) | run(near[::-1], 0)[::-1] | run(near, 1) | run(near[:, ::-1], 1)[:, ::-1]
        mask = ~behind
        if mask.mean() >= 0.02:
            return small, mask, True
    mask = np.zeros((h, w), np.bool_)
    mask[h // 6 : h - h // 6, w // 5 : w - w // 5] = True
    return small, mask, False


def box(image: Image.Image) -> tuple[float, float, float, float] | None:
    """Where the garment lies, x0, y0, x1, y1 in fractions with a small margin; None where the background is not plain."""
    _, mask, plain = garment(image)
    if not plain:
        return None
    h, w = mask.shape
    rows, columns = np.flatnonzero(mask.sum(1) >= 2), np.flatnonzero(mask.sum(0) >= 2)
    if not len(rows) or not len(columns):
        return None
    x0, x1, y0, y1 = columns[0] / w, (columns[-1] + 1) / w, rows[0] / h, (rows[-1] + 1) / h
    return max(0.0, x0 - 0.02), max(0.0, y0 - 0.02), min(1.0, x1 + 0.02), min(1.0, y1 + 0.02)


def palette(image: Image.Image) -> NDArray[np.uint8]:
    """The garment's main colours, most first: (``PALETTE``, 4) uint8, red, green, blue, and the share of 255; 0 where fewer."""
    small, mask, plain = garment(image)
    if plain:  # the outline is half background
        inner = mask.copy()
        inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
        mask = inner if inner.sum() >= 12 else mask
    pixels = small[mask]
    bins = (pixels >> 5).astype(np.intp) @ np.array([64, 8, 1])  # cubes of 32 values a side, then merged where alike
    counts = np.bincount(bins, minlength=512)
    order = np.argsort(-counts, kind="stable")[:12]
    order = order[counts[order] > 0]
    sums = np.stack([np.bincount(bins, pixels[:, c], 512)[order] for c in range(3)], 1)
    means, weights = (sums / counts[order, None]).astype(np.float32), counts[order] / len(pixels)
    lab = to_lab(means)
    left, out = np.ones(len(order), np.bool_), []
    for n in range(len(order)):  # most frequent first, each with all that looks like it
        if left[n]:
            alike = left & (np.square(lab - lab[n]).sum(1) < SAME**2)
            left &= ~alike
            total = float(weights[alike].sum())
            out.append((total, weights[alike] @ means[alike] / total))
    out.sort(key=lambda c: -c[0])
    found = np.zeros((PALETTE, 4), np.uint8)
    for n, (share, mean) in enumerate(out[:PALETTE]):
        found[n] = [*np.rint(mean), max(1, round(255 * share))]
    return found


class Wardrobe:
    """The palettes of a catalog, ready to be compared with a colour."""

    def __init__(self, palettes: NDArray[np.uint8]):
        """``palettes`` (photos, colours, 4). Kept as planes (L, a, b), each (colours, photos): sums go along the photos."""
        self.lab = np.empty((3, palettes.shape[1], len(palettes)), np.float32)
        for start in range(0, len(palettes), BLOCK):
            part = palettes[start : start + BLOCK, :, :3]
            self.lab[:, :, start : start + BLOCK] = np.moveaxis(to_lab(part), (0, 1, 2), (2, 1, 0))
        self.lab[0] *= LIGHTNESS
        self.share = np.ascontiguousarray(palettes[:, :, 3].T, np.float32) / 255

    def closeness(self, wanted: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How much of each photo's garment has the ``wanted`` colour (3,), 0 … 1: (photos,)."""
        target = to_lab(wanted) * np.array([LIGHTNESS, 1, 1], np.float32)
        found = np.zeros(self.share.shape[1], np.float32)
        for start in range(0, len(found), BLOCK):  # which stays in the processor's cache
            part = slice(start, start + BLOCK)
            far = sum(np.square(plane[:, part] - value) for plane, value in zip(self.lab, target, strict=True))
            found[part] = (np.exp(far / np.float32(-(REACH**2))) * self.share[:, part]).sum(0)
        return found
