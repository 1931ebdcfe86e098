"""Nets → the directory that ``OnnxEncoder`` reads: ONNX, tokenizer and preprocessing beside it; the built-in's in 8 bits."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lookalike import demo, images
from lookalike.encoders import load
from lookalike.encoders.ensemble import Ensemble
from lookalike.encoders.onnx import OnnxEncoder, write_config
from lookalike.encoders.text import TextBeside
from lookalike.encoders.torch import Preprocess, TorchEncoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import calibration
from lookalike.training.data import thesaurus
from lookalike.training.towers import MAX_TOKENS, Conv, PhotoTower, TextTower

SPARED = 4
"""Pointwise convolutions that stay float, from the first on: of 13, with 2% of their weights."""


PARITY = 0.9999
"""The least cosine of a vector by ONNX and the same by torch, on drawn photos, noise and texts."""

LARGEST = 2_000_000_000
"""Bytes of one ONNX file: protobuf's limit is 2³¹. Larger nets would need files beside it, which is not supported."""

TEXTS = (
    "red shirt",
    "",
    "a long blue dress with white dots, a belt and buttons",
    "T-Shirt 100% cotton, size 42/44",
    "été 🙂",
)


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
    _to_onnx(_folded(photo), torch.from_numpy(calibration[:2]), "photos", whole, {0: "n"})
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
        MAX_TOKENS,
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
    write_config(directory, config)


