"""The one door for photos: bytes in, upright RGB out, or a typed error. Nothing else in the package opens an image.

The name of a photo's file may end in ``#xywh=X,Y,W,H``: a part of it, in pixels of the upright image from its top left (W3C
Media Fragments, https://www.w3.org/TR/media-frags/). ``load`` gives the file's bytes with that box, ``digest`` tells parts of
one file apart, ``read`` gives the part.

``read`` copes with what shops really have (CMYK, palettes, alpha, 16 bits, phone orientation, animations) and refuses
what would hurt (bombs, broken and foreign files) before it is decoded. ``fit`` is the one preprocessing for training,
indexing and serving. Pillow's own limits and switches are left as the application set them; all checks are made here,
so any number of threads may read at once. Knows nothing about products, encoders or HTTP.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lookalike.errors import ImageEmpty, ImageError, ImageTooLarge, ImageTruncated, InputError, NotAnImage, UsageError
from lookalike.types import ImageInput, printable

MAX_BYTES = 64 * 1024 * 1024
"""The largest file or upload that is read, in bytes."""

MAX_PIXELS = 50_000_000
"""The most pixels (width × height in the file's header) that are decoded: 150 MB of RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
"""Pillow's names of the formats that are read. The other forty are an attack surface that no shop needs."""

_MAX_SCANS = 100  # of a JPEG; cameras and optimisers write at most about a dozen
_MAX_PIECES = 2**18  # of what comes before the pixels; Pillow walks over them one by one: at most 2 s
_MAX_EXIF = 64  # segments of a JPEG that hold EXIF; Pillow joins them one by one: a file of 64 MB took minutes
_MAX_RUNS = 2**20  # pixels of a BMP packed by run lengths, which Pillow unpacks in Python: 100 bytes took 9 s
_JPEG_SIDE = 65_500  # libjpeg writes no longer side
_WHITE = (255, 255, 255)

_FRAGMENT = re.compile(r"(.+)(#xywh=(?:pixel:)?([^/\\]*))", re.DOTALL)

_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|II\+\0|MM\0\+|BM....\0\0\0\0"
    rb"|....ftyp(?:avi[fs]|m[is]f1.{4,40}avif)",
    re.DOTALL,
)
_FIT = re.compile(
    r"(?P<mode>pad-white|pad-black|crop|squash)-(?P<filter>bicubic|bilinear|lanczos)(-(?P<fraction>\d?\.?\d+))?"
)
_MARKER = re.compile(rb"\xff+([^\x00\x01\xff\xd0-\xd7])")  # of a JPEG: those that have a length
_TIFF_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of one value of a TIFF's tag by its type, without those that stay bytes."""

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Part(bytes):
    """The bytes of a photo's file of which only ``box`` (x, y, width, height) counts."""

    box: tuple[int, int, int, int]


def split(name: str | Path) -> tuple[str, str]:
    """A photo's name, of a file or an address, without the box that it may end in; and that end, empty where there is none."""
    found = _FRAGMENT.fullmatch(str(name))
    return (found[1], found[2]) if found else (str(name), "")


def file_of(name: str | Path) -> Path:
    """The file of a photo's name, without its box."""
    return Path(split(name)[0])


def with_box(name: str | Path, box: Sequence[int]) -> str:
    """The name of the part ``box`` (x, y, width, height) of a photo's file."""
    return f"{name}#xywh={','.join(str(n) for n in box)}"


def _box_of(name: str | Path, label: str) -> tuple[int, int, int, int] | None:
    """The box that a photo's name ends in, or None. Raises ImageError where it is none that holds a pixel."""
    found = _FRAGMENT.fullmatch(str(name))
    if found is None:
        return None
    numbers = re.fullmatch(r"(-?\d{1,9}),(-?\d{1,9}),(-?\d{1,9}),(-?\d{1,9})", found[3])
    if numbers is None:
        raise ImageError(f"{label}: #xywh= wants four whole numbers of pixels, X,Y,W,H; mend its end")
    x, y, width, height = (int(n) for n in numbers.groups())
    if width < 1 or height < 1 or x + width <= 0 or y + height <= 0:
        raise ImageError(f"{label}: its box holds no pixel of the photo; mend its end, #xywh=X,Y,W,H")
    return x, y, width, height


