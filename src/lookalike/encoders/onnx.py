"""Encoders that are a directory of ONNX files: the built-in one, and whatever was trained and exported.

encoder.json     name, dim, input size and fit, file names: preprocessing is data and travels with the weights; calibration;
                 SHA-256 of the files; "trial": what is to come out of a drawn photo and of a few words
photo.onnx       uint8 (n, height, width, 3) → float32 (n, dim), unit length
text.onnx        int64 (n, length) → float32 (n, dim), unit length (optional)
tokenizer.json   of the tokenizers library (with text.onnx); where it says how to pad, that is done, and its special tokens
                 are added; else there are none, and ids are padded with 0

Where encoder.json says "describes", texts are compared with a product's words: dim is that of both nets together.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from lookalike import images
from lookalike.encoders.base import Calibration, Vectors
from lookalike.errors import InputError, UsageError

PART = 8
"""Photos of a larger batch that one core encodes at a time."""

SMALL = 64 * 1024 * 1024
"""Bytes of a net up to which a batch is shared out between cores, in place of each photo's arithmetic: that takes a third less
of them, but the net a second time in memory, and large nets gain nothing."""


class OnnxEncoder:
    """Runs by onnxruntime alone. Calls may come from several threads at once."""

    def __init__(self, directory: Path, threads: int = 0, name: str = ""):
        """Open ``directory``.

        Raises:
            InputError: a file is missing or damaged.
        """
        self.directory = directory
        try:
            config = json.loads((directory / "encoder.json").read_text("utf-8"))
            self.name = name or str(directory)
            self.dim, self.size = int(config["dim"]), (int(config["height"]), int(config["width"]))
            self.max_tokens = int(config.get("max_tokens", 0))
            self.reads_text = "text" in config
            self.calibration = Calibration(**config["calibration"]) if "calibration" in config else None
            files = [config["photo"], *([config["text"], config["tokenizer"]] if self.reads_text else [])]
            digest = hashlib.sha256(json.dumps([self.dim, self.size, self.max_tokens, config.get("fit")]).encode())
            for content in verified(directory, files, config):
                digest.update(content)
            code, same = digest.hexdigest()[:12], config.get("same_as", {})
            # These very files were found to compute what that encoder computes: vectors of either can be compared.
            self.id = same["id"] if same and same["digest"] == code else f"{config['name']}-{code}"
            self.fit = str(config.get("fit", "pad-white-bicubic"))
            self.source, self.training = config.get("source", {}), config.get("training", {})
            self._trial: dict[str, str] = config.get("trial", {})
            self.photo_file = directory / config["photo"]
            cores = threads or os.cpu_count() or 1
            self._photo = session(self.photo_file, cores)
            self._single = None
            if cores > 1 and self.photo_file.stat().st_size <= SMALL:
                self._single, self._cores = session(self.photo_file, 1), ThreadPoolExecutor(cores, "lookalike-encode")
            if self.reads_text:
                from tokenizers import Tokenizer

                self._text = session(directory / config["text"], 1)  # too small to be worth sharing between cores
                self._tokenizer = Tokenizer.from_file(str(directory / config["tokenizer"]))
                self._special = self._tokenizer.padding is not None
                if not self._special:
                    self._tokenizer.enable_truncation(self.max_tokens)
                    self._tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
            made = [s.get_outputs()[0].shape[-1] for s in [self._photo, *([self._text] if self.reads_text else [])]]
            self.describes = bool(config.get("describes"))
            self.photo_dim = made[0] if self.describes else self.dim
            if (sum(made) != self.dim) if self.describes else (made != [self.dim] * len(made)):
                raise ValueError(f"encoder.json says {self.dim} dimensions, its models give {made}")
        except Exception as error:  # tokenizers and onnxruntime raise bare ones
            raise InputError(
                f"{directory}: not a whole encoder ({str(error)[:300]}); install or export it again"
            ) from error

    def prepare(self, image: Image) -> NDArray[np.uint8]:
        """As ``Encoder.prepare``."""
        return images.fit(image, *self.size, self.fit)

    def encode_photos(self, pixels: NDArray[np.uint8]) -> Vectors:
        """As ``Encoder.encode_photos``."""
        single = self._single
        if single and len(pixels) > PART:
            parts = (pixels[n : n + PART] for n in range(0, len(pixels), PART))
            out: Vectors = np.concatenate(
                list(self._cores.map(lambda part: single.run(None, {"photos": part})[0], parts))
            )
        else:
            out = self._photo.run(None, {"photos": pixels})[0]
        return np.pad(out, ((0, 0), (0, self.dim - self.photo_dim))) if self.describes else out

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """As ``Encoder.encode_texts``; a text is cut after ``max_tokens`` word pieces."""
        if not self.reads_text:
            raise UsageError(f"the encoder {self.name} reads photos only; search by photo, or use another --encoder")
        if not len(texts):
            return np.empty((0, self.dim), np.float32)
        out: Vectors = self._text.run(None, {"ids": self.ids(texts)})[0]
        return np.pad(out, ((0, 0), (self.photo_dim, 0))) if self.describes else out

    def ids(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """What the text net reads: int64 (n, length)."""
        # What is cut off anyway need not be tokenized: a megabyte of text costs no more than a line.
        encoded = self._tokenizer.encode_batch([t[:2000] for t in texts], add_special_tokens=self._special)
        ids = np.array([e.ids for e in encoded], np.int64).reshape(len(texts), -1)
        return ids if ids.shape[1] else np.zeros((len(texts), 1), np.int64)

    def knows(self, word: str) -> bool:
        """Whether the vocabulary has the word whole."""
        return self.reads_text and sum(self._tokenizer.encode(word, add_special_tokens=False).attention_mask) == 1

    def trial(self) -> dict[str, str]:
        """What comes out of a drawn photo and of a few words, in 8 bits, base64: to be kept in ``encoder.json``."""
        made = {"photo": self.encode_photos(_drawn(*self.size)[None])[0]}
        if self.reads_text:
            made["text"] = self.encode_texts([WORDS])[0]
        scaled = {kind: np.rint(vector * (127 / np.abs(vector).max())).astype(np.int8) for kind, vector in made.items()}
        return {kind: base64.b64encode(vector.tobytes()).decode() for kind, vector in scaled.items()}

    def tried(self) -> dict[str, float]:
        """Cosines of ``trial`` here with what it was where the encoder was made; empty for one that does not say.

        The same net on another processor stays within 0.001 of 1.
        """
        here = self.trial() if self._trial else {}
        found = {}
        for kind, text in self._trial.items():
            a, b = (np.frombuffer(base64.b64decode(t), np.int8).astype(np.float64) for t in (text, here[kind]))
            found[kind] = float(a @ b / np.sqrt((a @ a) * (b @ b)))
        return found


WORDS = "a red dress with white dots"
"""Of the trial."""


def _drawn(height: int, width: int) -> NDArray[np.uint8]:
    """A red dress with a dark belt on white, by arithmetic alone, so that no release of any library draws it otherwise."""
    y, x = np.mgrid[0:height, 0:width]
    y, x = y / height, np.abs(2 * x - width + 1) / width
    out = np.full((height, width, 3), 255, np.uint8)
    out[(y > 0.08) & (y < 0.92) & (x < 0.2 + 0.5 * y)] = (190, 30, 44)
    out[(y > 0.44) & (y < 0.5) & (x < 0.2 + 0.5 * y)] = (30, 26, 28)
    return out


def verified(directory: Path, names: Sequence[str], config: Mapping[str, Any]) -> Iterator[bytes]:
    """The contents of an encoder's files, each compared with its SHA-256 in ``encoder.json``, where that has any.

    Raises:
        OSError: a file cannot be read.
        ValueError: it is not the one that belongs there, or lies elsewhere.
    """
    known = config.get("sha256")
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{name} is no name of a file beside encoder.json")
        content = (directory / name).read_bytes()
        if known is not None and hashlib.sha256(content).hexdigest() != known.get(name):
            raise ValueError(f"{name} is damaged or another one: its SHA-256 is not the one in encoder.json")
        yield content


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """Write ``encoder.json``, with the SHA-256 of the files that it names, which are there already."""
    names = [config[key] for key in ("photo", "text", "tokenizer", "head") if key in config]
    digests = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in names}
    (directory / "encoder.json").write_text(json.dumps({**config, "sha256": digests}, indent=1) + "\n", "utf-8")


def session(file: Path, threads: int) -> Any:
    """An ONNX file, ready to run on so many cores."""
    import onnxruntime as ort

    ort.disable_telemetry_events()  # on Windows the variable that lookalike/__init__.py sets does not count
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
