"""Recipes: a run learns, can be killed at any moment and ends the same, and gives an encoder that serves without torch."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import torchvision_shim  # noqa: F401
from conftest import COLOURS, KINDS, draw, write_csv
from lookalike import encoders, images
from lookalike.cli import app
from lookalike.encoders.torch import Backbone, Preprocess
from lookalike.errors import InputError, UsageError
from lookalike.sources import open_source
from lookalike.training import checkpoint, loop, plots, run
from lookalike.training.augment import POLICIES, augment
from lookalike.training.options import (
    RECIPES,
    Classify,
    Contrast,
    Metric,
    Options,
    Scratch,
    Siamese,
    checked,
    from_json,
)
from lookalike.training.photos import Photos, held_out, pack, split

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SMALL = {"size": "32x32", "least": 4, "batch": 8, "epochs": 2, "precision": "32-true"}
QUIET: list[str] = []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 garments of three kinds and four colours; the last two rows have one photo."""
    root = tmp_path_factory.mktemp("shop")
    rows: list[dict[str, object]] = []
    for kind in KINDS:
        for colour in COLOURS:
            for shade in range(6):
                n = len(rows)
                draw(root / "img" / f"{n}.jpg", colour, kind, shade)
                rows.append({"id": f"p{n}", "image": f"img/{n}.jpg", "title": f"{colour} {kind}", "category": kind,
                             "colour": colour})  # fmt: skip
    rows.append({**rows[-1], "id": "twin"})
    return write_csv(root / "shop.csv", rows)


def trained(recipe: str, shop: Path, folder: Path, **given: Any) -> dict[str, Any]:
    options = checked(RECIPES[recipe](**{"start": "simple-cnn", "train": "all", **SMALL, **given}))
    return run.main(recipe, open_source(shop), folder / "out", folder / "work", options, {}, QUIET.append)


def packed(shop: Path, work: Path, **given: Any) -> Photos:
    options = Classify(**{**SMALL, **given})
    return pack(open_source(shop), Preprocess((32, 32)), work, options, QUIET.append)


