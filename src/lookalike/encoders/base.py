"""What every encoder offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

Vectors = NDArray[np.float32]
"""(n, dim) float32, each row of length 1."""


@dataclass(frozen=True)
class Calibration:
    """What a cosine of this encoder means, for queries of a kind (``photo`` or ``text``); see ``evaluation.calibration``.

    ``curves`` has a rising list of (cosine, alike 0–100) for each kind; ``least`` the cosine of the best hit under which the
    catalog has nothing like what was asked.
    """

    curves: Mapping[str, Sequence[tuple[float, float]]]
    least: Mapping[str, float]

    def alike(self, kind: str, cosine: float) -> float | None:
        """0–100, or None for a kind that was not calibrated."""
        curve = self.curves.get(kind)
        if not curve:
            return None
        cosines, values = zip(*curve, strict=True)
        return float(np.interp(cosine, cosines, values))


@runtime_checkable
class Encoder(Protocol):
    """Photos and texts → unit vectors of one space.

    ``name`` is what a user types, ``id`` that name with a digest of weights and preprocessing: vectors of different ids
    are never compared. ``size`` is (height, width) of the pixels that ``encode_photos`` takes. An encoder may also
    have a ``calibration``; ``knows(word)``: whether that is a word at all, and no slip of the finger; and ``source``: where its
    weights came from (``hub`` and ``revision`` or ``file``, ``licence``).

    One that has a ``photo_dim`` less than ``dim`` compares texts with the words of a product, not with its photo: vectors of
    photos are 0 from there on, those of texts before, and a catalog's row is the sum of its photo's and its product's.
    """

    name: str
    id: str
    dim: int
    size: tuple[int, int]
    reads_text: bool

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """An upright RGB image → pixels (height, width, 3); safe to call from several threads."""
        ...

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """Prepared pixels (n, height, width, 3) → (n, dim)."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Texts → (n, dim). Raises UsageError where ``reads_text`` is false."""
        ...


def photo_dim(encoder: Encoder) -> int:
    """How many of a vector's values, from the first, are the photo's: all but where the encoder says otherwise."""
    return int(getattr(encoder, "photo_dim", encoder.dim))
