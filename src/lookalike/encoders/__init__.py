"""Encoders: photos, and perhaps texts, → unit vectors of one space. They know no products and no indexes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lookalike.encoders.base import Encoder
from lookalike.errors import InputError, UsageError

__all__ = ["Encoder", "known", "load"]

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".npz", ".h5", ".keras")
"""Suffixes of weights that can run code when they are read, or of none that is read here."""

ON_HUB = (
    ("resnet50", "timm", "timm/resnet50.a1_in1k", 2048, 224, 102, "Apache-2.0"),
    ("vgg16", "timm", "timm/vgg16.tv_in1k", 512, 224, 553, "BSD-3-Clause"),
    ("inception-v3", "timm", "timm/inception_v3.tv_in1k", 2048, 299, 109, "Apache-2.0"),
    ("xception", "timm", "timm/legacy_xception.tf_in1k", 2048, 299, 92, "Apache-2.0"),
    ("mobilenetv3", "timm", "timm/mobilenetv3_large_100.ra_in1k", 1280, 224, 22, "Apache-2.0"),
    ("clip-vit-b-32", "open_clip", "timm/vit_base_patch32_clip_224.openai", 512, 224, 605, "MIT"),
    ("fashion-clip", "open_clip", "patrickjohncyh/fashion-clip", 512, 224, 605, "MIT"),
    ("marqo-fashion-clip", "open_clip", "Marqo/marqo-fashionCLIP", 512, 224, 599, "Apache-2.0"),
    ("fashion-siglip", "open_clip", "Marqo/marqo-fashionSigLIP", 768, 224, 813, "Apache-2.0"),
)
"""Encoders whose weights are downloaded once: name, library, repository, dim, side of the photo, MB, licence."""


def known() -> list[dict[str, Any]]:
    """What there is: name, id (where no download is needed to know it), dim, size, reads, megabytes, licence, ready, get.

    No library is imported and nothing fetched for it.
    """
    ours = sum(file.stat().st_size for file in (Path(__file__).parent.parent / "builtin").iterdir()) // 1_000_000
    rows: list[dict[str, Any]] = []
    for name in ("builtin", "fake", "colour-histogram"):
        made = load(name)
        reads = "photos and texts" if made.reads_text else "photos"
        row: dict[str, Any] = {"name": name, "id": made.id, "dim": made.dim, "size": list(made.size), "reads": reads}
        rows.append(
            {**row, "megabytes": ours if name == "builtin" else 0, "licence": "Apache-2.0", "ready": True, "get": ""}
        )
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    for name, library, hub, dim, side, megabytes, licence in ON_HUB:
        reads = "photos and texts" if library == "open_clip" else "photos"
        fetched = any((cache / f"models--{hub.replace('/', '--')}" / "snapshots").glob("*/*.safetensors"))
        get = "" if fetched else f"{megabytes} MB from https://huggingface.co/{hub}, on first use"
        installed = find_spec(library) is not None
        if not installed:
            get = "; then ".join(["pip install 'lookalike[torch]'", *([get] if get else [])])
        row = {"name": name, "id": None, "dim": dim, "size": [side, side], "reads": reads}
        rows.append({**row, "megabytes": megabytes, "licence": licence, "ready": installed and fetched, "get": get})
    return rows


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
        case _ if "@" not in name and Path(name).suffix.lower() in PICKLED:
            raise InputError(
                f"{name}: weights of this kind can run code when they are read, and are not; give them as .safetensors behind "
                "the name of their net (resnet50@FILE), or an exported directory (lookalike export-encoder)"
            )
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