def write_encoder(
    directory: Path, name: str, photo: nn.Module | Path, preprocess: Preprocess, dim: int, *, text: nn.Module | None = None,
    tokenizer: Tokenizer | None = None, training: Mapping[str, Any] | None = None, source: Mapping[str, str] | None = None,
    same_as: str = "", more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write any net as an encoder directory, float32, once it was seen to compute what torch computes.

    Args:
        directory: new or empty.
        name: becomes part of the encoder's id.
        photo: pixels uint8 (n, height, width, 3) → unit vectors (n, dim), as ``PhotoNet``; is moved to the CPU. Or an ONNX file
            that is this already.
        preprocess: how ``photo`` wants its pixels.
        dim: of its vectors.
        text: token ids int64 (n, length) → unit vectors; is moved to the CPU.
        tokenizer: of ``text``. One that pads does so when serving, too, and adds its special tokens; of one that does not, ids
            are padded with 0 to the longest of a call.
        training: what a report may want to know: ``recipe``, ``seconds`` …
        source: where the weights came from: ``hub`` and ``revision`` or ``file``, ``licence``.
        same_as: id of the encoder that this is an export of: it takes its place in catalogs.
        more: further entries of ``encoder.json``.

    Returns:
        ``{"id", "dim", "photos", "texts", "bytes"}``: the least cosine of photos and of texts beside torch's, and the size.

    Raises:
        InputError: ``directory`` is not empty, a net is too large or cannot be exported, or gives other vectors than in torch;
            nothing is left behind then.
    """
    _must_be_new(directory)
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for net in (photo, text):
        if isinstance(net, nn.Module):
            net.cpu().eval()
    tensors = photo.parameters() if isinstance(photo, nn.Module) else ()
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if size > LARGEST:
        raise InputError(f"{name}: {size / 1e9:.1f} GB of weights; an ONNX file holds {LARGEST / 1e9:.0f}")
    pixels = torch.from_numpy(_trial(preprocess))
    config = {
        "name": name,
        "dim": dim,
        "height": preprocess.size[0],
        "width": preprocess.size[1],
        "fit": preprocess.fit,
    }
    config |= {"photo": "photo.onnx"}
    source = {key: Path(value).name if key == "file" else value for key, value in (source or {}).items()}
    try:
        part.mkdir(parents=True)
        try:
            if isinstance(photo, Path):
                shutil.copy(photo, part / "photo.onnx")
            else:
                _to_onnx(_folded(photo), pixels[:2], "photos", part / "photo.onnx", {0: "n"})
            if text is not None and tokenizer is not None:
                length = (tokenizer.truncation or {"max_length": MAX_TOKENS})["max_length"]
                fixed = tokenizer.padding is not None and tokenizer.padding["length"] is not None
                axes = {0: "n"} if fixed else {0: "n", 1: "length"}
                example = torch.ones(2, length if fixed else 5, dtype=torch.long)
                _to_onnx(text, example, "ids", part / "text.onnx", axes, length)
                tokenizer.save(str(part / "tokenizer.json"), pretty=False)
                config |= {"text": "text.onnx", "tokenizer": "tokenizer.json", "max_tokens": length}
        except Exception as error:  # the exporter raises whatever it stumbles over
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{name}: cannot be exported to ONNX ({type(error).__name__}: {reason})") from error
        config |= {key: dict(value) for key, value in (("training", training), ("source", source)) if value}
        config |= more or {}
        write_config(part, config)
        made = OnnxEncoder(part)
        config["trial"] = made.trial()
        found: dict[str, float] = {}
        if isinstance(photo, nn.Module):
            found["photos"] = _parity(photo(pixels), made.encode_photos(pixels.numpy())[:, : made.photo_dim], name)
        if text is not None and tokenizer is not None:
            vectors = made.encode_texts(TEXTS)[:, made.photo_dim if made.describes else 0 :]
            found["texts"] = _parity(text(torch.from_numpy(made.ids(TEXTS))), vectors, name)
        if same_as:  # the digest says that these files, and no others, were compared with it
            config["same_as"] = {"id": same_as, "digest": made.id.rpartition("-")[2]}
        write_config(part, config)
        if directory.exists():
            directory.rmdir()
        part.rename(directory)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    size = sum(file.stat().st_size for file in directory.iterdir())
    return {"id": OnnxEncoder(directory).id, "dim": dim, **found, "bytes": size}


def export_encoder(name: str, directory: Path) -> dict[str, Any]:
    """``lookalike export-encoder``: any encoder as a directory that needs no torch.

    Returns:
        as ``write_encoder``, with ``copied``: it was such a directory already, and its files were copied.

    Raises:
        UsageError: no such encoder, or one that needs neither torch nor files.
        InputError: see ``write_encoder``.
    """
    _must_be_new(directory)
    encoder = load(name)
    if isinstance(encoder, OnnxEncoder):
        shutil.copytree(encoder.directory, directory, dirs_exist_ok=True)
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        return {"id": encoder.id, "dim": encoder.dim, "bytes": size, "copied": True}
    if isinstance(encoder, TextBeside):
        return {**_beside(encoder, directory), "copied": False}
    if isinstance(encoder, Ensemble) and name.startswith("ensemble:"):
        from lookalike.training import ensemble

        return ensemble.export_plain(encoder, directory)
    if not isinstance(encoder, TorchEncoder):
        raise UsageError(f"{name}: runs without torch as it is; there is nothing to export")
    found = encoder.backbone
    made = write_encoder(
        directory, found.name, encoder.photo, found.preprocess, found.dim, text=found.text, tokenizer=found.tokenizer,
        source=found.source, same_as=encoder.id,
    )  # fmt: skip
    return {**made, "copied": False}


def _beside(encoder: TextBeside, directory: Path) -> dict[str, Any]:
    """Export ``minilm+NAME``. Raises as ``export_encoder``."""
    photo, text = encoder.photo, encoder.text
    net: nn.Module | Path
    if isinstance(photo, TorchEncoder):
        net, preprocess = photo.photo, photo.preprocess
    elif isinstance(photo, OnnxEncoder):
        net, preprocess = photo.photo_file, Preprocess(photo.size, fit=photo.fit)
    else:
        raise UsageError(f"{photo.name}: is no single ONNX file, and cannot become one; words go beside those that can")
    return write_encoder(
        directory, encoder.id.rpartition("-")[0], net, preprocess, encoder.dim, text=text.net, tokenizer=text.tokenizer,
        source=encoder.source, same_as=encoder.id, more={"describes": True},
    )  # fmt: skip


def _must_be_new(directory: Path) -> None:
    """Raise InputError where ``directory`` has anything in it."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise InputError(f"{directory}: not an empty or new directory; give another")


def _trial(preprocess: Preprocess) -> NDArray[np.uint8]:
    """Eight photos to compare with, (8, height, width, 3): garments as the demo draws them, and noise."""
    garments = []
    for n, kind in enumerate(demo.KINDS[:5]):
        drawn = demo.photographs(Random(n), kind, "Women", tuple(demo.COLOURS.values())[3 * n], "Plain")[0]
        garments.append(images.fit(drawn, *preprocess.size, preprocess.fit))
    noise = np.random.default_rng(0).integers(0, 256, (3, *preprocess.size, 3), np.uint8)
    return np.concatenate([np.stack(garments), noise])


def _parity(torchs: Tensor, ours: NDArray[np.float32], name: str) -> float:
    """The least cosine of two sets of vectors, row by row. Raises InputError where it is below ``PARITY``."""
    least = float((torchs.detach().numpy() * ours).sum(1).min())
    if not least >= PARITY:  # NaN, too
        raise InputError(
            f"{name}: in ONNX it gives other vectors than in torch (cosine {least:.5f} where at least {PARITY} is wanted); "
            "nothing was written"
        )
    return round(least, 7)


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
    config = json.loads((directory / "encoder.json").read_text("utf-8"))
    write_config(directory, {**config, "calibration": asdict(found), "trial": encoder.trial()})


def _folded(net: nn.Module) -> nn.Module:
    """``net``, in a copy where its ``Conv`` layers have batch normalisation: there it becomes part of the convolutions."""
    if not any(isinstance(layer, Conv) and isinstance(layer.norm, nn.BatchNorm2d) for layer in net.modules()):
        return net
    net = copy.deepcopy(net).eval()
    for layer in net.modules():
        if isinstance(layer, Conv) and isinstance(layer.norm, nn.BatchNorm2d):
            layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)
            layer.norm = nn.Identity()
    return net


def _to_onnx(
    net: nn.Module, example: Tensor, name: str, file: Path, dynamic: dict[int, str], longest: int = MAX_TOKENS
) -> None:
    axes = {n: torch.export.Dim(label, min=1, max=4096 if label == "n" else longest) for n, label in dynamic.items()}
    # It tells of every torchvision operator that it could not register; none is used.
    for noisy in ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter, about its own internals
        program = torch.onnx.export(
            net.eval(), (example,), input_names=[name], output_names=["vectors"], dynamic_shapes=(axes,), dynamo=True,
            opset_version=20, verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    model.ir_version = min(model.ir_version, 10)  # what onnxruntime 1.20 reads
    _forget_where(model.graph)
    onnx.save(model, file)


def _forget_where(graph: onnx.GraphProto) -> None:
    """Drop what the exporter notes of its source: file names of the machine that it ran on."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


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
