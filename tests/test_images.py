"""The one door: every kind of photo comes out as upright RGB, and everything else as a typed error."""

import io
import math
import os
import random
import re
import resource
import struct
import sys
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from lookalike import images
from lookalike.errors import (
    ImageEmpty,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    InputError,
    NotAnImage,
    UsageError,
)

QUADRANTS = {"tl": (200, 30, 30), "tr": (30, 200, 30), "bl": (30, 30, 200), "br": (200, 200, 30)}
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow was built without AVIF")


def garment(width=64, height=48):
    """A picture of four coloured quadrants, so that any flip or turn shows."""
    image = Image.new("RGB", (width, height))
    half = (width // 2, height // 2)
    for (x, y), colour in zip([(0, 0), (1, 0), (0, 1), (1, 1)], QUADRANTS.values(), strict=True):
        image.paste(colour, (x * half[0], y * half[1], width if x else half[0], height if y else half[1]))
    return image


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def corners(image):
    w, h = image.size
    at = {
        "tl": (w // 4, h // 4),
        "tr": (3 * w // 4, h // 4),
        "bl": (w // 4, 3 * h // 4),
        "br": (3 * w // 4, 3 * h // 4),
    }
    found = {}
    for place, xy in at.items():
        pixel = np.array(image.getpixel(xy), int)
        found[place] = min(QUADRANTS, key=lambda name: np.abs(pixel - QUADRANTS[name]).sum())
        assert np.abs(pixel - QUADRANTS[found[place]]).max() < 40, (place, pixel)
    return [found[place] for place in ("tl", "tr", "bl", "br")]


def png(width, height, *, depth=8, colour=2, pixels=b"", extra=()):
    """A PNG written by hand; ``pixels`` are the bytes to compress, ``extra`` chunks that go before them."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


# What is read -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_every_format_comes_out_as_rgb_of_the_same_size_and_colours(kind, tmp_path):
    data = encode(garment(), kind)
    from_bytes = images.read(data)
    assert (from_bytes.mode, from_bytes.size, type(from_bytes)) == ("RGB", (64, 48), Image.Image)
    assert corners(from_bytes) == ["tl", "tr", "bl", "br"]
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(data)
    for source in (path, str(path)):
        assert images.read(source).tobytes() == from_bytes.tobytes()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_compressions(compression):
    assert corners(images.read(encode(garment(), "TIFF", compression=compression))) == ["tl", "tr", "bl", "br"]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_bitonal_and_palette(mode):
    source = garment().convert(mode)
    assert images.read(encode(source, "PNG")).tobytes() == source.convert("RGB").tobytes()


def test_cmyk_jpeg_has_its_colours_and_not_their_negative():
    # Pillow writes what Adobe writes: inverted samples and an Adobe marker.
    data = encode(garment().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data
    assert corners(images.read(data)) == ["tl", "tr", "bl", "br"]
    assert corners(images.read(encode(garment().convert("CMYK"), "TIFF"))) == ["tl", "tr", "bl", "br"]


def test_alpha_is_laid_over_white():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (200, 0, 0, 128)])
    for kind in ("PNG", "TIFF"):
        out = images.read(encode(rgba, kind))
        assert [out.getpixel((x, 0)) for x in (0, 1)] == [(200, 0, 0), (255, 255, 255)]
        assert np.abs(np.array(out.getpixel((2, 0))) - [227, 127, 127]).max() <= 1
    assert images.read(encode(rgba, "WEBP", lossless=True, exact=True)).getpixel((1, 0)) == (255, 255, 255)


def test_grey_with_alpha():
    la = Image.new("LA", (2, 1))
    la.putdata([(10, 255), (10, 0)])
    out = images.read(encode(la, "PNG"))
    assert [out.getpixel((x, 0)) for x in (0, 1)] == [(10, 10, 10), (255, 255, 255)]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"], ids=["one index", "alpha per index"])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_palette_colour_is_white(kind, transparency):
    if kind == "GIF" and isinstance(transparency, bytes):
        transparency = 1  # a GIF has one transparent index only
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    out = images.read(encode(image, kind, transparency=transparency))
    assert [out.getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize(("mode", "key", "colour"), [("RGB", (0, 0, 0), (9, 8, 7)), ("L", 0, 9)])
def test_transparent_colour_key_is_white(mode, key, colour):
    image = Image.new(mode, (2, 1))
    image.putdata([key, colour])
    out = images.read(encode(image, "PNG", transparency=key))
    assert out.getpixel((0, 0)) == (255, 255, 255)
    assert out.getpixel((1, 0)) == ((9, 9, 9) if mode == "L" else colour)


# 16 bits and more ---------------------------------------------------------------------------------------------------

RAMP = np.arange(256, dtype=np.uint16) * 257  # 0 … 65,535 in 256 steps: must become 0 … 255


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(kind):
    source = Image.fromarray(RAMP[None, :])
    assert source.mode == "I;16"
    out = np.asarray(images.read(encode(source, kind)))
    assert (out[0] == np.arange(256)[:, None]).all()


def test_16_bit_big_endian_tiff():
    header = b"MM\0*" + struct.pack(">I", 8 + 512) + RAMP.astype(">u2").tobytes()
    tags = [(256, 4, 256), (257, 4, 1), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16), (273, 4, 8)]
    tags += [(277, 3, 1 << 16), (278, 4, 1), (279, 4, 512)]
    entries = b"".join(struct.pack(">HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = header + struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    assert (np.asarray(images.read(data))[0] == np.arange(256)[:, None]).all()


def test_16_bit_colour_and_16_bit_grey_with_alpha():
    row = b"\0" + b"".join(struct.pack(">HHH", v, 65535 - v, 0) for v in RAMP.tolist())
    out = np.asarray(images.read(png(256, 1, depth=16, colour=2, pixels=row)))
    assert (out[0, :, 0] == np.arange(256)).all() and (out[0, :, 1] == np.arange(255, -1, -1)).all()
    row = b"\0" + struct.pack(">HHHH", 0x8000, 0xFFFF, 0x8000, 0)
    out = images.read(png(2, 1, depth=16, colour=4, pixels=row))
    assert [out.getpixel((x, 0)) for x in (0, 1)] == [(128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0, 32768, 65535], np.int32), [0, 128, 255]),
        (np.array([0, 400_000, 1_000_000], np.int32), [0, 102, 255]),
        (np.array([-100, 0, 155], np.int32), [0, 100, 255]),
        (np.array([7, 7, 7], np.int32), [0, 0, 0]),
        (np.array([-7, -7, -7], np.int32), [0, 0, 0]),
        (np.array([0, 0.4, 1], np.float32), [0, 102, 255]),
        (np.array([0, 128, 200], np.float32), [0, 128, 200]),
        (np.array([-1e30, 0, 1.55e30], np.float32), [0, 100, 255]),
        (np.array([np.nan, np.inf, 1], np.float32), [0, 0, 255]),
    ],
)
def test_32_bit_grey_and_floats_are_scaled_by_their_range(values, expected):
    data = encode(Image.fromarray(values[None, :]), "TIFF")
    assert np.asarray(images.read(data))[0, :, 0].tolist() == expected


# Orientation, frames, metadata --------------------------------------------------------------------------------------

# What a viewer must show, by corner, of a file whose pixels are tl tr / bl br.
UPRIGHT = {
    1: ["tl", "tr", "bl", "br"],
    2: ["tr", "tl", "br", "bl"],
    3: ["br", "bl", "tr", "tl"],
    4: ["bl", "br", "tl", "tr"],
    5: ["tl", "bl", "tr", "br"],
    6: ["bl", "tl", "br", "tr"],
    7: ["br", "tr", "bl", "tl"],
    8: ["tr", "br", "tl", "bl"],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_exif_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = images.read(encode(garment(), kind, exif=exif))
    assert out.size == ((48, 64) if orientation >= 5 else (64, 48))
    assert corners(out) == UPRIGHT[orientation]


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_unknown_orientation_is_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(images.read(encode(garment(), "JPEG", exif=exif))) == UPRIGHT[1]


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0rubbish!",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\xff\xff\xff\xff\0\0\0\0",
        b"Exif\0\0",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_spoil_good_pixels(kind, exif):
    assert corners(images.read(encode(garment(), kind, exif=exif))) == UPRIGHT[1]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_first_frame_of_an_animation(kind):
    red, green, blue = (Image.new("RGB", (20, 20), colour) for colour in [(220, 0, 0), (0, 220, 0), (0, 0, 220)])
    data = encode(red, kind, save_all=True, append_images=[green, blue])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    out = images.read(data)
    assert np.abs(np.array(out.getpixel((10, 10))) - [220, 0, 0]).max() < 12


def test_first_picture_of_a_multi_picture_jpeg():
    out = images.read(encode(garment(), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 48))]))
    assert corners(out) == UPRIGHT[1]


def test_no_metadata_stays():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 12.0)}
    data = encode(garment(), "JPEG", exif=exif, icc_profile=b"profile", comment=b"SECRET", xmp=b"<x>SECRET</x>")
    out = images.read(data)
    assert out.info == {} and len(out.getexif()) == 0
    for again in (encode(out, "JPEG"), images.thumbnail(out, 32), images.thumbnail(Image.open(io.BytesIO(data)), 32)):
        assert b"Exif" not in again and b"SECRET" not in again and b"profile" not in again


# Reduced decoding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "at_least", "expected"),
    [
        ((1600, 1200), 150, (200, 150)),
        ((1600, 1200), 151, (400, 300)),
        ((1600, 1200), 300, (400, 300)),
        ((1600, 1200), 601, (1600, 1200)),
        ((1600, 1200), 5000, (1600, 1200)),
        ((1600, 100), 50, (800, 50)),
    ],
)
def test_large_jpeg_is_decoded_smaller_but_never_below_what_is_needed(size, at_least, expected):
    data = encode(garment(*size), "JPEG")
    assert images.read(data, at_least=at_least).size == expected


def test_reduced_decoding_is_faster_and_looks_the_same():
    y, x = np.mgrid[0:2400, 0:3200]
    waves = np.stack([127 + 120 * np.sin(x / 90), 127 + 120 * np.cos(y / 70), 127 + 100 * np.sin((x + y) / 150)], -1)
    data = encode(Image.fromarray(waves.astype(np.uint8)), "JPEG", quality=90)
    best = {}
    for at_least in (None, 300):
        times = []
        for _ in range(3):
            start = time.process_time()
            image = images.read(data, at_least=at_least)
            times.append(time.process_time() - start)
        best[at_least] = (min(times), image)
    assert best[300][1].size == (400, 300)
    assert best[300][0] < best[None][0] * 0.7
    full, reduced = (images.fit(best[k][1], 128, 96).astype(int) for k in (None, 300))
    assert np.abs(full - reduced).max() <= 6


def test_reduced_decoding_keeps_orientation_and_leaves_other_formats_alone():
    exif = Image.Exif()
    exif[0x0112] = 6
    out = images.read(encode(garment(1600, 1200), "JPEG", exif=exif), at_least=300)
    assert out.size == (300, 400) and corners(out) == UPRIGHT[6]
    assert images.read(encode(garment(800, 600), "PNG"), at_least=100).size == (800, 600)
    cmyk = images.read(encode(garment(1600, 1200).convert("CMYK"), "JPEG"), at_least=300)
    assert cmyk.size == (400, 300) and corners(cmyk) == UPRIGHT[1]
    with pytest.raises(UsageError, match="at_least"):
        images.read(b"", at_least=0)


# What is refused ----------------------------------------------------------------------------------------------------


def peak_of(function):
    """The most bytes of Python's that were held while ``function`` ran, growth of the process, and seconds."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    start = time.process_time()
    try:
        function()
    finally:
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    kilo = 1 if sys.platform == "darwin" else 1024
    return peak, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * kilo, seconds


def webp_bomb():
    data = bytearray(encode(garment().convert("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (15999).to_bytes(3, "little") * 2
    return bytes(data)


def gif_bomb():
    return b"GIF89a" + struct.pack("<HH", 65535, 65535) + encode(garment(), "GIF")[10:]


def bmp_bomb():
    data = bytearray(encode(garment(), "BMP"))
    data[18:26] = struct.pack("<ii", 20_000, 20_000)
    return bytes(data)


def jpeg_bomb():
    data = bytearray(encode(garment(), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65500, 65500)
    return bytes(data)


def tiff_bomb():
    data = bytearray(encode(garment(), "TIFF", compression="tiff_lzw"))
    for tag in (256, 257):
        at = re.search(re.escape(struct.pack("<H", tag)) + b"[\x03\x04]\0\x01\0\0\0", data).end()
        data[at - 6 : at + 4] = struct.pack("<HII", 4, 1, 40_000)
    return bytes(data)


BOMBS = {
    "png 30000²": lambda: png(30_000, 30_000, pixels=bytes(100_000)),
    "png just below Pillow's warning": lambda: png(9_000, 9_000, pixels=bytes(1000)),
    "png between Pillow's warning and error": lambda: png(12_000, 12_000, pixels=bytes(1000)),
    "png 1 row": lambda: png(2**31 - 1, 1, pixels=bytes(1000)),
    "webp": webp_bomb,
    "gif": gif_bomb,
    "bmp": bmp_bomb,
    "jpeg": jpeg_bomb,
    "tiff": tiff_bomb,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_before_they_are_decoded(bomb):
    data = bomb()
    images.read(encode(garment(), "PNG"))  # plugins are imported by now

    def refuse():
        with pytest.raises(ImageTooLarge) as caught:
            images.read(data, name="shop/bomb.png")
        assert str(caught.value).startswith("shop/bomb.png: ") and "save it smaller" in str(caught.value)

    held, grown, seconds = peak_of(refuse)
    assert held < 4_000_000
    assert grown < 40_000_000
    assert seconds < 0.5


def test_the_limit_is_inclusive(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48)
    assert images.read(encode(garment(), "PNG")).size == (64, 48)
    with pytest.raises(ImageTooLarge, match=r"65×48 pixels"):
        images.read(encode(garment(65, 48), "PNG"))


def test_a_lower_limit_of_the_application_is_a_typed_error_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageTooLarge):
        images.read(encode(garment(), "PNG"))


def test_a_jpeg_of_thousands_of_empty_scans_is_refused():
    data = encode(Image.new("L", (3000, 3000), 128), "JPEG", progressive=True)
    scan = data[data.rfind(b"\xff\xda") : -2]
    bomb = data[:-2] + scan * 5000 + b"\xff\xd9"
    start = time.process_time()
    with pytest.raises(ImageTooLarge, match="scans"):
        images.read(bomb)
    assert time.process_time() - start < 1
    hidden = data[:-2] + (b"\xff\x01\xff\xf0" + scan * 1000) * 5 + b"\xff\xd9"  # behind a marker without a length
    with pytest.raises(ImageTooLarge, match="scans"):
        images.read(hidden)


def test_a_video_behind_a_photo_is_not_counted_as_scans():
    data = encode(garment(), "JPEG", progressive=True)
    assert corners(images.read(data + random.Random(1).randbytes(20_000) + b"\xff\xda" * 500)) == UPRIGHT[1]


def tiff(width, height, tags, body):
    """A TIFF of 8-bit grey written by hand, its pixels' bytes right behind the header."""
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    start = 8 + len(body)
    lists = start + 2 + 12 * len(fields) + 4
    directory, tail = struct.pack("<H", len(fields)), b""
    for tag, value in sorted(fields.items()):
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(values)}I", *values)
        directory += struct.pack("<HHI", tag, 4, len(values))
        directory += packed if len(values) == 1 else struct.pack("<I", lists + len(tail))
        tail += packed if len(values) > 1 else b""
    return b"II*\0" + struct.pack("<I", start) + body + directory + struct.pack("<I", 0) + tail


def segment(marker, body=b""):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(segments):
    whole = encode(garment(), "JPEG")
    return whole[:2] + segments + whole[2:]


def gif_with(blocks):
    whole = encode(garment(), "GIF")
    start = 13 + (3 << (whole[10] & 7) + 1)
    return whole[:start] + blocks + whole[start:]


def tiff_of_values(tag, count):
    body = struct.pack("<HHHII", 1, tag, 4, count, 26) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4 * count)


MANY = 2**18 + 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(with_segments(segment(0xFE) * MANY), id="JPEG comments"),
        pytest.param(with_segments(b"\xff\xd0" * MANY), id="JPEG restarts"),
        pytest.param(with_segments(b"\xff" * MANY), id="JPEG padding"),
        pytest.param(with_segments(segment(0xE1, b"Exif\0\0II") * 65), id="JPEG EXIF"),
        pytest.param(png(1, 1, extra=[(b"prIv", b"")] * MANY, pixels=bytes(4)), id="PNG chunks"),
        pytest.param(gif_with(b"!\xfe\x01a\0" * 9000), id="GIF comments"),
        pytest.param(gif_with(b"!\xff" + b"\x01a" * 9000 + b"\0"), id="GIF extension"),
        pytest.param(tiff_of_values(273, MANY), id="TIFF strips"),
        pytest.param(tiff_of_values(258, MANY), id="TIFF bits"),
    ],
)
def test_headers_in_millions_of_pieces_are_refused_before_pillow_walks_over_them(data):
    start = time.process_time()
    with pytest.raises(ImageTooLarge, match=r"the image: its header is in far more pieces.*save it again"):
        images.read(data)
    with pytest.raises(ImageTooLarge):
        images._refuse_pieces(data, "it")
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "data",
    [
        with_segments(b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(99)) for n in range(1, 256))),
        with_segments(segment(0xE1, b"Exif\0\0II") * 3 + segment(0xFE) * 1000),
        png(1, 1, extra=[(b"tEXt", b"k\0v")] * 1000, pixels=bytes(4)),
        gif_with(b"!\xfe" + b"\xff" + b"a" * 255 + b"\0"),
        encode(garment(), "TIFF", tiffinfo={270: "x" * 100_000}),
    ],
    ids=["ICC in 255 parts", "comments", "texts", "a comment", "a description"],
)
def test_headers_as_programs_write_them_are_read(data):
    assert images.read(data).mode == "RGB"


def tags_on_one_another(count, size, length):
    body = b"".join(struct.pack("<HHII", 1000 + n, 7, size, 8) for n in range(count))
    return (b"II*\0" + struct.pack("<IH", 8, count) + body + bytes(4)).ljust(length, b"\0")


BOMB = tags_on_one_another(5000, 1_000_000, 1_100_000)  # 5 GB before Pillow 13
SMALL_BOMB = tags_on_one_another(5000, 59_000, 65_000)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(BOMB, id="TIFF"),
        pytest.param(with_segments(segment(0xE1, b"Exif\0\0" + SMALL_BOMB)), id="JPEG EXIF"),
        pytest.param(with_segments(segment(0xE2, b"MPF\0" + SMALL_BOMB)), id="JPEG MPF"),
        pytest.param(
            with_segments(
                b"".join(segment(0xE1, b"Exif\0\0" + BOMB[n : n + 65_000]) for n in range(0, len(BOMB), 65_000))
            ),
            id="JPEG EXIF in parts",
        ),
    ],
)
def test_tags_that_lie_over_one_another_are_refused(data):
    with pytest.raises(ImageTooLarge, match="its header is in far more pieces"):
        images.read(data)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_pillow_reads_no_exif_but_that_of_a_jpeg(kind, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(garment(), kind, exif=exif)
    bomb = encode(garment(), kind, exif=b"Exif\0\0" + tags_on_one_another(3, 40, 200))
    upright = corners(images.read(data))
    assert upright == ["bl", "tl", "br", "tr"]

    def never(*_):
        raise AssertionError("Pillow reads the EXIF")

    monkeypatch.setattr(Image.Exif, "load", never)
    assert corners(images.read(data)) == upright
    assert corners(images.read(bomb)) == ["tl", "tr", "bl", "br"]


def test_orientation_is_read_as_pillow_reads_it():
    rng = random.Random(3)
    for n in range(200):
        exif = Image.Exif()
        exif.endian = rng.choice("<>")
        for tag in rng.sample([0x010E, 0x010F, 0x0110, 0x011A, 0x0128, 0x0131, 0x0132, 0x8298], rng.randrange(8)):
            exif[tag] = 2 if tag in (0x011A, 0x0128) else "x" * rng.randrange(1, 30)
        if n % 5:
            exif[0x0112] = rng.randrange(10)
        image = Image.new("RGB", (1, 1))
        image.format = "PNG"  # type: ignore[misc]
        image.info["exif"] = exif.tobytes()
        assert images._orientation(image) == Image.Exif.get(exif, 0x0112, 1), n
    for broken in (b"", b"Exif\0\0", b"MM", b"MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"):
        image.info["exif"] = broken
        assert images._orientation(image) == 1


@pytest.mark.parametrize(("width", "height"), [(1025, 1024), (50_000_000, 1)])
def test_a_large_bmp_packed_by_run_lengths_is_refused(width, height):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + info + bytes(1024) + b"\1\5\0\0\0\1"
    with pytest.raises(ImageTooLarge, match=r"run lengths.*save it as JPEG or PNG"):
        images.read(data)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_large_grey_photos_of_other_ranges_take_little_memory(kind):
    values = np.linspace(-70_000, 70_000, 2000 * 2000).reshape(2000, 2000).astype(kind)
    expected = np.rint((values.astype(float) + 70_000) * (255 / 140_000)).astype(np.uint8)
    tracemalloc.start()
    made = images._to_8_bits(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(made, expected)
    assert peak < 60e6  # four million floats at once would be 130 MB


def test_tiff_tiles_that_are_listed_over_and_over_are_refused():
    good = tiff(100, 100, {278: 50, 273: [8, 5008], 279: [5000, 5000]}, bytes(10_000))
    assert images.read(good).getpixel((50, 50)) == (0, 0, 0)
    strips = [8, 5008] * 5000
    with pytest.raises(ImageTooLarge, match="tiles"):
        images.read(tiff(100, 100, {278: 50, 273: strips, 279: [5000] * len(strips)}, bytes(10_000)))


def test_tiff_tiles_far_larger_than_the_image_are_refused():
    body = zlib.compress(bytes(40_000_000))
    data = tiff(100, 100, {259: 8, 322: 40_000, 323: 40_000, 324: 8, 325: len(body)}, body)
    with pytest.raises(ImageTooLarge, match="tiles"):
        images.read(data)


def test_too_many_bytes_are_refused_by_stat_and_by_length(tmp_path, monkeypatch):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)  # a sparse file: takes no room

    def refuse():
        with pytest.raises(ImageTooLarge, match=r"huge\.jpg: 64\.0 MiB"):
            images.read(path)

    held, _, seconds = peak_of(refuse)
    assert held < 1_000_000 and seconds < 0.5
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    with pytest.raises(ImageTooLarge, match="the image: "):
        images.read(encode(noise(64, 64), "PNG"))


def test_a_file_that_grows_after_stat_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "growing.png"
    path.write_bytes(bytes(2000))
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    real = os.stat_result(path.stat())
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result((*real[:6], 10, *real[7:])))
    with pytest.raises(ImageTooLarge):
        images.load(path)


