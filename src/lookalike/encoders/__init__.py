"""Encoders: photos, and perhaps texts, → unit vectors of one space. They know no products and no indexes."""

from __future__ import annotations

from pathlib import Path

from lookalike.encoders.base import Encoder
from lookalike.errors import UsageError

__all__ = ["Encoder", "load"]


def load(name: str = "builtin", threads: int = 0) -> Encoder:
    """The encoder of this name.

    Args:
        name: ``builtin``, ``fake``, ``colour-histogram``, a directory with an ``encoder.json``, a .tflite, what
            ``encoders.torch`` knows, ``minilm+NAME`` (``encoders.text``), or ``ensemble:A+B``.
        threads: cores for one call, 0 for all.

    Raises:
        UsageError: no such encoder, or an extra is missing.
        InputError: its files are missing or damaged, or cannot be fetched.
    """
    match name:
        case "fake":
            from lookalike.encoders.fake import FakeEncoder

            return FakeEncoder()
        case "builtin":
            from lookalike.encoders.onnx import OnnxEncoder

            return OnnxEncoder(Path(__file__).parent.parent / "builtin", threads, name="builtin")
        case "colour-histogram":
            from lookalike.encoders.baselines import ColourHistogram

            return ColourHistogram()
        case _ if name.startswith(("minilm+", "minilm@")):
            try:
                from lookalike.encoders import text
            except ImportError as error:
                raise UsageError(f"{name} wants {error.name or error}: pip install 'lookalike[torch]'") from error
            return text.by_name(name, threads)
        case _ if name.startswith("ensemble:"):
            from lookalike.encoders import ensemble

            return ensemble.by_name(name, threads)
        case _ if name.endswith(".tflite"):
            from lookalike.encoders.baselines import TFLiteFeatures

            return TFLiteFeatures(Path(name).resolve())
        case _ if Path(name, "encoder.json").is_file():
            from lookalike.encoders import ensemble
            from lookalike.encoders.onnx import OnnxEncoder

            directory = Path(name).resolve()
            return ensemble.fitted(directory, threads) or OnnxEncoder(directory, threads)
        case _:
            try:
                from lookalike.encoders.torch import by_name
            except ImportError as error:
                raise UsageError(
                    f"no encoder {name!r} without torch: pip install 'lookalike[torch]'; there are builtin, fake, "
                    "colour-histogram, any directory that holds an encoder.json, and .tflite files of photo features"
                ) from error
            return by_name(name, threads)
