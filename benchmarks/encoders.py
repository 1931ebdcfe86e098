"""Encoding speed of an encoder beside a MobileNetV2 and a CLIP ViT-B/32 of random weights, in onnxruntime, in the same run.

    python benchmarks/encoders.py [--encoder builtin] [--threads 1] [--seconds 3]

One photo at a time, batches of 32, and one text: milliseconds (median) and photos or texts a second. Decoded images in hand.
Wants the extra train (transformers makes the architectures, torch exports them; their weights do not matter for speed).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, MobileNetV2Config, MobileNetV2Model

from lookalike import encoders


class Pooled(torch.nn.Module):
    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.net(pixel_values=pixels).pooler_output


def session(net: torch.nn.Module, side: int, threads: int, folder: Path) -> Callable[[int], object]:
    """A random net exported and opened; calling it with n encodes n photos."""
    file = folder / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = torch.rand(2, 3, side, side)
        shapes = ({0: torch.export.Dim("n", min=1, max=4096)},)
        program: Any = torch.onnx.export(
            Pooled(net).eval(), (example,), input_names=["pixels"], dynamic_shapes=shapes, dynamo=True, verbose=False
        )
    program.save(str(file))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    opened = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).random((32, 3, side, side), np.float32)
    return lambda n: opened.run(None, {"pixels": pixels[:n]})


def median(work: Callable[[], object], seconds: float) -> float:
    work()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 5:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    encoder = encoders.load(options.encoder, options.threads)
    pixels = np.random.default_rng(0).integers(0, 255, (32, *encoder.size, 3), np.uint8)
    rows: dict[str, Callable[[int], object]] = {f"{encoder.name} {encoder.size[1]}×{encoder.size[0]}": lambda n: (
        encoder.encode_photos(pixels[:n])
    )}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        small = MobileNetV2Model(MobileNetV2Config(image_size=224))
        rows["MobileNetV2, random, 224×224, float32"] = session(small, 224, options.threads, Path(folder))
        large = CLIPVisionModel(CLIPVisionConfig())
        rows["CLIP ViT-B/32, random, 224×224, float32"] = session(large, 224, options.threads, Path(folder))
        print(f"{options.threads} thread(s){'':33} {'one, ms':>9} {'one, /s':>9} {'32 at once, /s':>15}")
        for name, run in rows.items():
            one, many = median(lambda: run(1), options.seconds), median(lambda: run(32), options.seconds)  # noqa: B023
            print(f"{name:45} {one * 1000:9.2f} {1 / one:9.0f} {32 / many:15.0f}")
    if encoder.reads_text:
        one = median(lambda: encoder.encode_texts(["red summer dress for women"]), options.seconds)
        print(f"{'one text of five words':45} {one * 1000:9.2f} {1 / one:9.0f}")


if __name__ == "__main__":
    main()
