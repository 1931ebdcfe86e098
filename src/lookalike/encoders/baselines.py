"""Photo encoders without any training on fashion: what a better one must beat, in the same run."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike import images
from lookalike.encoders.base import Vectors
from lookalike.errors import InputError, UsageError


class _PhotosOnly:
    name: str
    reads_text = False
    size: tuple[int, int]

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """As ``Encoder.prepare``."""
        return images.fit(image, *self.size)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Always raises UsageError."""
        raise UsageError(f"the encoder {self.name} reads photos only; search by photo, or use another --encoder")


class ColourHistogram(_PhotosOnly):
    """An 8 × 4 × 4 histogram of hue, saturation and value, square-rooted (Hellinger), unit length."""

    name, id, dim, size = "colour-histogram", "colour-histogram-1", 128, (64, 48)

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """As ``Encoder.encode_photos``."""
        out = np.empty((len(pixels), self.dim), np.float32)
        for row, photo in zip(out, pixels, strict=True):
            hsv = np.asarray(Image.fromarray(photo).convert("HSV")).reshape(-1, 3)
            bins = (hsv[:, 0] >> 5).astype(int) * 16 + (hsv[:, 1] >> 6) * 4 + (hsv[:, 2] >> 6)
            row[:] = np.sqrt(np.bincount(bins, minlength=self.dim))
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), np.float32)


class TFLiteFeatures(_PhotosOnly):
    """A ``.tflite`` file that turns an 8-bit photo into features, such as TensorFlow's MobileNetV1 embedding extractor.

    Run by ``ai-edge-litert`` (extra train), on one core.
    """

    def __init__(self, file: Path):
        """Open ``file``.

        Raises:
            UsageError: ai-edge-litert is not installed.
            InputError: no file that it can run, or not photo → features in 8 bits.
        """
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise UsageError(f"{file}: .tflite files want ai-edge-litert: pip install 'lookalike[train]'") from error
        try:
            content = file.read_bytes()
            self._run: Any = Interpreter(model_content=content, num_threads=1)
            self._run.allocate_tensors()
            self._in, self._out = self._run.get_input_details()[0], self._run.get_output_details()[0]
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{file}: cannot be run as a .tflite model ({str(error)[:200]})") from error
        shape = [int(n) for n in self._in["shape"]]
        if len(shape) != 4 or shape[0] != 1 or shape[3] != 3 or self._in["dtype"] != np.uint8:
            raise InputError(f"{file}: takes {shape} of {self._in['dtype'].__name__}, not one 8-bit photo")
        self.name, self.size = str(file), (shape[1], shape[2])
        self.dim = int(np.prod(self._out["shape"]))
        self._one_at_a_time = threading.Lock()
        self.id = f"{file.stem}-{hashlib.sha256(content).hexdigest()[:12]}"

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """As ``Encoder.encode_photos``; features are centred by their zero point and brought to unit length."""
        scale, zero = self._out["quantization"]
        out = np.empty((len(pixels), self.dim), np.float32)
        with self._one_at_a_time:  # the interpreter keeps input and output within itself
            for row, photo in zip(out, pixels, strict=True):
                self._run.set_tensor(self._in["index"], photo[None])
                self._run.invoke()
                row[:] = (self._run.get_tensor(self._out["index"]).astype(np.float32).ravel() - zero) * (scale or 1.0)
        return np.asarray(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12), np.float32)