class Killed(Exception):
    """Stands for ``kill -9``: nothing of the run may be tidied up."""


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run die after so many steps, wherever it is."""
    real, taken = loop.Recipe.training_step, []

    def step(self: loop.Recipe, rows: torch.Tensor, at: int) -> torch.Tensor:
        if len(taken) == steps:
            raise Killed
        taken.append(at)
        return real(self, rows, at)

    monkeypatch.setattr(loop.Recipe, "training_step", step)


RUNS = {
    "classify": {"least": 20},
    "siamese": {"dim": 16, "negatives": 2, "mine": True},
    "metric": {"dim": 16, "loss": "proxy-anchor", "k": 2, "schedule": "cosine"},
}


@pytest.mark.parametrize("recipe", RUNS)
def test_a_killed_run_ends_as_an_undisturbed_one(recipe: str, shop: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "write_encoder", lambda *given, **named: None)
    whole = trained(recipe, shop, tmp_path / "whole", checkpoint_steps=2, **RUNS[recipe])
    steps = len(whole["history"])
    assert steps == 2
    with monkeypatch.context() as m:
        killed_after(5, m)
        with pytest.raises(Killed):
            trained(recipe, shop, tmp_path / "cut", checkpoint_steps=2, **RUNS[recipe])
    assert not (tmp_path / "cut" / "out").exists()
    QUIET.clear()
    cut = trained(recipe, shop, tmp_path / "cut", checkpoint_steps=2, **RUNS[recipe])
    assert any("going on" in line for line in QUIET)
    a, b = ([{k: v for k, v in line.items() if k != "seconds"} for line in found["history"]] for found in (whole, cut))
    assert a == b
    kept = [
        checkpoint.read_tree(tmp_path / n / "work" / "best.safetensors", torch.device("cpu")) for n in ("whole", "cut")
    ]
    assert kept[0].keys() == kept[1].keys()
    for name, value in kept[0].items():
        assert torch.equal(value, kept[1][name]), name


def test_killed_in_a_later_epoch_and_at_its_end(shop: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "write_encoder", lambda *given, **named: None)
    whole = trained("classify", shop, tmp_path / "whole", epochs=3, checkpoint_steps=3)
    per_epoch = len(loop_steps(shop, tmp_path))
    for n, steps in enumerate((per_epoch, 2 * per_epoch + 4)):
        with monkeypatch.context() as m:
            killed_after(steps, m)
            with pytest.raises(Killed):
                trained("classify", shop, tmp_path / f"cut{n}", epochs=3, checkpoint_steps=3)
        cut = trained("classify", shop, tmp_path / f"cut{n}", epochs=3, checkpoint_steps=3)
        assert [line["training_loss"] for line in cut["history"]] == [
            line["training_loss"] for line in whole["history"]
        ]


def loop_steps(shop: Path, folder: Path) -> list[Any]:
    photos = packed(shop, folder / "count")
    return loop.Recipe(photos, Backbone(nn.Identity(), 3, Preprocess((32, 32)), "", ""), Classify(**SMALL)).draw(0)


@pytest.mark.parametrize("recipe", RUNS)
def test_a_recipe_learns_and_gives_an_encoder(recipe: str, shop: Path, tmp_path: Path):
    found = trained(recipe, shop, tmp_path, epochs=6, rate=3e-3, augment="light", **RUNS[recipe])
    first, last = found["history"][0], found["history"][-1]
    assert last["training_loss"] < first["training_loss"]
    assert found["after"]["same category P@10"]["mean"] > found["before"]["same category P@10"]["mean"] - 0.05
    made = encoders.load(str(tmp_path / "out"))
    assert made.size == (32, 32)
    assert not made.reads_text
    photo = next((shop.parent / "img").iterdir())
    vector = made.encode_photos(made.prepare(images.read(photo))[None])
    assert vector.shape == (1, made.dim)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    work = tmp_path / "work"
    assert len((work / "held-out.txt").read_text().splitlines()) == found["held_out"]
    for name in ("config.json", "metrics.csv", "report.html", "report.json", "curves.png", "classes.png", "augmentation.png",
                 "distances.png"):  # fmt: skip
        assert (work / name).stat().st_size > 100, name
    assert len((work / "metrics.csv").read_text().splitlines()) == 7
    assert list((work / "tensorboard").glob("events.out*"))
    assert json.loads((tmp_path / "out" / "encoder.json").read_text())["training"]["recipe"] == recipe


def test_metric_learns_items_and_holds_out_whole_ones(shop: Path, tmp_path: Path):
    """As In-Shop has them: a product is a label, with several photos."""
    names = [f"img/{n}.jpg" for n in range(72)]
    rows: list[dict[str, object]] = [
        {"id": f"i{n}", "image": "|".join(names[n * 3 : n * 3 + 3]), "title": "x"} for n in range(24)
    ]
    table = write_csv(shop.parent / "items.csv", rows)
    options = Metric(**{**SMALL, "label": "id", "least": 2})
    photos = pack(open_source(table), Preprocess((32, 32)), tmp_path / "p", options, QUIET.append)
    held = {p for p, out in zip(photos.products, photos.validation, strict=True) if out}
    assert 3 <= len(held) <= 6
    assert not held & {p for p, out in zip(photos.products, photos.validation, strict=True) if not out}
    found = trained("metric", table, tmp_path, label="id", least=2, k=3, batch=12, epochs=1)
    assert found["before"]["same id P@1"]["mean"] > 0  # the product's other photos are what is right
    with pytest.raises(UsageError, match="train metric learns items"):
        trained("classify", table, tmp_path / "c", label="id", least=2)


def test_an_epoch_that_diverged_is_not_the_best(shop: Path, tmp_path: Path):
    recipe = loop.Recipe(
        packed(shop, tmp_path), Backbone(nn.Identity(), 3, Preprocess((32, 32)), "", ""), Classify(**SMALL)
    )
    recipe.history = [{"validation_loss": v} for v in (float("nan"), 2.0, 1.0, float("nan"))]
    assert recipe.best() == 2


def test_what_is_exported_is_what_was_trained(shop: Path, tmp_path: Path):
    trained("metric", shop, tmp_path, k=2)
    made = encoders.load(str(tmp_path / "out"))
    photos = pack(
        open_source(shop), Preprocess((32, 32)), tmp_path / "work", Metric(**{**SMALL, "least": 4}), QUIET.append
    )
    from lookalike.training import pretrained

    backbone = pretrained.start("simple-cnn", (32, 32))
    recipe = run.recipe_of(photos, backbone, Metric(**{**SMALL, "k": 2, "start": "simple-cnn", "train": "all"}))
    recipe.encoder().load_state_dict(checkpoint.read_tree(tmp_path / "work" / "best.safetensors", torch.device("cpu")))
    expected = loop.encode(recipe.encoder(), photos, torch.device("cpu"), QUIET.append)
    cosines = (made.encode_photos(photos.pixels(np.arange(8)).numpy()) * expected[:8]).sum(1)
    assert cosines.min() > 0.9999


def test_a_figure_of_an_epoch_is_the_mean_over_its_photos(shop: Path, tmp_path: Path, monkeypatch):
    """Not over its batches, of which the last is smaller."""
    monkeypatch.setattr(run, "write_encoder", lambda *given, **named: None)
    found = trained("classify", shop, tmp_path, train="head", rate=0.0, augment="none", epochs=1, seed=2)
    photos = found["photos"] - found["held_out"]
    assert photos % SMALL["batch"] > 1
    right = found["history"][0]["training_accuracy"] * photos
    assert right == pytest.approx(round(right), abs=1e-3)


def test_measuring_the_start_is_no_time_of_training(shop: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "write_encoder", lambda *given, **named: None)
    clock = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    real = run._before

    def slow(*given: Any) -> Any:
        clock[0] += 1000
        return real(*given)

    monkeypatch.setattr(run, "_before", slow)
    assert trained("classify", shop, tmp_path, epochs=1)["seconds"] == 0


def test_a_start_measured_on_other_photos_is_measured_again(shop: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "write_encoder", lambda *given, **named: None)
    table = shop.parent / "grows.csv"
    lines = shop.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:50]))
    with monkeypatch.context() as m:
        killed_after(0, m)
        with pytest.raises(Killed):
            trained("classify", table, tmp_path)
    table.write_text("".join(lines))
    found = trained("classify", table, tmp_path)
    whole = trained("classify", shop, tmp_path / "whole")
    assert found["photos"] == 73
    assert found["before"] == whole["before"]


def test_nothing_to_learn_and_no_negatives_are_told(shop: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--train head: nothing is left to learn"):
        trained("metric", shop, tmp_path / "a", train="head", dim=0)
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    for row in rows:
        row["split"] = "val" if row["category"] == "bag" and row["colour"] != "red" else "train"
    table = write_csv(shop.parent / "one.csv", rows)
    with pytest.raises(InputError, match="all validation photos are of one label"):
        trained("siamese", table, tmp_path / "b")


# Contrast


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP with random weights, laid out as open_clip's hub has them."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


WORDS = {"rate": 3e-3, "decay": 0.01, "batch": 12, "size": "", "least": 1}


def test_contrast_learns_titles_and_gives_an_encoder_of_both(shop: Path, clip: Path, tmp_path: Path):
    given = {**WORDS, "start": str(clip), "epochs": 8, "template": "{colour} {category}", "interpolate": "auto"}
    found = trained("contrast", shop, tmp_path, **given)
    name = "title → photo, found in 10"
    assert found["after"][name]["mean"] > found["before"][name]["mean"]
    assert [t["share"] for t in found["interpolation"]] == [n / 10 for n in range(11)]
    kept = [t for t in found["interpolation"] if t["kept"]]
    assert len(kept) == 1
    assert kept[0]["found in 10"] >= 0.99 * max(t["found in 10"] for t in found["interpolation"])
    assert found["interpolation"][0]["found in 10"] < kept[0]["found in 10"]
    made = encoders.load(str(tmp_path / "out"))
    assert made.reads_text
    texts = made.encode_texts(["red dress", "blue bag"])
    assert texts.shape == (2, 32)
    photo = made.encode_photos(made.prepare(images.read(shop.parent / "img" / "24.jpg"))[None])  # a red dress
    assert (photo @ texts[0]).item() > (photo @ texts[1]).item()


def test_a_killed_contrast_run_ends_as_an_undisturbed_one(shop: Path, clip: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "write_encoder", lambda *given, **named: None)
    given = {**WORDS, "start": str(clip), "chunk": 5, "loss": "siglip", "checkpoint_steps": 2, "interpolate": "1"}
    whole = trained("contrast", shop, tmp_path / "whole", **given)
    with monkeypatch.context() as m:
        from lookalike.training.contrast import ContrastRecipe

        real, taken = ContrastRecipe.training_step, []

        def step(self: Any, rows: torch.Tensor, at: int) -> torch.Tensor:
            if len(taken) == 7:
                raise Killed
            taken.append(at)
            return real(self, rows, at)

        m.setattr(ContrastRecipe, "training_step", step)
        with pytest.raises(Killed):
            trained("contrast", shop, tmp_path / "cut", **given)
    cut = trained("contrast", shop, tmp_path / "cut", **given)
    a, b = ([{k: v for k, v in line.items() if k != "seconds"} for line in f["history"]] for f in (whole, cut))
    assert a == b
    assert whole["after"] == cut["after"]


@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_a_step_in_chunks_is_the_step_of_the_whole_batch(
    loss: str, shop: Path, clip: Path, tmp_path: Path, monkeypatch
):
    """Gradient caching gives the gradients of the whole batch."""
    from lookalike.encoders import clip as clips
    from lookalike.training.contrast import ContrastRecipe

    grads = []
    for chunk in (0, 5):
        backbone = clips.backbone(str(clip))
        options = Contrast(**{**SMALL, **WORDS, "start": str(clip), "train": "all", "chunk": chunk, "loss": loss,
                              "augment": "none"})  # fmt: skip
        photos = pack(open_source(shop), backbone.preprocess, tmp_path / "work", options, QUIET.append)
        recipe = ContrastRecipe(photos, backbone, options)
        recipe.train()
        monkeypatch.setattr(ContrastRecipe, "current_epoch", 0)
        monkeypatch.setattr(ContrastRecipe, "global_rank", 0)

        class Stays:
            def step(self) -> None:
                pass

            zero_grad = step

        monkeypatch.setattr(recipe, "optimizers", Stays)
        monkeypatch.setattr(recipe, "lr_schedulers", lambda: None)
        monkeypatch.setattr(recipe, "manual_backward", lambda value: value.backward())
        value = recipe.training_step(torch.arange(0, 60, 5), 0)
        if not chunk:
            value.backward()
        grads.append({n: p.grad.clone() for n, p in recipe.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert len(grads[0]) > 40
    for name, value in grads[0].items():
        assert torch.allclose(value, grads[1][name], atol=1e-5, rtol=1e-3), name


def test_contrast_refuses_what_has_no_words(shop: Path, clip: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"--template '\{hue\}': no column 'hue'; there are category, colour"):
        trained("contrast", shop, tmp_path, **{**WORDS, "start": str(clip), "template": "{hue}"})
    rows: list[dict[str, object]] = [{"id": n, "image": f"img/{n}.jpg"} for n in range(40)]
    wordless = write_csv(shop.parent / "wordless.csv", rows)
    rows = [{**row, "title": f"{n}_7"} for n, row in enumerate(rows)]  # a number is no word
    coded = write_csv(shop.parent / "coded.csv", rows)
    with pytest.raises(InputError, match="0 different texts to learn from"):
        trained("contrast", coded, tmp_path / "c", **{**WORDS, "start": str(clip)})
    with pytest.raises(InputError, match="0 different texts to learn from"):
        trained("contrast", wordless, tmp_path / "b", **{**WORDS, "start": str(clip)})


def test_a_photo_without_words_takes_no_part_in_contrast(shop: Path, tmp_path: Path):
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    rows[0]["title"] = rows[1]["title"] = ""
    rows[1]["colour"] = ""
    table = open_source(write_csv(shop.parent / "few-words.csv", rows))
    given = {**SMALL, "least": 1}
    photos = pack(table, Preprocess((32, 32)), tmp_path / "a", Contrast(**given), QUIET.append)
    assert not {"p0", "p1"} & set(photos.products)
    photos = pack(table, Preprocess((32, 32)), tmp_path / "a", Contrast(**given, template="in {colour}"), QUIET.append)
    assert "p0" in photos.products
    assert "p1" not in photos.products


def contrast_recipe(shop: Path, clip: Path, work: Path, **given: Any) -> Any:
    from lookalike.encoders import clip as clips
    from lookalike.training.contrast import ContrastRecipe

    backbone = clips.backbone(str(clip))
    options = Contrast(**{**SMALL, **WORDS, "start": str(clip), "train": "all", **given})
    return ContrastRecipe(pack(open_source(shop), backbone.preprocess, work, options, QUIET.append), backbone, options)


def test_parts_of_both_towers_can_be_named(shop: Path, clip: Path, tmp_path: Path):
    recipe = contrast_recipe(shop, clip, tmp_path, train="visual.transformer, logit_scale")
    learning = {n for n, p in recipe.text.model.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in recipe.text.model.named_parameters() if n.startswith(("visual.transformer.", "logit_scale"))
    }


def test_temperatures_of_the_two_losses(shop: Path, clip: Path, tmp_path: Path):
    """CLIP's is limited to 100 and can come down from there; SigLIP's has no limit."""
    torch.manual_seed(0)
    photos, texts = nn.functional.normalize(torch.randn(2, 4, 32), dim=-1)
    recipe = contrast_recipe(shop, clip, tmp_path, loss="siglip")
    with torch.no_grad():
        recipe.scale.fill_(5.0)
    found = recipe._compared(photos, texts, list("abcd"))["loss"]
    logits = np.exp(5.0) * (photos @ texts.T) - 10
    signs = 2 * torch.eye(4) - 1
    assert found.item() == pytest.approx((-nn.functional.logsigmoid(signs * logits).sum() / 4).item(), rel=1e-5)
    recipe = contrast_recipe(shop, clip, tmp_path)
    with torch.no_grad():
        recipe.scale.fill_(5.0)
    recipe._compared(photos, texts, list("abcd"))["loss"].backward()
    assert recipe.scale.exp().item() == pytest.approx(100)
    assert abs(recipe.scale.grad.item()) > 1e-3
    with pytest.raises(UsageError, match="--devices 1"):
        contrast_recipe(shop, clip, tmp_path, chunk=4, devices=2)


# Data


def test_products_that_share_a_photo_stay_on_one_side():
    products = [f"p{n}" for n in range(100)] + ["twin"]
    digests = [f"{(n * 7919) % 1009:04d}" for n in range(100)] + [f"{(5 * 7919) % 1009:04d}"]
    labels = np.array([n % 2 for n in range(100)] + [1])
    held = split(products, digests, labels, 0.2)
    assert held[5] == held[100]
    for label in (0, 1):
        assert 0.1 < held[labels == label].mean() < 0.3
    assert (split(products, digests, labels, 0.2) == held).all()
    assert not split(["a"], ["1"], np.array([0]), 0.5).any()


def test_rare_labels_are_left_out_or_merged_and_counted(shop: Path, tmp_path: Path):
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    for n, row in enumerate(rows[:3]):
        row["category"] = f"odd{n}"
    table = write_csv(shop.parent / "rare.csv", rows)
    photos = pack(open_source(table), Preprocess((32, 32)), tmp_path / "a", Classify(**SMALL), QUIET.append)
    assert photos.rare == {"odd0": 1, "odd1": 1, "odd2": 1}
    assert set(photos.names) == set(KINDS)
    merged = Classify(**{**SMALL, "rare": "merge", "least": 5})
    photos = pack(open_source(table), Preprocess((32, 32)), tmp_path / "b", merged, QUIET.append)
    assert set(photos.names) == {*KINDS, "other"}
    with pytest.raises(InputError, match=r"at least two labels with 500 photos are wanted, category has 0 .*--least"):
        pack(
            open_source(table), Preprocess((32, 32)), tmp_path / "c", Classify(**{**SMALL, "least": 500}), QUIET.append
        )


def test_labels_of_several_columns_and_wrong_ones(shop: Path, tmp_path: Path):
    photos = packed(shop, tmp_path / "a", label="category,colour")
    assert len(photos.names) == 12
    assert "bag / red" in photos.names
    with pytest.raises(InputError, match=r"no column 'colr' for --label; there are id, "):
        packed(shop, tmp_path / "b", label="colr")


def test_a_broken_photo_is_named_and_the_rest_goes_on(shop: Path, tmp_path: Path):
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    (shop.parent / "img" / "broken.jpg").write_bytes(b"no photo")
    table = write_csv(shop.parent / "broken.csv", [*rows, {**rows[0], "id": "x", "image": "img/broken.jpg"}])
    lines: list[str] = []
    photos = pack(open_source(table), Preprocess((32, 32)), tmp_path, Classify(**SMALL), lines.append)
    assert len(photos.labels) == len(rows)
    assert any("broken.jpg" in line for line in lines)


def test_packing_goes_on_where_it_stopped(shop: Path, tmp_path: Path, monkeypatch):
    expected = packed(shop, tmp_path / "whole").packed.copy()
    packed(shop, tmp_path / "cut")
    listing = tmp_path / "cut" / "photos.jsonl"
    lines = listing.read_text().splitlines()
    listing.write_text("\n".join(lines[:31]) + '\n{"photo": "cut o')
    pixels = np.load(tmp_path / "cut" / "photos.npy", mmap_mode="r+")
    pixels[30:] = 0
    pixels.flush()
    read: list[str] = []
    real = images.load
    monkeypatch.setattr(images, "load", lambda name, **given: (read.append(str(name)), real(name, **given))[1])
    assert (packed(shop, tmp_path / "cut").packed == expected).all()
    assert len(read) == len(lines) - 31


def test_too_little_room_is_told_before_anything_is_packed(shop: Path, tmp_path: Path, monkeypatch):
    from types import SimpleNamespace

    from lookalike.training import photos

    monkeypatch.setattr(photos, "disk_usage", lambda folder: SimpleNamespace(free=200_000))
    with pytest.raises(InputError, match=r"73 photos of 32×32 take 0\.0 GB, .*--size"):
        packed(shop, tmp_path)


def test_test_products_and_held_out_ones_take_no_part(shop: Path, tmp_path: Path):
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    for n, row in enumerate(rows):
        row["split"] = ("train", "train", "val", "test")[n % 4]
    table = write_csv(shop.parent / "split.csv", rows)
    (tmp_path / "ids.txt").write_text("p0\np1\n")
    (tmp_path / "kagl.json").write_text(json.dumps({"a dress": {"p0": 1}, "a bag": {"p1": 1, "p4": 1}}))
    assert held_out(tmp_path / "ids.txt") == {"p0", "p1"}
    assert held_out(tmp_path / "kagl.json") == {"p0", "p1", "p4"}
    options = Classify(**SMALL, hold_out=str(tmp_path / "ids.txt"))
    photos = pack(open_source(table), Preprocess((32, 32)), tmp_path / "work", options, QUIET.append)
    where = {str(r["id"]): r["split"] for r in rows}
    assert {where[p] for p in photos.products} == {"train", "val"}
    assert not {"p0", "p1"} & set(photos.products)
    assert all((where[p] == "val") == held for p, held in zip(photos.products, photos.validation, strict=True))


def test_photos_that_equal_held_out_ones_take_no_part(shop: Path, tmp_path: Path):
    """The product "twin" has the photo of p71."""
    assert {"p71", "twin"} <= set(packed(shop, tmp_path / "a").products)
    (tmp_path / "ids.txt").write_text("p71\n")
    photos = packed(shop, tmp_path / "a", hold_out=str(tmp_path / "ids.txt"))
    assert not {"p71", "twin"} & set(photos.products)
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    for n, row in enumerate(rows):
        row["split"] = "train" if row["id"] == "twin" or n % 4 else "val"
    rows[71]["split"] = "val"
    photos = packed(write_csv(shop.parent / "twins.csv", rows), tmp_path / "b")
    assert "p71" in photos.products
    assert "twin" not in photos.products


# Parts


def test_a_tree_comes_back_from_disk(tmp_path: Path):
    tree = {"a": [1, (2.5, None, "x")], 3: {"t": torch.arange(6).view(2, 3)}, "flag": True}
    checkpoint.save_tree(tmp_path / "t.safetensors", tree)
    back = checkpoint.read_tree(tmp_path / "t.safetensors", torch.device("cpu"))
    assert torch.equal(back[3].pop("t"), tree[3].pop("t"))  # type: ignore[union-attr, index]
    assert back == tree
    with pytest.raises(TypeError, match="object cannot be kept"):
        checkpoint.save_tree(tmp_path / "t.safetensors", {"x": object()})
    (tmp_path / "t.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"t\.safetensors: cannot be read"):
        checkpoint.read_tree(tmp_path / "t.safetensors", torch.device("cpu"))


@pytest.mark.parametrize("name", POLICIES)
def test_policies_are_drawn_from_their_generator_alone(name: str):
    photos = torch.full((4, 32, 24, 3), 255, dtype=torch.uint8)
    photos[:, 8:24, 6:18] = torch.tensor([200, 30, 40], dtype=torch.uint8)
    once, again = (augment(photos, POLICIES[name], torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == (4, 3, 32, 24)
    red = once[:, 0] - once[:, 1]
    assert red.amax() > 100  # it is still red
    if name == "none":
        assert torch.equal(once, photos.permute(0, 3, 1, 2).float())


def test_photos_are_warped_as_exactly_in_mixed_precision():
    photos = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = augment(photos, POLICIES["strong"], torch.Generator().manual_seed(1))
    assert torch.equal(mixed, augment(photos, POLICIES["strong"], torch.Generator().manual_seed(1)))


def test_the_last_stage_of_resnet_is_layer4_and_frozen_norms_do_not_move():
    import timm

    net = timm.create_model("resnet18", num_classes=0)
    still = loop.freeze(net, "last")
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad} == {"layer4"}
    net.train()
    for module in still:
        module.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.randn(2, 3, 64, 64))
    moved = {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"layer4"}
    loop.freeze(net, "layer3, layer4")
    assert {n.split(".")[0] for n, p in net.named_parameters() if p.requires_grad} == {"layer3", "layer4"}
    loop.freeze(net, "head")
    assert not any(p.requires_grad for p in net.parameters())
    with pytest.raises(UsageError, match=r"--train layer9: no layer is named so; there are .*layer4\.1"):
        loop.freeze(net, "layer9")


@pytest.mark.parametrize(
    ("name", "beginnings"),
    [
        ("convnext_atto", {"stages.3", "head.norm"}),
        ("vgg11_bn", {"features.25", "features.26"}),  # timm takes each layer for a stage
        ("vit_tiny_patch16_224", {"blocks.11", "norm"}),
    ],
)
def test_a_last_stage_is_more_than_a_norm(name: str, beginnings: set[str]):
    import timm

    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    if hasattr(net, "pre_logits"):
        net.pre_logits = nn.Identity()
    loop.freeze(net, "last")
    learning = {n for n, p in net.named_parameters() if p.requires_grad}
    assert learning == {n for n, _ in net.named_parameters() if n.startswith(tuple(f"{b}." for b in beginnings))}


@pytest.mark.parametrize("name", ["triplet", "multi-similarity", "contrastive", "supcon", "arcface", "circle"])
def test_each_loss_of_metric_is_lower_for_vectors_that_are_apart(name: str):
    from lookalike.training.recipes import _criterion

    torch.manual_seed(0)
    criterion, miner = _criterion(name, 4, 8)
    labels = torch.arange(4).repeat_interleave(4)
    centres = criterion.W.T.detach() if name == "arcface" else torch.eye(8)[:4]
    apart = nn.functional.normalize(centres[labels] + 0.01 * torch.randn(16, 8), dim=-1)
    mixed = nn.functional.normalize(torch.randn(16, 8), dim=-1)
    losses = [criterion(v, labels, miner(v, labels) if miner else None).item() for v in (apart, mixed)]
    assert losses[0] < losses[1]


def test_the_contrastive_loss_by_hand(shop: Path, tmp_path: Path):
    """Mean of d over positive pairs plus mean of max(0, margin − d) over negative ones, over pairs that are not 0."""
    from lookalike.training.recipes import SiameseRecipe

    photos = packed(shop, tmp_path)

    class Flat(nn.Module):
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return x

    backbone = Backbone(Flat(), 3, Preprocess((32, 32)), "flat", "")
    recipe = SiameseRecipe(photos, backbone, Siamese(**{**SMALL, "dim": 0, "start": "x", "train": "all"}))
    x = torch.zeros(6, 3, 1, 1)
    x[[0, 3], 0] = x[[1, 4], 1] = 1.0
    x[[2, 5], :2] = 2**-0.5
    rows = torch.tensor([0, 1, 30] * 2)
    found = recipe.loss(rows, x)
    positive, negative = 2**0.5, (2 - 2**0.5) ** 0.5
    assert found["positive_distance"].item() == pytest.approx(positive, abs=1e-3)
    assert found["negative_distance"].item() == pytest.approx(negative, abs=1e-3)
    assert found["loss"].item() == pytest.approx(positive + max(0, 1 - negative), abs=1e-3)
    assert found["accuracy"].item() == 0.5  # the positive pair is too far, the negative one far enough


# Options and the command line


def test_options_out_of_range_are_told():
    for given, message in (
        ({"augment": "wild"}, "--augment wild: choose one of none, light"),
        ({"epochs": 0}, "--epochs 0: at least 1"),
        ({"size": "big"}, "--size big: HEIGHTxWIDTH"),
        ({"validation": 0.95}, "--validation"),
        ({"smoothing": 3.0}, "--smoothing 3.0: at most 1 is"),
        ({"rate": float("inf")}, "--rate inf: at most 10 is"),
        ({"seed": 2**70}, f"--seed {2**70}: at most 4294967295 is"),
    ):
        with pytest.raises(UsageError, match=message):
            checked(Classify(**given))  # type: ignore[arg-type]
    for share in ("all", "1.5", "nan"):
        with pytest.raises(UsageError, match=f"--interpolate {share}: auto, or a share from 0 to 1"):
            checked(Contrast(interpolate=share))
    checked(Contrast(interpolate="0.5"))


@pytest.mark.parametrize("kind", [Classify, Scratch, Siamese, Metric, Contrast])
def test_every_hyper_parameter_has_a_help_and_a_flag(kind: type[Options]):
    from dataclasses import fields

    from typer.main import get_command

    recipe = next(name for name, k in RECIPES.items() if k is kind)
    flags = {o for p in get_command(app).commands["train"].commands[recipe].params for o in p.opts}  # type: ignore[attr-defined]
    for f in fields(kind):
        assert f.metadata["help"]
        assert f"--{f.name.replace('_', '-')}" in flags
    checked(kind())


def test_train_and_again_from_the_command_line(shop: Path, tmp_path: Path, monkeypatch):
    runner = CliRunner()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.txt").write_text("p3\n")
    words = ["train", "scratch", str(shop), "--out", str(tmp_path / "a"), "--work", str(tmp_path / "wa"), "--size", "32x32",
             "--least", "4", "--epochs", "1", "--hold-out", "ids.txt", "--json"]  # fmt: skip
    first = runner.invoke(app, words, catch_exceptions=False)
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["labels"] == 3
    monkeypatch.chdir(shop.parent)
    words = ["train", "again", str(tmp_path / "wa" / "config.json"), "--out", str(tmp_path / "b"), "--work",
             str(tmp_path / "wb"), "--json"]  # fmt: skip
    second = json.loads(runner.invoke(app, words, catch_exceptions=False).stdout)
    assert second["after"] == found["after"]
    assert (tmp_path / "a" / "photo.onnx").read_bytes() == (tmp_path / "b" / "photo.onnx").read_bytes()
    _, _, _, options = from_json(tmp_path / "wb" / "config.json")
    assert asdict(options)["epochs"] == 1


def test_training_reads_what_lies_here(tmp_path: Path):
    table = write_csv(tmp_path / "web.csv", [{"id": n, "image": f"https://shop.example/{n}.jpg"} for n in range(3)])
    for source in (str(table), "https://shop.example/feed.xml"):
        words = ["train", "scratch", source, "--out", str(tmp_path / "o"), "--work", str(tmp_path / "w")]
        with pytest.raises(InputError, match="training and measuring read photos that lie here") as told:
            CliRunner().invoke(app, words, catch_exceptions=False)
        assert "--download" not in str(told.value)


def test_a_work_folder_of_another_run_and_a_full_out_are_refused(shop: Path, tmp_path: Path):
    trained("scratch", shop, tmp_path, epochs=1)
    with pytest.raises(InputError, match="out: not an empty or new directory"):
        trained("scratch", shop, tmp_path, epochs=1)
    with pytest.raises(InputError, match="work: holds a run of another source or other options"):
        run.main("scratch", open_source(shop), tmp_path / "new", tmp_path / "work", Scratch(), {}, QUIET.append)
    (tmp_path / "config.json").write_text('{"recipe": "bake"}')
    with pytest.raises(InputError, match=r"config\.json: not the config\.json of a run"):
        from_json(tmp_path / "config.json")


def test_what_cannot_be_done_leaves_the_work_folder_free(shop: Path, tmp_path: Path):
    with pytest.raises(InputError, match="no column 'colr'"):
        trained("classify", shop, tmp_path, label="colr", start="not-looked-at")  # before the start is fetched
    with pytest.raises(UsageError, match="--train nolayer: no layer is named so"):
        trained("classify", shop, tmp_path, train="nolayer")
    assert trained("classify", shop, tmp_path, epochs=1)["labels"] == 3


def test_a_photo_that_vanishes_before_anything_is_learnt(shop: Path, tmp_path: Path, monkeypatch):
    with shop.open() as file:
        rows: list[dict[str, object]] = list(csv.DictReader(file))
    for row in rows:
        name = Path(str(row["image"])).name
        (tmp_path / name).write_bytes((shop.parent / str(row["image"])).read_bytes())
        row["image"] = name
    table = write_csv(tmp_path / "shop.csv", rows)
    with monkeypatch.context() as m:
        killed_after(0, m)
        with pytest.raises(Killed):
            trained("classify", table, tmp_path, epochs=1)
    assert (tmp_path / "work" / "before.npz").is_file()
    (tmp_path / "0.jpg").unlink()
    assert trained("classify", table, tmp_path, epochs=1)["photos"] == len(rows) - 1


def test_weights_that_are_spoilt_end_the_run(shop: Path, tmp_path: Path, monkeypatch):
    real = loop.Recipe.training_step

    def spoilt(self: loop.Recipe, rows: torch.Tensor, at: int) -> torch.Tensor:
        return real(self, rows, at) * float("nan")

    monkeypatch.setattr(loop.Recipe, "training_step", spoilt)
    with pytest.raises(InputError, match=r"epoch 1: \w+ loss is nan, the weights are spoilt; begin .* lower --rate"):
        trained("classify", shop, tmp_path)
    assert not (tmp_path / "out").exists()


def test_photos_none_of_which_can_be_read(shop: Path, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"no photo")
    table = write_csv(tmp_path / "b.csv", [{"id": n, "image": "a.jpg", "category": "a"} for n in range(5)])
    with pytest.raises(InputError, match="none of its 5 photos can be read"):
        packed(table, tmp_path / "work")


def test_distances_where_there_are_no_pairs_of_one_label(tmp_path: Path):
    none, some = np.zeros(0), np.array([0.5, 1.0])
    plots.distances([none, none], [some, some], tmp_path / "d.png")  # a warning would be an error
    assert (tmp_path / "d.png").stat().st_size > 0
