"""Starting points that were learnt elsewhere: MobileNetV1 from its 8-bit file, word pieces from MiniLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import nn

from lookalike.errors import InputError
from lookalike.training.towers import Conv, PhotoTower


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
