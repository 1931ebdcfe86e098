"""Several photo encoders as one: their vectors side by side, or put together by a head that was fitted (``train ensemble``).

A fitted one is a directory:

encoder.json     name, dim, members (sub-directories, files, or names of encoders without weights), head and its SHA-256
head.onnx        float32 (n, sum of the members' dimensions), of unit length each → float32 (n, dim), unit length
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.encoders.base import Encoder, Vectors, photo_dim
from lookalike.encoders.onnx import session, verified
from lookalike.errors import InputError, UsageError


def by_name(name: str, threads: int = 0) -> Ensemble:
    """``ensemble:A+B``: equal weights, so that a cosine is the mean of the members'. Raises UsageError."""
    from lookalike import encoders

    pieces, names = name.removeprefix("ensemble:").split("+"), []
    while pieces:  # a path may have a plus in it
        count = next((n for n in range(len(pieces), 1, -1) if Path("+".join(pieces[:n])).exists()), 1)
        names.append("+".join(pieces[:count]))
        del pieces[:count]
    if len(names) < 2 or not all(names):
        raise UsageError(f"{name}: an ensemble has two members or more; write it as ensemble:A+B")
    return Ensemble([encoders.load(n, threads) for n in names])


def fitted(path: Path, threads: int = 0) -> Ensemble | None:
    """The fitted ensemble in the directory ``path``, None where it holds another encoder.

    Raises:
        InputError: a file is missing or damaged.
    """
    from lookalike import encoders

    try:
        config = json.loads((path / "encoder.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None  # whoever reads it next says what is wrong
    if "members" not in config:
        return None
    try:
        list(verified(path, [config["head"]], config))
        named = [str(path / m) if (path / m).exists() else str(m) for m in config["members"]]
        found = Ensemble([encoders.load(n, threads) for n in named], path / config["head"])
        if found.dim != config["dim"]:
            raise ValueError(f"encoder.json says {config['dim']} dimensions, its head gives {found.dim}")
    except UsageError:  # a member wants an extra
        raise
    except Exception as error:  # onnxruntime raises bare ones
        raise InputError(f"{path}: not a whole ensemble ({str(error)[:300]}); train it again") from error
    found.name, found.id = str(path), f"{config['name']}-{found.digest}"
    return found


class Ensemble:
    """Photo encoders as one. Pixels are those of all members, flat; texts are not read, since members' words differ."""

    reads_text = False

    def __init__(self, members: Sequence[Encoder], head: Path | None = None):
        """Put ``members`` together by ``head``, or side by side.

        Raises:
            UsageError: a member sets words beside its photos.
        """
        for member in members:
            if photo_dim(member) < member.dim:
                raise UsageError(f"{member.name}: reads titles, too; put the words outside: minilm+ensemble:A+B")
        self.members = list(members)
        self._head: Any = session(head, 1) if head else None
        self.name = "ensemble:" + "+".join(m.name for m in members)
        self.dim = int(self._head.get_outputs()[0].shape[1]) if self._head else sum(m.dim for m in members)
        self.size = max(m.size[0] for m in members), max(m.size[1] for m in members)
        self._shapes = [m.prepare(Image.new("RGB", (8, 8))).shape for m in members]
        self.digest = hashlib.sha256(
            json.dumps([m.id for m in members]).encode() + (head.read_bytes() if head else b"")
        ).hexdigest()[:12]
        self.id = f"ensemble-{self.digest}"
        sources = [getattr(m, "source", {}) for m in members]
        self.source = {f"member {n} {key}": value for n, s in enumerate(sources, 1) for key, value in s.items()}

    def prepare(self, image: Image.Image) -> NDArray[np.uint8]:
        """As ``Encoder.prepare``, but flat: (pixels of all members,)."""
        return np.concatenate([m.prepare(image).ravel() for m in self.members])

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """As ``Encoder.encode_photos``."""
        ends = np.cumsum([int(np.prod(s)) for s in self._shapes])[:-1]
        parts = np.split(pixels, ends, axis=1)
        features = np.concatenate(
            [m.encode_photos(p.reshape(-1, *s)) for m, p, s in zip(self.members, parts, self._shapes, strict=True)], 1
        )
        if self._head is None:
            return np.asarray(features / np.sqrt(len(self.members)), np.float32)
        out: Vectors = self._head.run(None, {"features": features.astype(np.float32)})[0]
        return out

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Always raises UsageError."""
        raise UsageError(
            f"the encoder {self.name} reads photos only; search by photo, or use --encoder minilm+{self.name}"
        )
