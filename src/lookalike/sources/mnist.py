"""Fashion-MNIST (Xiao et al. 2017) as it is downloaded: four files in the IDX format, packed or not."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lookalike.errors import InputError
from lookalike.sources import Source, cache_folder
from lookalike.types import Product, Quarantined

NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PARTS = {"train": "train", "t10k": "test"}
FOLDERS = ("", "raw", "FashionMNIST/raw")
MAX_BYTES = 2**30
"""The most that a file may hold unpacked; Fashion-MNIST's largest has 47 MB."""


def read(root: Path) -> Source | None:
    """A product for each picture (28×28, light on black), with ``category`` and ``split``; None where it is not Fashion-MNIST.

    The pictures become PNG files in the user's cache, written once, the same bytes each time.

    Raises:
        InputError: no IDX files, labels missing, or the cache cannot be written.
    """
    source = Source(str(root), [], {"category": "category"})
    for prefix, part in PARTS.items():
        file = _file(root, f"{prefix}-images")
        if file is None:
            continue
        labels_file = _file(root, f"{prefix}-labels")
        if labels_file is None:
            raise InputError(f"{root}: {file.name} without {prefix}-labels-idx1-ubyte; copy it there")
        pictures = _idx(source, file, 3)
        labels = _idx(source, labels_file, 1)
        folder = cache_folder() / "fashion-mnist" / hashlib.sha256(pictures.tobytes()).hexdigest()[:16]
        _write(folder, pictures)
        for n in range(len(pictures)):
            where, identity = f"{file.name}, picture {n}", f"{part}/{n:05}"
            known = n < len(labels) and labels[n] < len(NAMES)
            if not known:
                said = (
                    f"its label is {labels[n]}, not 0 to 9" if n < len(labels) else f"{labels_file.name} ends before it"
                )
                source.quarantined.append(Quarantined(f"{where}, id {identity}", f"{said}; it stays without category"))
            category = NAMES[labels[n]] if known else ""
            attributes = {**({"category": category} if known else {}), "split": part}
            source.products.append(Product(identity, [folder / f"{n:05}.png"], category, attributes, where))
        if len(labels) > len(pictures):
            reason = f"{len(labels)} labels for {len(pictures)} pictures; the rest is left out"
            source.quarantined.append(Quarantined(labels_file.name, reason))
    return source if source.products else None


def _file(root: Path, stem: str) -> Path | None:
    """``train-images-idx3-ubyte``, also with a dot before idx as some copies have it, packed or not."""
    dimensions = "idx3" if stem.endswith("images") else "idx1"
    names = [f"{stem}{sign}{dimensions}-ubyte{suffix}" for sign in "-." for suffix in ("", ".gz")]
    return next((f for folder in FOLDERS for name in names if (f := root / folder / name).is_file()), None)


def _idx(source: Source, file: Path, dimensions: int) -> NDArray[np.uint8]:
    """The whole entries of a file, uint8 (n, …); fewer than it promises are told. Raises InputError where it is none."""
    content, broken = _unpacked(file)
    header = 4 * (1 + dimensions)
    if len(content) < header or struct.unpack(">I", content[:4])[0] != 0x0800 + dimensions:
        raise InputError(f"{file}: not an IDX file of {dimensions} dimensions of bytes; download it again")
    count, *shape = struct.unpack(f">{dimensions}I", content[4:header])
    if dimensions == 3 and shape != [28, 28]:
        raise InputError(f"{file}: holds pictures of {shape[1]}×{shape[0]}, Fashion-MNIST's are 28×28")
    size = int(np.prod(shape)) if shape else 1
    whole = min(count, (len(content) - header) // size)
    if whole < count or broken:
        reason = f"promises {count} entries and holds {whole}; it is cut short or damaged, download it again"
        source.quarantined.append(Quarantined(file.name, reason))
        source.unreadable = [str(cache_folder())]  # what is lost here must not be pruned
    entries: NDArray[np.uint8] = np.frombuffer(content, np.uint8, whole * size, header).reshape(whole, *shape)
    return entries


def _unpacked(file: Path) -> tuple[bytes, bool]:
    """A file's content as far as it can be unpacked, and whether it breaks off. Raises InputError."""
    out = bytearray()
    unpack = zlib.decompressobj(wbits=31) if file.suffix == ".gz" else None
    try:
        with file.open("rb") as opened:
            while block := opened.read(2**20):
                out += block if unpack is None else unpack.decompress(block, MAX_BYTES + 1 - len(out))
                if len(out) > MAX_BYTES:
                    raise InputError(f"{file}: holds more than {MAX_BYTES >> 20} MiB; it is not Fashion-MNIST")
    except zlib.error:
        return bytes(out), True
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from error
    return bytes(out), unpack is not None and not unpack.eof


def _write(folder: Path, pictures: NDArray[np.uint8]) -> None:
    """Write what is not there yet, each file whole or not at all."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = {entry.name for entry in os.scandir(folder)}
        part = folder / f"{os.getpid()}.part"
        for n, picture in enumerate(pictures):
            if (name := f"{n:05}.png") not in there:
                Image.fromarray(picture).save(part, "PNG")
                part.replace(folder / name)
    except OSError as error:
        raise InputError(
            f"{folder}: the pictures cannot be kept there ({error.strerror or error}); set LOOKALIKE_CACHE to a folder that "
            "can be written"
        ) from error
