"""One contract for every encoder; what the built-in one must know; broken encoder directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import COLOURS, KINDS, draw
from lookalike import encoders, images
from lookalike.encoders.base import Encoder
from lookalike.errors import InputError, UsageError

BUILTIN = Path(encoders.__file__).parent.parent / "builtin"


@pytest.fixture(scope="module", params=["fake", "builtin"])
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return encoders.load(request.param, threads=1)


@pytest.fixture(scope="module")
def pixels(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("drawn")
    files = [draw(folder / f"{c}-{k}.png", c, k) for k in KINDS for c in COLOURS]
    return np.stack([encoder.prepare(images.read(f)) for f in files])


def test_contract(encoder: Encoder, pixels: np.ndarray):
    assert isinstance(encoder, Encoder)
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (*encoder.size, 3)
    vectors = encoder.encode_photos(pixels)
    assert vectors.shape == (len(pixels), encoder.dim)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    texts = encoder.encode_texts(["red shirt", "", "🙂", "x" * 100_000, "red shirt"])
    assert texts.shape == (5, encoder.dim)
    assert np.allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-4)
    assert np.array_equal(texts[0], texts[4])
    assert encoder.id.startswith(encoder.name)


def test_a_photo_has_the_same_vector_alone_and_in_a_batch(encoder: Encoder, pixels: np.ndarray):
    together = encoder.encode_photos(pixels)
    alone = np.vstack([encoder.encode_photos(p[None]) for p in pixels])
    assert np.allclose(together, alone, atol=2e-3)


def test_a_text_has_the_same_vector_alone_and_beside_a_longer_one(encoder: Encoder):
    alone = encoder.encode_texts(["red shirt"])[0]
    beside = encoder.encode_texts(["red shirt", "a very long description of a blue dress with white dots and a belt"])[
        0
    ]
    assert np.allclose(alone, beside, atol=1e-5)


def test_words_of_colour_find_drawings_of_that_colour(encoder: Encoder, pixels: np.ndarray):
    """The sign of life: each colour's word is closer to its own drawings than to the others', on average."""
    vectors = encoder.encode_photos(pixels)
    colours = [c for _ in KINDS for c in COLOURS]
    for colour, text in zip(COLOURS, encoder.encode_texts(list(COLOURS)), strict=True):
        scores = vectors @ text
        own = np.array([c == colour for c in colours])
        assert scores[own].mean() > scores[~own].mean(), colour


def test_a_large_batch_is_shared_by_the_cores_and_stays_in_order():
    builtin = encoders.load("builtin", threads=3)
    pixels = np.random.default_rng(1).integers(0, 256, (21, *builtin.size, 3), np.uint8)
    alone = np.concatenate([builtin.encode_photos(one[None]) for one in pixels])
    assert np.allclose(builtin.encode_photos(pixels), alone, atol=1e-5)
    assert builtin.encode_photos(pixels[:0]).shape == (0, builtin.dim)


def test_builtin_keeps_to_its_budget_and_has_a_card():
    total = sum(f.stat().st_size for f in BUILTIN.iterdir() if f.is_file())
    assert total <= 12_000_000
    card = (BUILTIN / "README.md").read_text()
    for word in ("licence", "in-domain", "held out", "colour histogram"):
        assert word in card


def test_an_encoder_directory_by_path(tmp_path: Path):
    copy = shutil.copytree(BUILTIN, tmp_path / "mine")
    mine, builtin = encoders.load(str(copy)), encoders.load("builtin")
    assert mine.id == builtin.id
    assert mine.name == str(copy.resolve())
    config = json.loads((copy / "encoder.json").read_text())
    (copy / "encoder.json").write_text(json.dumps({**config, "max_tokens": 16}))
    assert encoders.load(str(copy)).id != builtin.id  # preprocessing is part of what it is


@pytest.mark.usefixtures("torchvision_operators")
def test_broken_encoders_are_told(tmp_path: Path):
    with pytest.raises(UsageError, match="no encoder 'nope'"):
        encoders.load("nope")
    copy = shutil.copytree(BUILTIN, tmp_path / "mine")
    (copy / "photo.onnx").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"not a whole encoder .*photo\.onnx"):
        encoders.load(str(copy))
    (copy / "photo.onnx").unlink()
    with pytest.raises(InputError, match="not a whole encoder"):
        encoders.load(str(copy))
    (copy / "encoder.json").write_text("{")
    with pytest.raises(InputError, match="not a whole encoder"):
        encoders.load(str(copy))


def test_a_photo_only_encoder_refuses_texts(tmp_path: Path):
    copy = shutil.copytree(BUILTIN, tmp_path / "mine")
    config = json.loads((copy / "encoder.json").read_text())
    for key in ("text", "tokenizer"):
        config.pop(key)
    (copy / "encoder.json").write_text(json.dumps(config))
    made = encoders.load(str(copy))
    assert not made.reads_text
    with pytest.raises(UsageError, match="photos only"):
        made.encode_texts(["red"])


@pytest.mark.parametrize("damage", ["photo", "text", "tokenizer", "config", "dim"])
def test_a_damaged_encoder_directory_is_told(tmp_path: Path, damage: str):
    directory = tmp_path / "mine"
    shutil.copytree(BUILTIN, directory)
    config = json.loads((directory / "encoder.json").read_text())
    if damage == "config":
        (directory / "encoder.json").write_text("[]")
    elif damage == "dim":
        (directory / "encoder.json").write_text(json.dumps({**config, "dim": 7}))
    else:
        (directory / config[damage]).write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=r"mine: not a whole encoder .*export it again"):
        encoders.load(str(directory))