def test_empty(tmp_path):
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(ImageEmpty, match=r"empty\.jpg: is empty"):
        images.read(tmp_path / "empty.jpg")
    with pytest.raises(ImageEmpty, match=r"^the image: is empty"):
        images.read(b"")


@pytest.mark.parametrize(
    "data",
    [
        b"id,title,image\n1,Shirt,1.jpg\n" * 20,
        b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        b"%PDF-1.7\n" + bytes(100),
        b"BMW is a car, and this is a text about it. " * 9,
        b"\0" * 5000,
        b"\xff",
        b"\x00\x00\x00\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        b"8BPS\0\x01" + bytes(100),
        b"P6 1 1 255\n\0\0\0",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"\0\0\1\0\1\0" + bytes(40),
        b"PK\x03\x04" + bytes(60),
    ],
)
def test_not_an_image(data, tmp_path):
    path = tmp_path / "renamed.jpg"
    path.write_bytes(data)
    with pytest.raises(NotAnImage, match=r"renamed\.jpg: is not an image that can be read .*save it as JPEG or PNG"):
        images.read(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_truncated_anywhere(kind):
    data = encode(noise(60, 40), kind)
    for cut in sorted({*range(1, 64), *range(64, len(data), max(1, len(data) // 80))}):
        try:
            out = images.read(data[:cut], name="cut")
        except ImageError as error:
            assert isinstance(error, ImageTruncated) or (cut < 32 and isinstance(error, NotAnImage)), cut
            assert str(error).startswith("cut: ")
        else:  # only what the decoder needs no more may be missing: a trailer, or a TIFF's unread tags
            assert out.size == (60, 40) and cut > len(data) * 0.95, cut
    with pytest.raises(ImageTruncated, match="cut short or damaged"):
        images.read(data[: len(data) // 2])


def test_missing_directory_and_paths_that_are_none(tmp_path):
    for path, words in [
        (tmp_path / "none.jpg", r"none\.jpg: there is no such file"),
        (tmp_path, "is a folder; name an image file"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        ("a\0b.jpg", r"a\\x00b\.jpg: is not a path"),
        ("no\ud800such.jpg", r"no\\ud800such\.jpg: is not a path"),
        ("a\nb\x1b[31m.jpg", r"a\\nb\\x1b\[31m\.jpg: there is no such file"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            images.read(path)
        assert type(caught.value) is InputError
        str(caught.value).encode()


def test_names_that_are_not_utf_8_are_read(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    try:
        path.write_bytes(encode(garment(), "JPEG"))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert images.read(path).size == (64, 48)
    path.write_bytes(b"text")
    with pytest.raises(NotAnImage) as caught:
        images.read(path)
    assert "caf\\udce9.jpg" in str(caught.value)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "locked.jpg"
    path.write_bytes(encode(garment(), "JPEG"))

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop root, who runs the tests in a container
    with pytest.raises(InputError, match=r"locked\.jpg: may not be read; .*chmod"):
        images.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(InputError, match="not a regular file"):
            images.read(path)


def test_name_stands_for_the_path_in_messages(tmp_path):
    (tmp_path / "x").write_bytes(b"text")
    with pytest.raises(NotAnImage, match=r"^row 7 of shop\.csv: "):
        images.read(tmp_path / "x", name="row 7 of shop.csv")
    with pytest.raises(InputError, match=r"^row 8: "):
        images.load(tmp_path / "y", name="row 8")


DECODER_ERRORS = [OSError, SyntaxError, ValueError, struct.error, EOFError, ZeroDivisionError, OverflowError]
DECODER_ERRORS += [KeyError, IndexError, TypeError, AssertionError, RecursionError]


@pytest.mark.parametrize("error", DECODER_ERRORS)
@pytest.mark.parametrize("where", ["load", "convert"])
def test_whatever_a_decoder_raises_becomes_typed(error, where, monkeypatch):
    def fail(*_, **__):
        raise error("odd\x07")

    owner = ImageFile.ImageFile if where == "load" else Image.Image
    monkeypatch.setattr(owner, where, fail)
    with pytest.raises(ImageTruncated, match=r"photo\.bmp: is cut short or damaged \('?odd\\"):
        images.read(encode_plain_bmp(), name="photo.bmp")


def encode_plain_bmp():
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 58, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0) + b"\1\2\3\0"


def test_memory_that_runs_out_is_too_large(monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ImageTooLarge):
        images.read(encode_plain_bmp())


def test_images_without_pixels_are_refused():
    for width, height in [(0, 5), (5, 0), (0, 0)]:
        with pytest.raises(ImageError):
            images.read(png(width, height))
    gif = bytearray(encode(garment(), "GIF"))
    gif[6:10] = bytes(4)
    try:
        out = images.read(bytes(gif))
    except ImageError:
        return
    assert out.width * out.height > 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", pytest.param("AVIF", marks=needs_avif)])
def test_flipped_bits_give_an_image_or_a_typed_error_and_nothing_else(kind):
    random_ = random.Random(kind)
    exif = {} if kind in ("GIF", "BMP") else {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"}
    data = encode(noise(24, 16), kind, **exif)
    outcomes = set()
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(random_.choice([1, 1, 2, 8, 64])):
            at = random_.randrange(random_.choice([len(data), min(len(data), 120)]))
            broken[at] ^= 1 << random_.randrange(8)
        try:
            out = images.read(bytes(broken), at_least=random_.choice([None, 8]))
        except ImageError as error:
            outcomes.add(type(error).__name__)
            str(error).encode()
        else:
            assert out.mode == "RGB" and 0 < out.width * out.height <= images.MAX_PIXELS
            outcomes.add("image")
    assert {"image"} < outcomes


# Pillow's global state ----------------------------------------------------------------------------------------------


def test_pillows_switches_are_left_alone():
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    images.read(encode(garment(), "JPEG"))
    with pytest.raises(ImageTooLarge):
        images.read(BOMBS["png between Pillow's warning and error"]())
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


def test_threads_read_at_once_and_leave_the_warning_filters_as_they_were():
    good, bad = encode(garment(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), png(12_000, 12_000)
    before = list(warnings.filters)
    failures = []

    def work(seed):
        random_ = random.Random(seed)
        for _ in range(60):
            try:
                if random_.random() < 0.5:
                    assert corners(images.read(good)) == UPRIGHT[1]
                else:
                    with pytest.raises(ImageTooLarge):
                        images.read(bad)
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)


# Digest, crop, thumbnail, fit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ("0,0,32,24", (32, 24)),
        ("pixel:32,24,32,24", (32, 24)),
        ("-10,-10,42,34", (32, 24)),  # cut at the photo's edges
        ("40,30,999,999", (24, 18)),
        ("63,47,1,1", (1, 1)),
    ],
)
def test_a_box_at_the_end_of_a_name_is_the_part_of_the_photo_within_it(box, size, tmp_path):
    garment().save(tmp_path / "a.png")
    name = f"{tmp_path}/a.png#xywh={box}"
    part = images.read(name)
    assert part.size == size
    x, y = (max(0, int(n)) for n in box.removeprefix("pixel:").split(",")[:2])
    assert np.array_equal(part, garment().crop((x, y, x + size[0], y + size[1])))
    content = images.load(name)
    assert np.array_equal(images.read(content), part)
    assert images.digest(content) != images.digest(images.load(tmp_path / "a.png"))
    assert images.digest(content) == images.digest(images.load(name))
    assert images.file_of(name) == tmp_path / "a.png"


def test_parts_of_one_file_have_digests_of_their_own(tmp_path):
    garment().save(tmp_path / "a.png")
    boxes = [(0, 0, 8, 8), (0, 0, 8, 9), (1, 0, 8, 8)]
    assert len({images.digest(images.load(images.with_box(tmp_path / "a.png", b))) for b in boxes}) == 3


@pytest.mark.parametrize(
    ("box", "why"),
    [
        ("1,2,3", "four whole numbers"),
        ("", "four whole numbers"),
        ("percent:0,0,50,50", "four whole numbers"),
        ("0,0,1e3,5", "four whole numbers"),
        ("5,5,0,10", "holds no pixel"),
        ("5,5,-3,10", "holds no pixel"),
        ("-9,0,9,9", "holds no pixel"),
        ("64,0,5,5", "lies outside of the photo's 64×48 pixels"),
        ("0,48,5,5", "lies outside of the photo's 64×48 pixels"),
    ],
)
def test_a_box_that_holds_nothing_is_refused_by_name(box, why, tmp_path):
    garment().save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=rf"a\.png#xywh={box}: .*{why}"):
        images.read(f"{tmp_path}/a.png#xywh={box}")


def test_a_box_counts_in_upright_pixels_of_the_whole_photo_however_small_it_is_decoded(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # what is stored lies on its side
    lying = garment(1600, 1200).transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert images.read(tmp_path / "a.jpg").size == (1600, 1200)
    for box, corner in (((0, 0, 800, 600), "tl"), ((800, 0, 800, 600), "tr"), ((800, 600, 900, 900), "br")):
        for at_least in (None, 64, 300):
            part = images.read(images.with_box(tmp_path / "a.jpg", box), at_least=at_least)
            assert min(part.size) >= (at_least or 600)
            assert part.width / part.height == pytest.approx(800 / 600, rel=0.02)
            assert np.abs(np.asarray(part).mean((0, 1)) - QUADRANTS[corner]).max() < 6
            if at_least == 64:
                assert min(part.size) < 200  # decoded small all the same
    assert images.read(images.with_box(tmp_path / "a.jpg", (1, 1, 2, 2)), at_least=300).size == (2, 2)


def test_digest_and_load(tmp_path):
    assert images.digest(b"") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert images.digest(b"a") != images.digest(b"b")
    (tmp_path / "a").write_bytes(b"abc")
    assert images.load(tmp_path / "a") == images.load(str(tmp_path / "a")) == b"abc"


def test_crop():
    image = garment()
    assert images.crop(image, [0, 0, 1, 1]).tobytes() == image.tobytes()
    right = images.crop(image, (0.5, 0, 1, 0.5))
    assert right.size == (32, 24) and (np.asarray(right) == QUADRANTS["tr"]).all()
    assert images.crop(image, np.array([0.0, 0.0, 1 / 64, 1 / 48])).size == (1, 1)


@pytest.mark.parametrize(
    "box",
    [
        [-0.1, 0, 1, 1], [0, 0, 1.01, 1], [0, 0, math.nan, 1], [0, 0, math.inf, 1], [0.5, 0, 0.5, 1], [0.6, 0, 0.5, 1],
        [0, 0, 0.001, 1], [0, 0.9, 1, 0.1], [0, 0, 1], [0, 0, 1, 1, 1], [], ["a", 0, 1, 1], [None, 0, 1, 1], 7,
        [10**400, 0, 1, 1],
    ],
)  # fmt: skip
def test_crop_refuses_what_is_no_part_of_the_photo(box):
    with pytest.raises(UsageError, match=r"crop .*fractions of the photo"):
        images.crop(garment(), box)


@pytest.mark.parametrize(
    ("size", "width", "expected"),
    [((400, 300), 100, (100, 75)), ((400, 300), 400, (400, 300)), ((40, 30), 100, (40, 30)), ((4000, 2), 10, (10, 1)),
     ((1, 70_000), 50, (1, 65_500))],
)  # fmt: skip
def test_thumbnail(size, width, expected):
    data = images.thumbnail(Image.new("RGB", size, (10, 200, 30)), width)
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", expected)
        assert np.abs(np.array(small.getpixel((0, 0))) - [10, 200, 30]).max() <= 3
    assert data == images.thumbnail(Image.new("RGB", size, (10, 200, 30)), width)


@pytest.mark.parametrize("width", [0, -5])
def test_thumbnail_refuses_no_width(width):
    with pytest.raises(UsageError, match="at least 1 pixel"):
        images.thumbnail(garment(), width)


def test_thumbnail_takes_other_modes_and_leaves_its_input_alone():
    image = garment().convert("RGBA")
    image.info["comment"] = b"SECRET"
    assert b"SECRET" not in images.thumbnail(image, 1000)
    assert image.info == {"comment": b"SECRET"} and image.mode == "RGBA"


def test_fit_pads_with_white_in_the_middle():
    red = Image.new("RGB", (60, 20), (200, 0, 0))
    out = images.fit(red, 60, 60)
    assert (out.shape, out.dtype) == ((60, 60, 3), np.uint8)
    assert (out[:20] == 255).all() and (out[40:] == 255).all() and (out[20:40] == [200, 0, 0]).all()
    out = images.fit(red.rotate(90, expand=True), 30, 60)
    assert (out[:, :25] == 255).all() and (out[:, 35:] == 255).all() and (out[:, 25:35] == [200, 0, 0]).all()


@pytest.mark.parametrize("size", [(60, 80), (168, 224), (96, 128), (2400, 3200)])
def test_fit_of_the_same_aspect_is_a_plain_bicubic_resize(size):
    image = noise(*size)
    expected = image.resize((96, 128), Image.Resampling.BICUBIC, reducing_gap=2.0)
    out = images.fit(image, 128, 96)
    assert (out == np.asarray(expected)).all()
    assert (out == images.fit(image, 128, 96)).all()


@pytest.mark.parametrize("how", ["pad-white-bicubic", "crop-bicubic-0.875", "squash-lanczos"])
@pytest.mark.parametrize("size", [(1, 1), (50_000, 1), (1, 50_000), (7, 5000)])
def test_fit_of_extreme_shapes_stays_small(size, how):
    held, grown, seconds = peak_of(lambda: images.fit(Image.new("RGB", size), 128, 96, how))
    assert held < 10_000_000 and grown < 30_000_000 and seconds < 0.5
    out = images.fit(Image.new("RGB", size), 128, 96, how)
    assert out.shape == (128, 96, 3) and (out == 0).any()


def test_fit_crops_squashes_or_pads_as_it_is_told():
    bars = Image.new("RGB", (120, 60), (200, 0, 0))  # its outer quarters are blue
    bars.paste((0, 0, 200), (0, 0, 30, 60))
    bars.paste((0, 0, 200), (90, 0, 120, 60))
    red, blue = ([200, 0, 0], [0, 0, 200])
    assert (images.fit(bars, 60, 60, "crop-bilinear")[:, 2:-2] == red).all()
    squashed = images.fit(bars, 60, 60, "squash-bilinear")
    assert (squashed[:, :13] == blue).all() and (squashed[:, 18:42] == red).all() and (squashed[:, 47:] == blue).all()
    assert (images.fit(bars, 60, 60, "pad-black-bicubic")[:15] == 0).all()
    # Half of the covering scale: a quarter of each side is cut off, and of the longer one what does not fit.
    small = images.fit(noise(80, 80), 20, 20, "crop-bicubic-0.5").astype(int)
    assert abs(small - np.asarray(noise(80, 80).crop((20, 20, 60, 60)).resize((20, 20), 3))).mean() < 8
    assert (images.fit(bars, 8, 8, "pad-white-bicubic") == images.fit(bars, 8, 8)).all()
    for how in (
        "crop",
        "pad-red-bicubic",
        "squash-nearest",
        "squash-bicubic-0.5",
        "crop-bicubic-0",
        "crop-bicubic-1.5",
        "",
    ):
        with pytest.raises(UsageError, match="no way"):
            images.fit(bars, 8, 8, how)


def test_fit_takes_any_mode_refuses_no_size_and_may_be_written_to():
    out = images.fit(garment().convert("L"), 8, 8)
    out[:] = 0
    for size in [(0, 5), (5, 0), (-1, 5)]:
        with pytest.raises(UsageError, match="at least 1×1"):
            images.fit(garment(), *size)