def read(source: ImageInput, *, at_least: int | None = None, name: str | None = None) -> Image.Image:
    """Decode a photo: RGB, upright by its EXIF orientation, alpha laid over white, without any metadata.

    ``source`` is a file's path, with or without a box at its end, or what ``load`` gave, or any bytes; ``name`` stands for it
    in messages. A box that reaches over the photo's edges is cut there. Of an animation the first frame is read. 16-bit
    samples are scaled to 8 by their range. Colours are converted plainly: ICC profiles are ignored, those of CMYK included, so
    such photos may look a little off but are the same everywhere.

    ``at_least`` is the number of pixels that width and height must both keep. A larger JPEG is then decoded at 1/2, 1/4
    or 1/8 of its size, several times faster; other formats, and photos that are smaller anyway, come whole.

    Raises ``ImageEmpty``, ``NotAnImage``, ``ImageTruncated`` (also for damage within) or ``ImageTooLarge``; plain
    ``ImageError`` for a box without a pixel of the photo; plain ``InputError`` where the path cannot be read;
    ``UsageError`` for ``at_least`` below 1.
    """
    if at_least is not None and at_least < 1:
        raise UsageError(f"at_least is a number of pixels from 1 on, not {at_least}")
    label = printable(name or ("the image" if isinstance(source, bytes) else str(source)))
    data = source if isinstance(source, bytes) else load(source, name=name)
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(label, len(data))
    if not data:
        raise ImageEmpty(f"{label}: is empty (0 bytes); copy or download it again")
    try:
        _refuse_pieces(data, label)
        with _QUIET, Image.open(io.BytesIO(_without_exif(data)), formats=FORMATS) as image:  # reads the header only
            _refuse_bombs(image, data, label)
            box = data.box if isinstance(data, Part) else None
            scale = 1.0 if at_least is None else _drafted(image, at_least, box)
            image.load()
            upright = _upright_rgb(image)
            return upright if box is None else _part(upright, box, scale, label)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageTooLarge(f"{label}: is too large to decode ({error}); save it smaller") from error
    except Exception as error:  # Pillow's decoders raise whatever they stumble over; all of it means the same here
        if not _SIGNATURE.match(data):
            kinds = ", ".join(FORMATS)
            raise NotAnImage(f"{label}: is not an image that can be read ({kinds}); save it as JPEG or PNG") from error
        # What Pillow says of a broken header is an address in memory; what a decoder says may help.
        reason = "its header" if isinstance(error, UnidentifiedImageError) else printable(str(error))[:200]
        raise ImageTruncated(
            f"{label}: is cut short or damaged ({reason}); copy it again, or open it and save it as JPEG or PNG"
        ) from error


def load(path: str | Path, *, name: str | None = None) -> bytes:
    """The bytes of a file, at most ``MAX_BYTES`` of them; the size is checked before anything is read.

    Where ``path`` ends in ``#xywh=X,Y,W,H`` they are a ``Part``, which remembers the box.

    Raises ``ImageTooLarge``, ``ImageError`` for a box that holds nothing, or ``InputError`` where the path is missing, no
    regular file or may not be read.
    """
    label = printable(name or str(path))
    box, path = _box_of(path, label), file_of(path)
    try:
        status = Path(path).stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{label}: is a folder; name an image file in it")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device might never end
            raise InputError(f"{label}: is not a regular file; copy the image into one")
        if status.st_size > MAX_BYTES:
            raise _too_many_bytes(label, status.st_size)
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # it may have grown meanwhile
    except FileNotFoundError as error:
        raise InputError(f"{label}: there is no such file; check the path") from error
    except PermissionError as error:
        raise InputError(f"{label}: may not be read; change its permissions (chmod +r)") from error
    except OSError as error:
        raise InputError(f"{label}: cannot be read ({error.strerror or error}); check the path and the disk") from error
    except ValueError as error:  # a zero character in the path, or one that the file system cannot spell
        raise InputError(f"{label}: is not a path ({error}); check its spelling") from error
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(label, len(data))
    if box is None:
        return data
    part = Part(data)
    part.box = box
    return part


