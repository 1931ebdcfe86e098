"""Towers → the directory that ``OnnxEncoder`` reads: ONNX, 8-bit where it holds, tokenizer and preprocessing beside it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookalike.encoders.onnx import OnnxEncoder
from lookalike.evaluation import calibration
from lookalike.training.data import thesaurus
from lookalike.training.towers import MAX_TOKENS, Conv, PhotoTower, TextTower

SPARED = 4
"""Pointwise convolutions that stay float, from the first on: of 13, with 2% of their weights."""


class _ShippedText(nn.Module):
    """The text tower with its word table in 8 bits, a scale per word piece."""

    def __init__(self, tower: TextTower):
        super().__init__()
        assert isinstance(tower.table, Tensor)
        table = tower.table + tower.delta.detach()
        scale = table.abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
        self.register_buffer("words", (table / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        """As ``TextTower.forward``."""
        assert isinstance(self.words, Tensor)
        assert isinstance(self.scale, Tensor)
        return self.tower.read(self.words[ids].float() * self.scale[ids], (ids != 0).float().unsqueeze(-1))


def export(
    photo: PhotoTower, text: TextTower, tokenizer: Tokenizer, size: tuple[int, int], calibration: NDArray[np.uint8],
    directory: Path, name: str, quantise: bool = True,
) -> None:  # fmt: skip
    """Write an encoder directory.

    Args:
        photo: the trained photo tower, on the CPU.
        text: the trained text tower, on the CPU.
        tokenizer: of the text tower.
        size: (height, width) of the photos.
        calibration: prepared photos uint8 (n, height, width, 3) from the training split: ranges of the activations.
        directory: made where it does not exist.
        name: becomes part of the encoder's id.
        quantise: 8-bit convolutions; float32 ones otherwise, to measure what quantisation costs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    whole, final = directory / "photo.float.onnx", directory / "photo.onnx"
    tower = _folded(photo)
    _to_onnx(tower, torch.from_numpy(calibration[:2]), "photos", whole, {0: "n"})
    if quantise:
        _quantise(whole, final, calibration)
        whole.unlink()
    else:
        whole.replace(final)
    _to_onnx(
        _ShippedText(copy.deepcopy(text).eval()),
        torch.ones(2, 5, dtype=torch.long),
        "ids",
        directory / "text.onnx",
        {0: "n", 1: "length"},
    )
    for file in (final, directory / "text.onnx"):
        _halve_matrices(file)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    config = {
        "name": name,
        "dim": photo.project.out_features,
        "height": size[0],
        "width": size[1],
        "fit": "pad-white-bicubic",
    }
    config |= {"photo": "photo.onnx", "text": "text.onnx", "tokenizer": "tokenizer.json", "max_tokens": MAX_TOKENS}
    (directory / "encoder.json").write_text(json.dumps(config, indent=2) + "\n")


def calibrate(
    directory: Path, photos: NDArray[np.uint8], attributes: NDArray[Any], asked: NDArray[np.bool_] | None = None
) -> None:
    """Write what a cosine means into ``encoder.json``, measured through the very files that ship.

    Args:
        directory: as written by ``export``.
        photos: prepared, one of each product, uint8 (n, height, width, 3).
        attributes: type, colour and gender of each (n, up to 3), "" where missing.
        asked: which of them are queries (n,), those that nothing was trained on; all by default.
    """
    encoder = OnnxEncoder(directory)
    vectors = np.vstack([encoder.encode_photos(part) for part in np.array_split(photos, len(photos) // 64 + 1)])
    phrases = sorted({phrase for others in thesaurus().values() for phrase in others})[::5]
    found = calibration.fit(vectors, attributes, encoder, asked, phrases)
    file = directory / "encoder.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "calibration": asdict(found)}, indent=1) + "\n")


def _folded(photo: PhotoTower) -> PhotoTower:
    """A copy in which batch normalisation is part of the convolutions."""
    tower = copy.deepcopy(photo).eval()
    for layer in tower.layers:
        assert isinstance(layer, Conv)
        if isinstance(layer.norm, nn.BatchNorm2d):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.norm = nn.Identity()
    return tower


def _to_onnx(net: nn.Module, example: Tensor, name: str, file: Path, dynamic: dict[int, str]) -> None:
    axes = {n: torch.export.Dim(label, min=1, max=4096 if label == "n" else MAX_TOKENS) for n, label in dynamic.items()}
    # It tells of every torchvision operator that it could not register; none is used.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter, about its own internals
        program = torch.onnx.export(
            net.eval(), (example,), input_names=[name], output_names=["vectors"], dynamic_shapes=(axes,), dynamo=True,
            opset_version=20, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    model.ir_version = min(model.ir_version, 10)  # what onnxruntime 1.20 reads
    onnx.save(model, file)


def _quantise(source: Path, target: Path, calibration: NDArray[np.uint8]) -> None:
    """Static 8-bit convolutions, a scale per channel.

    Weights are unsigned: on processors without VNNI the sum of two products with signed ones overflows 16 bits, which cost a
    cosine of 0.11. The first convolution, the depthwise ones and the first ``SPARED`` pointwise ones stay float: they have few
    weights, and make nearly all of the loss. Ranges are those that all but 1 in 10,000 values keep to (docs/lab-log.md).
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )  # fmt: skip
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            size = min(32, len(calibration))  # equal ones: the calibrator stacks what comes of them
            self.batches: Iterator[Any] = iter(
                np.split(calibration[: len(calibration) // size * size], len(calibration) // size)
            )

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"photos": batch}

    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    convolutions = [node for node in onnx.load(prepared).graph.node if node.op_type == "Conv"]
    pointwise = [n for n in convolutions[1:] if not any(a.name == "group" and a.i > 1 for a in n.attribute)]
    taken = {node.name for node in pointwise[SPARED:]}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its histograms
        quantize_static(
            str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
            nodes_to_exclude=[n.name for n in convolutions if n.name not in taken], per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.Percentile, extra_options={"CalibPercentile": 99.99},
        )  # fmt: skip
    prepared.unlink()


def _halve_matrices(file: Path) -> None:
    """Keep large float matrices as float16 with a cast behind them: half the bytes, cosine unchanged to 1e-6."""
    model = onnx.load(file)
    graph = model.graph
    for n, tensor in enumerate(list(graph.initializer)):
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= 4096:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            name = tensor.name  # the tensor itself is overwritten next
            graph.initializer[n].CopyFrom(numpy_helper.from_array(values, f"{name}.half"))
            graph.node.insert(0, helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    onnx.save(model, file)
