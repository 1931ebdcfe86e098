"""Fine-tuning on one's own catalogue: weights read back as they were written, gains measured, nothing worse is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import COLOURS, KINDS, draw, write_csv

pytest.importorskip("torch", reason="needs torch: pip install torch==2.13.0, then the extra train")

import torch
from typer.testing import CliRunner

from lookalike import encoders, feedback
from lookalike.cli import app
from lookalike.errors import InputError
from lookalike.sources import open_source
from lookalike.training import adapt, pretrained
from lookalike.training.export import export
from lookalike.training.towers import PhotoTower, TextTower
from lookalike.types import Product

WORDS = ["[PAD]", "[UNK]", *COLOURS, *KINDS, "the", "##s"]
OWN_WORDS = {
    "red": "zorvik", "blue": "plumbo", "green": "tarnix", "black": "quoof", "shirt": "glimsel", "dress": "hoddle",
    "bag": "wexley",
}  # fmt: skip
"""A shop's own names, which no model knows before."""

BUILTIN = Path(encoders.__file__).parent.parent / "builtin"
SMALL = adapt.Options(epochs=1, least_steps=40, batch=32, rate=5e-4)
QUICK = adapt.Options(epochs=1, least_steps=40, batch=32, rate=3e-3, frozen=3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own")
    rows = []
    for n in range(160):
        colour, kind = list(COLOURS)[n % 4], KINDS[n % 3]
        draw(root / f"{n}.png", colour, kind, n // 12)
        rows.append(
            {
                "id": n,
                "image": f"{n}.png",
                "title": f"{OWN_WORDS[colour]} {OWN_WORDS[kind]}",
                "colour": colour,
                "type": kind,
            }
        )
    return write_csv(root / "own.csv", rows)


def random_model(directory: Path, quantise: bool) -> tuple[PhotoTower, TextTower]:
    torch.manual_seed(0)
    photo, text = PhotoTower(16, 0, 0.125).eval(), TextTower(torch.randn(len(WORDS), 192), dim=16, width=64).eval()
    with torch.no_grad():  # equal vectors, as layers begin with, would be stored once
        for p in text.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    calibration = np.random.default_rng(0).integers(0, 255, (64, 64, 32, 3), np.uint8)
    photo.calibrate((torch.from_numpy(calibration).permute(0, 3, 1, 2).float() - 128) / 128)
    export(photo, text, pretrained.tokenizer_of(WORDS), (64, 32), calibration, directory, "tiny", quantise)
    return photo, text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "tiny"
    random_model(directory, quantise=True)
    return directory


@pytest.mark.parametrize("quantise", [True, False])
def test_weights_are_read_back_as_they_were_written(tmp_path: Path, quantise: bool):
    photo, text = random_model(tmp_path / "tiny", quantise)
    again, words = adapt.load_towers(tmp_path / "tiny")
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 255, (8, 64, 32, 3), np.uint8))
    ids = torch.tensor([[2, 6, 0], [3, 7, 10]])
    with torch.no_grad():
        assert (again(pixels) * photo(pixels)).sum(1).min() > (0.98 if quantise else 0.99999)
        assert (words.eval()(ids) * text(ids)).sum(1).min() > 0.999  # 8-bit words


def test_the_built_in_model_can_be_read_back(table: Path):
    builtin = encoders.load("builtin")
    photo, text = adapt.load_towers(builtin.directory)  # type: ignore[attr-defined]
    data = adapt.load(open_source(table), builtin, print)
    with torch.no_grad():
        mine = photo.eval()(torch.from_numpy(data.photos[:8])).numpy()
        ids = torch.tensor([builtin._tokenizer.encode("red dress", add_special_tokens=False).ids])  # type: ignore[attr-defined]
        said = text.eval()(ids).numpy()
    assert (mine * builtin.encode_photos(data.photos[:8])).sum(1).min() > 0.97
    assert (said * builtin.encode_texts(["red dress"])).sum() > 0.9999


def test_held_out_products_are_whole_and_never_trained_on(table: Path, base: Path):
    data = adapt.load(open_source(table), encoders.load(str(base)), print)
    assert 0 < data.test.sum() < len(data.test) / 2
    run = adapt.Adaptation(data, base, QUICK)
    assert not data.test[run.train_rows].any()
    held, trained = ({data.products[r] for r in np.flatnonzero(side)} for side in (data.test, ~data.test))
    assert not held & trained
    assert list(data.columns) == ["colour", "type"]