def remains(path: str | Path) -> Image.Image:
    """What can still be seen of a file that ``read`` refuses: the part before the damage, within the same bounds.

    Raises ``InputError`` where nothing can.
    """
    data = load(path, name="the file")
    try:
        _refuse_pieces(data, "the file")
        with _QUIET, Image.open(io.BytesIO(_without_exif(data)), formats=FORMATS) as image:
            _refuse_bombs(image, data, "the file")
            try:
                image.load()
            except OSError:
                image.tile = []  # what was decoded until then stays
                image.load()
            return _upright_rgb(image)
    except InputError:
        raise
    except Exception as error:
        raise NotAnImage(f"nothing of the file can be shown ({printable(str(error))[:200]})") from error


def is_photo(start: bytes) -> bool:
    """Whether a file that begins so (32 bytes do) is of a format that is read; it may still be broken."""
    return bool(_SIGNATURE.match(start))


def digest(data: bytes) -> str:
    """Content digest of a photo: the first 32 hex characters of the SHA-256 of its file, and of the box where it is a part.

    128 bits: two files that share it cannot be made on purpose (2⁶⁴ tries), and it stays short in URLs and tables.
    """
    whole = hashlib.sha256(data)
    if isinstance(data, Part):
        whole.update(with_box("", data.box).encode())
    return whole.hexdigest()[:32]


