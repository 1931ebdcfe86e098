"""Starting points: any encoder's photo net, MobileNetV1 from its 8-bit file, a net without weights; word pieces from MiniLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn

from lookalike.encoders import torch as encoders
from lookalike.encoders.torch import Backbone, Preprocess, digest_of
from lookalike.errors import InputError
from lookalike.training.towers import WIDTHS, Conv, PhotoTower, SimpleCNN, Trunk

MOBILENET = Preprocess((128, 96), (128 / 255,) * 3, (128 / 255,) * 3)
"""What ``PhotoTower`` takes: −1 … 1."""


def start(name: str, size: tuple[int, int] | None = None) -> Backbone:
    """A photo net to begin a training with.

    Args:
        name: ``simple-cnn`` (no weights), MobileNetV1's ``.tflite``, ``builtin`` or the directory of another encoder that was
            trained here, or what ``encoders.torch.backbone`` knows.
        size: (height, width) other than the net's own.

    Raises:
        UsageError: no such net, or it takes no other size.
        InputError: its weights are missing or damaged, or cannot be fetched.
    """
    if name == "simple-cnn":
        found = Backbone(SimpleCNN(), 256, Preprocess((128, 96)), name, "scratch")
    elif name.endswith(".tflite") and "@" not in name:
        found = mobilenet(Path(name).resolve())
    elif name == "builtin" or Path(name, "encoder.json").is_file():
        found = _exported(name)
    else:
        return encoders.backbone(name, size)
    return found if size is None else replace(found, preprocess=replace(found.preprocess, size=size))


def mobilenet(file: Path, norm: bool = False) -> Backbone:
    """MobileNetV1's convolutions from its 8-bit file: 1024 features.

    Args:
        file: as ``load_mobilenet`` takes it.
        norm: with batch normalisation, which computes the same only after ``towers.calibrate`` saw some photos; without, it
            is folded into the weights, and training and evaluation compute the same from the start.

    Raises:
        InputError: see ``load_mobilenet``.
    """
    tower = PhotoTower(1, frozen=0 if norm else len(WIDTHS))
    load_mobilenet(tower, file)
    return Backbone(Trunk(tower.layers), 1024, MOBILENET, "mobilenet-v1", digest_of(file), {"file": str(file)})


def _exported(name: str) -> Backbone:
    """The convolutions of the built-in model, or of an encoder directory that has the same."""
    from lookalike.encoders import load
    from lookalike.encoders.onnx import OnnxEncoder
    from lookalike.training.adapt import load_trunk

    encoder = load(name)
    if not isinstance(encoder, OnnxEncoder):
        raise InputError(f"{name}: not one photo net; begin with one of those that it is made of")
    layers = load_trunk(encoder.directory)
    last = layers[-1]
    assert isinstance(last, Conv)
    digest, preprocess = encoder.id.rpartition("-")[2], replace(MOBILENET, size=encoder.size)
    label = encoder.id.rpartition("-")[0]
    return Backbone(Trunk(layers), last.conv.out_channels, preprocess, label, digest, {"file": str(encoder.directory)})


def load_mobilenet(tower: PhotoTower, file: Path) -> None:
    """Fill ``tower`` from TensorFlow's quantised MobileNetV1 (``….tflite``, Apache-2.0), dequantised.

    Raises:
        InputError: the file is not a MobileNetV1 of this width.
    """
    from ai_edge_litert.interpreter import Interpreter

    if not file.is_file():
        raise InputError(f"{file}: no such file; give --mobilenet the mobilenet_v1_1.0_224_quant… .tflite file")
    interpreter = Interpreter(str(file))
    convolutions = [op for op in interpreter._get_ops_details() if "CONV_2D" in op["op_name"]]
    details = {d["index"]: d for d in interpreter.get_tensor_details()}

    def real(index: int) -> NDArray[np.float32]:
        scale, zero = details[index]["quantization"]
        return np.asarray((interpreter.get_tensor(index).astype(np.float32) - zero) * scale, np.float32)

    # Newer exports end in a 1 × 1 convolution, the classifier: not wanted here.
    for layer, op in zip(tower.layers, convolutions, strict=False):
        _, weight, bias = op["inputs"]
        w = real(int(weight))
        w = w.transpose(3, 0, 1, 2) if op["op_name"].startswith("DEPTHWISE") else w.transpose(0, 3, 1, 2)
        assert isinstance(layer, Conv)
        conv, target = layer.conv, layer.norm if isinstance(layer.norm, nn.BatchNorm2d) else layer.conv
        assert target.bias is not None
        if tuple(conv.weight.shape) != w.shape:
            raise InputError(f"{file}: a layer of shape {w.shape} where {tuple(conv.weight.shape)} belongs")
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(np.ascontiguousarray(w)))
            target.bias.copy_(torch.from_numpy(real(int(bias))))


def word_piece_table(minilm: str, size: int = 192) -> tuple[NDArray[np.float32], list[str]]:
    """What sentence-transformers' MiniLM (a hub id or a directory) says of each word piece alone.

    As model2vec does (https://github.com/MinishLab/model2vec): each piece is a sentence of its own; then PCA, and a
    weight that grows with the piece's rank, since frequent ones say little. Pieces outside Latin script are dropped.

    Returns:
        table (pieces, size) float32 and the pieces in order; row 0 is padding, row 1 the unknown piece.
    """
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(minilm, device="cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    pieces = [p for p, _ in vocabulary if p not in special and not p.startswith("[unused") and _latin(p)]
    plain = [p.removeprefix("##") for p in pieces]
    vectors = model.encode(plain, batch_size=512, show_progress_bar=False, convert_to_numpy=True).astype(np.float32)
    centred = vectors - vectors.mean(0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    table = centred @ axes[:, ::-1][:, :size]
    ranks = dict(vocabulary)
    rank = np.array([ranks[p] for p in pieces], np.float32)
    table *= np.log1p(rank)[:, None] / np.log1p(rank).mean()
    table /= np.sqrt((table**2).sum(1).mean())
    return np.vstack([np.zeros((2, size), np.float32), table.astype(np.float32)]), ["[PAD]", "[UNK]", *pieces]


def tokenizer_of(pieces: list[str]) -> Tokenizer:
    """The word-piece tokenizer (as BERT's, lower case) over ``pieces``; adds no special tokens."""
    tokenizer = Tokenizer(WordPiece({p: n for n, p in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def _latin(piece: str) -> bool:
    return all(ord(c) < 0x250 for c in piece)