def test_votes_teach_words_that_no_title_has(table: Path, tmp_path: Path):
    """Visitors found red shirts good for a word of their own, and blue ones bad."""
    rows = [r.split(",") for r in table.read_text().splitlines()[1:]]
    votes = [
        feedback.vote(r[0], "up" if r[3] == "red" else "down", {"text": "vintara"}) for r in rows if r[4] == "shirt"
    ]
    votes += [feedback.vote(rows[0][0], "up", {"like": "7"}), feedback.vote("gone", "up", {"text": "vintara"})]
    lines: list[str] = []
    found = adapt.main(
        open_source(table), BUILTIN, tmp_path / "new", tmp_path / "work", SMALL, lines.append, votes=votes
    )
    assert f"{len(votes) - 2} votes on words; 2 on photos or on products not here teach nothing" in lines
    name = "voted words → product, found in 10"
    assert found["after"][name]["mean"] > found["before"][name]["mean"] + 0.2, found
    assert any(" votes " in line for line in lines if line.startswith("step "))
    made = encoders.load(str(tmp_path / "new"))
    photos = {c: draw(tmp_path / f"{c}.png", c, "shirt", 1) for c in ("red", "blue")}
    word = made.encode_texts(["vintara"])[0]
    red, blue = (
        made.encode_photos(made.prepare(Image.open(p).convert("RGB"))[None])[0] @ word for p in photos.values()
    )
    assert red > blue + 0.1


def test_it_is_kept_where_it_is_better_and_goes_on_where_it_was(table: Path, tmp_path: Path):
    # A random net without batch normalisation learns nothing in forty steps: this takes the real one.
    base, lines = BUILTIN, list[str]()

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 20/"):
            raise Stop

    with pytest.raises(Stop):
        adapt.main(open_source(table), base, tmp_path / "new", tmp_path / "work", SMALL, stop, save_every=0)
    found = adapt.main(open_source(table), base, tmp_path / "new", tmp_path / "work", SMALL, lines.append)
    assert any(line.startswith("going on at step") for line in lines)
    assert found["better"], found
    assert found["gain"]["low"] > 0
    assert found["held_out"] >= 15
    assert json.loads(json.dumps(found)) == found
    made = encoders.load(str(tmp_path / "new"))
    again = adapt.measure(adapt.load(open_source(table), made, print), made)
    for name, value in found["after"].items():  # what was measured is what was written
        assert np.nanmean(again[name]) == pytest.approx(value["mean"], abs=1e-3)
    assert not (tmp_path / "work" / "adapt.safetensors").exists()  # done: the next run is another one
    with pytest.raises(InputError, match="not an empty or new directory"):
        adapt.main(open_source(table), base, tmp_path / "new", tmp_path / "work", SMALL, print)


def test_nothing_is_written_where_nothing_is_gained(table: Path, base: Path, tmp_path: Path):
    idle = adapt.Options(**{**vars(QUICK), "rate": 0.0, "least_steps": 1, "epochs": 0.01})
    found = adapt.main(open_source(table), base, tmp_path / "new", tmp_path / "work", idle, print)
    assert not found["better"]
    assert not (tmp_path / "new").exists()


def test_too_little_and_the_wrong_model_are_refused(table: Path, tmp_path: Path):
    few = write_csv(table.parent / "few.csv", [{"id": 1, "image": "1.png", "title": "x"}])
    arguments = ["train", "adapt", str(few), "--out", str(tmp_path / "new"), "--work", str(tmp_path / "work")]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, InputError)
    assert "1 products with a photo and a title or text columns; at least 100" in str(done.exception)
    done = CliRunner().invoke(app, [*arguments, "--encoder", "fake"])
    assert "only builtin and exported directories" in str(done.exception)