def crop(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The part of ``image`` within ``box`` = [x0, y0, x1, y1], fractions 0 … 1 of the upright photo from its top left.

    Raises ``UsageError`` where the box is not four finite fractions in order, or holds less than one pixel.
    """
    mend = "give [x0, y0, x1, y1] as fractions of the photo, for example [0, 0, 0.5, 1] for its left half"
    try:
        x0, y0, x1, y1 = (float(edge) for edge in box)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"crop is not four numbers; {mend}") from error
    if not (0 <= x0 <= 1 and 0 <= x1 <= 1 and 0 <= y0 <= 1 and 0 <= y1 <= 1):  # false for NaN too
        raise UsageError(f"crop [{x0:g}, {y0:g}, {x1:g}, {y1:g}] leaves the photo; {mend}")
    width, height = image.size
    left, top, right, bottom = round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)
    if right <= left or bottom <= top:
        raise UsageError(f"crop [{x0:g}, {y0:g}, {x1:g}, {y1:g}] holds no pixel of {width}×{height}; {mend}")
    return image.crop((left, top, right, bottom))


def thumbnail(image: Image.Image, width: int) -> bytes:
    """``image`` as a JPEG (quality 85) of at most ``width`` pixels across: aspect kept, never enlarged, no metadata.

    Raises ``UsageError`` for a width below 1.
    """
    if width < 1:
        raise UsageError(f"a thumbnail is at least 1 pixel wide, not {width}")
    scale = min(1.0, width / image.width, _JPEG_SIDE / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.info = {}  # Pillow would write a comment in it into the file
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def fit(image: Image.Image, height: int, width: int, how: str = "pad-white-bicubic") -> NDArray[np.uint8]:
    """``image`` brought to ``height`` × ``width``: uint8, (height, width, 3), RGB.

    Args:
        image: any image.
        height: pixels, at least 1.
        width: pixels, at least 1.
        how: MODE-FILTER, e.g. ``squash-bilinear``. ``pad-white``, ``pad-black``: scaled to lie within, centred on that colour.
            ``crop``: scaled to cover, then the middle; ``crop-bicubic-0.875`` takes that fraction of the covering scale, as
            ImageNet's networks are evaluated. ``squash``: sides scaled apart. Filters: bicubic, bilinear, lanczos.

    Where it shrinks more than fourfold, whole pixels are averaged first (``reducing_gap``), which costs a fraction and looks
    the same. The same image gives the same array always. Raises ``UsageError`` for sides below 1 and for another ``how``.
    """
    if height < 1 or width < 1:
        raise UsageError(f"an image is fitted into at least 1×1 pixels, not {width}×{height}")
    known = _FIT.fullmatch(how)
    if not known or (known["fraction"] and known["mode"] != "crop") or not 0 < float(known["fraction"] or 1) <= 1:
        raise UsageError(
            f"no way {how!r} to fit an image; there are pad-white-bicubic, crop-bilinear-0.875, squash-lanczos …"
        )
    mode, filter_ = known["mode"], Image.Resampling[known["filter"].upper()]
    rgb = image.convert("RGB")
    if mode == "squash":
        return np.array(rgb.resize((width, height), filter_, reducing_gap=2.0))
    if mode == "crop":
        # As torchvision and timm do it, whole pixels included, but only the part that stays is ever made: a strip of
        # 100,000×10 scaled whole would be a bomb of our own making.
        share = float(known["fraction"] or 1)
        scale = max(int(height / share) / image.height, int(width / share) / image.width)
        whole = (max(width, int(image.width * scale + 1e-6)), max(height, int(image.height * scale + 1e-6)))
        left, top = round((whole[0] - width) / 2), round((whole[1] - height) / 2)
        x, y = image.width / whole[0], image.height / whole[1]  # pixels of the image to one of the scaled
        box = (left * x, top * y, min((left + width) * x, image.width), min((top + height) * y, image.height))
        return np.array(rgb.resize((width, height), filter_, box=box, reducing_gap=2.0))
    # Scaled first and padded after, for the same reason.
    scale = min(height / image.height, width / image.width)
    inner = (min(width, max(1, round(image.width * scale))), min(height, max(1, round(image.height * scale))))
    small = rgb.resize(inner, filter_, reducing_gap=2.0)
    canvas = np.full((height, width, 3), 255 if mode == "pad-white" else 0, np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(small)
    return canvas


def _refuse_pieces(data: bytes, label: str) -> None:
    """Raise ``ImageTooLarge`` for a header in far more pieces than any camera or program writes.

    Millions of them, each of a few bytes, take Pillow minutes and gigabytes before it knows the size of the image.
    """
    pieces = exifs = 0
    exif = b""
    if data.startswith(b"\xff\xd8"):
        at = 2
        for marker, end in _segments(data):
            pieces += end - at - 1  # bytes between two segments are walked over one by one as well
            if marker == 0xDA or pieces > _MAX_PIECES:
                break
            at = end + max(2, int.from_bytes(data[end : end + 2], "big"))
            if marker == 0xE1 and data.startswith(b"Exif\0\0", end + 2):
                exifs += 1
                exif += data[end + 8 : at] if exifs <= _MAX_EXIF else b""
            elif marker == 0xE2 and data.startswith(b"MPF\0", end + 2):
                pieces += _tiff_values(data[end + 6 : at])
        pieces += _tiff_values(exif)
    elif data.startswith(b"\x89PNG"):
        at = 8
        while at + 8 <= len(data) and pieces <= _MAX_PIECES:
            pieces += 1
            at += 12 + int.from_bytes(data[at : at + 4], "big")
    elif data.startswith((b"GIF87a", b"GIF89a")):
        pieces = 32 * _gif_blocks(data)  # comments are joined block by block
    elif data.startswith((b"II", b"MM")):
        pieces = _tiff_values(data)
    if pieces > _MAX_PIECES or exifs > _MAX_EXIF:
        raise ImageTooLarge(f"{label}: its header is in far more pieces than a photo's; open it and save it again")


def _without_exif(data: bytes) -> bytes:
    """An AVIF without its EXIF, which Pillow reads whole; how to turn it is said elsewhere (ISO/IEC 23008-12, ``irot``)."""
    if data[4:8] != b"ftyp":
        return data
    parts, at = [], 0
    while at < len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        end = at + size if size >= 8 else len(data)
        part = data[at:end]
        parts.append(part if kind == b"mdat" else part.replace(b"Exif", b"free"))
        at = end
    return b"".join(parts)


def _gif_blocks(data: bytes) -> int:
    """The number of blocks before a GIF's first frame, at most one more than are read."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    blocks = 0
    while at < len(data) and data[at] not in b"\x2c\x3b" and 32 * blocks <= _MAX_PIECES:
        blocks += 1
        if data[at] != 0x21:  # skipped byte by byte
            at += 1
            continue
        at += 2
        while at < len(data) and data[at] and 32 * blocks <= _MAX_PIECES:
            blocks += 1
            at += 1 + data[at]
        at += 1
    return blocks


def _tiff_values(data: bytes) -> int:
    """The number of tags of a first directory of a TIFF, or of EXIF, and of their values: each becomes an object or several.

    More than are read, too, where the tags lie over one another, so that together they are many times the file.
    """
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"
    big = b"\x2b" in data[2:4]
    word, head, entry = (8, 8, 20) if big else (4, 2, 12)

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    start = number(8 if big else 4, word)
    tags = values = number(start, head)
    held = 0
    for n in range(min(tags, _MAX_PIECES)):
        at = start + head + n * entry
        count, kind = number(at + 4, word), number(at + 2, 2)
        size = _TIFF_SIZES.get(kind, 1)
        if count * size <= len(data):  # what the file cannot hold is not read
            held += count * size
            values += count if kind in _TIFF_SIZES else 0
    return values if held <= 4 * len(data) else _MAX_PIECES + 1


def _refuse_bombs(image: Image.Image, data: bytes, label: str) -> None:
    """Raise ``ImageTooLarge`` for headers that promise more work than a photo is worth; decodes nothing."""
    pixels = image.width * image.height
    size = f"{image.width}×{image.height} pixels"
    if pixels < 1:
        raise ImageTruncated(f"{label}: has {size}; copy or download it again")
    if pixels > MAX_PIXELS:
        raise ImageTooLarge(f"{label}: {size} are more than {MAX_PIXELS / 1e6:g} million; save it smaller")
    # Tiles of a TIFF may be larger than the image, or be listed over and over; each is decoded all the same.
    tags = getattr(image, "tag_v2", {})
    tile = math.prod(side for side in (tags.get(322), tags.get(323)) if isinstance(side, int))
    covered = sum((t[1][2] - t[1][0]) * (t[1][3] - t[1][1]) for t in getattr(image, "tile", []) if t[1])
    if tile > MAX_PIXELS or covered > 8 * pixels:
        raise ImageTooLarge(f"{label}: its tiles hold far more than {size}; save it as JPEG or PNG")
    runs = any(t[0] == "bmp_rle" for t in getattr(image, "tile", []))
    if runs and (pixels > _MAX_RUNS or len(data) > 4 * _MAX_RUNS):
        raise ImageTooLarge(f"{label}: is a BMP packed by run lengths, of {size}; save it as JPEG or PNG")
    # A scan of a progressive JPEG that changes nothing is 75 bytes, and 50 ms of decoding: 1 MB would take minutes.
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_SCANS and _scans(data) > _MAX_SCANS:
        raise ImageTooLarge(f"{label}: is a JPEG of more than {_MAX_SCANS} scans; open it and save it again")


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers with a length, and their ends, of the first image in a JPEG file: not of thumbnails, nor of a video behind."""
    at = 2
    while (found := _MARKER.search(data, at)) and found[1] != b"\xd9":
        yield found[1][0], found.end()
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2], "big"))


def _scans(data: bytes) -> int:
    """The number of scans of the first image in a JPEG file."""
    return sum(marker == 0xDA for marker, _ in _segments(data))


def _drafted(image: Image.Image, at_least: int, box: tuple[int, int, int, int] | None) -> float:
    """Let a JPEG be decoded small, with ``at_least`` pixels of what is wanted left each way; by how much it will be smaller."""
    wide, high = image.size
    wanted = (at_least, at_least)
    if box is not None:  # the part must keep so many, hence the whole more
        times = max(1, min(box[2], box[3]) // at_least)
        wanted = (-(-wide // times), -(-high // times))
    drafted = image.draft(None, wanted)
    return wide / drafted[1][2] if drafted else 1.0


def _part(image: Image.Image, box: tuple[int, int, int, int], scale: float, label: str) -> Image.Image:
    """``box`` in pixels of the whole photo, which ``image`` is, ``scale`` times smaller. Raises ImageError."""
    x, y, width, height = box
    left, top = round(max(0, x) / scale), round(max(0, y) / scale)
    right = min(image.width, max(left + 1, round((x + width) / scale)))
    bottom = min(image.height, max(top + 1, round((y + height) / scale)))
    if right <= left or bottom <= top:
        size = f"{round(image.width * scale)}×{round(image.height * scale)}"
        raise ImageError(
            f"{label}: its box {x},{y},{width},{height} lies outside of the photo's {size} pixels; mend it"
        )
    return image.crop((left, top, right, bottom))


def _upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image as plain RGB the right way up."""
    turn = _TRANSPOSE.get(_orientation(image))
    if image.mode.startswith("I") or image.mode == "F":
        rgb = Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    elif image.has_transparency_data:
        alpha = image if image.mode == "RGBA" else image.convert("RGBA")
        rgb = Image.new("RGB", image.size, _WHITE)
        rgb.paste(alpha, mask=alpha)
    else:
        rgb = image.convert("RGB")
    rgb = rgb.transpose(turn) if turn is not None else rgb
    rgb.info = {}  # comment, EXIF with GPS, XMP, profile: ``rgb`` is a copy by now, and forgets them
    return rgb


def _orientation(image: Image.Image) -> int:
    """How a decoded image is to be turned: 1 to 8, by its EXIF, else 1 (TIFFs are turned by then).

    Read here, since Pillow reads all other tags as well: of a file of 2 MB before Pillow 13 they took 5 GB and more.
    """
    exif = image.info.get("exif")
    if image.format == "TIFF" or not isinstance(exif, bytes):
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    start = number(4, 4)
    for at in range(start + 2, start + 2 + 12 * min(number(start, 2), 1000), 12):
        if number(at, 4) == (0x0112 | 3 << 16 if order == "little" else 0x0112 << 16 | 3):  # that tag, as a short
            return number(at + 8, 2)
    return 1


def _to_8_bits(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey samples of 16 or 32 bits, or floats, (height, width), to 0 … 255. Clipping would make photos white.

    Whole numbers within 0 … 65,535 are 16-bit samples and keep their high byte, as Pillow does for 16-bit colour.
    Floats within 0 … 1 or 0 … 255 have that range. Anything else names no white: its own darkest to brightest is used.
    """
    low, high = 0.0, 65535.0
    if grey.dtype.kind in "iu" and grey.min() >= low and grey.max() <= high:
        return (grey >> 8).astype(np.uint8)
    whole = np.empty(grey.shape, np.uint8)
    flat, out = grey.reshape(-1), whole.reshape(-1)
    parts = [slice(n, n + 2**20) for n in range(0, len(flat), 2**20)]  # as floats the whole would be 8 times the photo

    def finite(part: slice) -> NDArray[np.float64]:
        return np.nan_to_num(flat[part].astype(np.float64), posinf=0.0, neginf=0.0)

    low = min(float(finite(part).min()) for part in parts)
    high = max(float(finite(part).max()) for part in parts)
    if grey.dtype.kind == "f" and low >= 0 and high <= 255:
        low, high = 0.0, (1.0 if high <= 1 else 255.0)
    for part in parts:
        out[part] = np.rint((finite(part) - low) * (255 / max(high - low, 1e-300)))
    return whole


def _too_many_bytes(label: str, count: int) -> ImageTooLarge:
    size = f"{count / 2**20:.1f} MiB"
    return ImageTooLarge(f"{label}: {size} are more than {MAX_BYTES // 2**20} MiB; save it smaller")


class _Quiet:
    """Pillow's warnings (odd EXIF, large images) switched off while any thread decodes: they are no one's to mend.

    ``warnings.catch_warnings`` alone restores what it found; threads that leave in another order than they came would
    leave each other's filters behind. Here the last one out takes the filter away.
    """

    def __init__(self) -> None:
        self._filter = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._filter not in warnings.filters:
                cast("list[Any]", warnings.filters).insert(0, self._filter)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._filter in warnings.filters:
                cast("list[Any]", warnings.filters).remove(self._filter)


_QUIET = _Quiet()
