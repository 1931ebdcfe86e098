"""A deterministic encoder without weights, for tests and for writing applications against the API."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from lookalike import images
from lookalike.encoders.base import Vectors

COLOURS = {
    "black": (20, 20, 20), "white": (245, 245, 245), "grey": (128, 128, 128), "red": (200, 30, 40),
    "pink": (240, 150, 180), "orange": (240, 140, 30), "yellow": (240, 220, 60), "green": (40, 140, 60),
    "blue": (40, 80, 190), "purple": (120, 50, 150), "brown": (120, 75, 40), "beige": (220, 200, 165),
}  # fmt: skip


class FakeEncoder:
    """Photos are the colours of a 4 × 4 grid, texts are hashed words; a colour's word lies near photos of that colour.

    It finds equal and similarly coloured photos and nothing more: never use it to judge search quality.
    """

    name = "fake"
    id = "fake-1"
    dim = 64
    size = (16, 16)
    reads_text = True

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """As ``Encoder.prepare``."""
        return images.fit(image, *self.size)

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """Mean colour of each of 4 × 4 cells (48 values), zeros in the 16 places of words."""
        cells = pixels.astype(np.float32).reshape(len(pixels), 4, 4, 4, 4, 3).mean((2, 4)) / 255 - 0.5
        return _unit(np.hstack([cells.reshape(len(pixels), 48), np.full((len(pixels), 16), 1e-3, np.float32)]))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Colour words as photos of that colour, other words as hashes in the 16 places of words."""
        out = np.full((len(texts), 64), 1e-3, np.float32)
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split():
                if word in COLOURS:
                    row[:48] += np.tile(np.array(COLOURS[word], np.float32) / 255 - 0.5, 16)
                else:
                    digest = hashlib.sha256(word.encode()).digest()[:16]
                    row[48:] += np.frombuffer(digest, np.uint8).astype(np.float32) / 255 - 0.5
        return _unit(out)


def _unit(vectors: NDArray[np.float32]) -> Vectors:
    out: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return out