def test_products_that_share_a_photo_stay_on_one_side_and_charts_are_left_out(tmp_path: Path, base: Path):
    """Every second product shares a photo with the one before it, as its first; all have one size chart."""
    draw(tmp_path / "chart.png", "black", "bag")
    products = []
    for n in range(160):
        for name, mark in ((f"{n}.png", n), (f"pair{n // 2}.png", 200 + n // 2)):
            with Image.open(draw(tmp_path / name, "red", "bag")) as image:
                image.putpixel((0, 0), (mark % 256, mark // 256, 0))  # no two alike
                image.save(tmp_path / name)
        photos = [tmp_path / f"pair{n // 2}.png", tmp_path / f"{n}.png", tmp_path / "chart.png"]
        products.append(Product(f"p{n}", photos, f"bag {n}"))
    lines: list[str] = []
    data = adapt.load(open_source(products), encoders.load(str(base)), lines.append)
    assert "160 photos that each stand at more than 8 products" in lines[-1]
    assert len(data.products) == 320
    assert 0 < data.test.sum() < 160
    side: dict[int, set[bool]] = {}
    for product, test in zip(data.products, data.test, strict=True):
        side.setdefault(int(product[1:]) // 2, set()).add(bool(test))
    assert len(side) == 80
    assert all(len(sides) == 1 for sides in side.values())
    assert len(data.first) == 160


def test_sparse_tables_are_learnt_from_where_they_speak(tmp_path: Path, base: Path):
    products = []
    for n in range(130):
        draw(tmp_path / f"{n}.png", list(COLOURS)[n % 4], KINDS[n % 3], n // 12)
        attributes = {"colour": list(COLOURS)[n % 4]} if n % 2 else {"type": KINDS[n % 3], "weight": 3, "empty": None}
        products.append(Product(f"p{n}", [tmp_path / f"{n}.png"], "", attributes))  # type: ignore[arg-type]
    data = adapt.load(open_source(products), encoders.load(str(base)), print)
    assert list(data.columns) == ["type", "colour"]
    run = adapt.Adaptation(data, base, QUICK)
    assert all("attributes" in run.advance() for _ in range(5))
    assert all(
        np.isnan(v).any() and not np.isnan(v).all() for v in adapt.measure(data, encoders.load(str(base))).values()
    )
    silent = [Product(f"p{n}", [tmp_path / f"{n}.png"], "named" if n < 2 else "") for n in range(130)]
    with pytest.raises(InputError, match="2 products with a photo and a title or text columns"):
        adapt.load(open_source(silent), encoders.load(str(base)), print)


def test_a_checkpoint_of_something_else_or_a_damaged_one_is_refused(table: Path, base: Path, tmp_path: Path):
    data = adapt.load(open_source(table), encoders.load(str(base)), print)
    run = adapt.Adaptation(data, base, QUICK)
    run.advance()
    run.save(tmp_path / "x.safetensors")
    renamed = adapt.OwnData(**{**vars(data), "digest": "other titles"})
    with pytest.raises(InputError, match="another model, options or data"):
        adapt.Adaptation(renamed, base, QUICK).resume(tmp_path / "x.safetensors")
    again = adapt.Adaptation(data, base, QUICK)
    again.resume(tmp_path / "x.safetensors")
    assert (again.step, again.advance()) == (1, run.advance())  # as if it had never stopped
    (tmp_path / "x.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(InputError, match="remove it and begin again"):
        again.resume(tmp_path / "x.safetensors")


def test_folders_that_would_fail_at_the_end_are_refused_at_the_start(table: Path, base: Path, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    for out, work, message in (
        (tmp_path / "file", tmp_path / "w", "not an empty or new directory"),
        (tmp_path / "new", tmp_path / "file", "cannot be made"),
        (tmp_path / "w", tmp_path / "w", "must differ"),
    ):
        with pytest.raises(InputError, match=message):
            adapt.main(open_source(table), base, out, work, QUICK, print)
    (tmp_path / "foreign").mkdir()
    for name in ("encoder.json", "text.onnx", "photo.onnx", "tokenizer.json"):
        (tmp_path / "foreign" / name).write_bytes((base / name).read_bytes())
    (tmp_path / "foreign" / "photo.onnx").write_bytes((base / "text.onnx").read_bytes())
    with pytest.raises(InputError, match=r"not a whole encoder|not a model that lookalike trained"):
        adapt.main(open_source(table), tmp_path / "foreign", tmp_path / "new", tmp_path / "w", QUICK, print)
