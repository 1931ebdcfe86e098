"""What every encoder offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

Vectors = NDArray[np.float32]
"""(n, dim) float32, each row of length 1."""


@runtime_checkable
class Encoder(Protocol):
    """Photos and texts → unit vectors of one space.

    ``name`` is what a user types, ``id`` that name with a digest of weights and preprocessing: vectors of different ids
    are never compared. ``size`` is (height, width) of the pixels that ``encode_photos`` takes.
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
