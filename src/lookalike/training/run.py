"""One run of a recipe, from a source to an encoder's directory: measured before and after on held-out products."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from lookalike.encoders import clip
from lookalike.encoders.torch import Backbone, PhotoNet
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import summary
from lookalike.evaluation.report import write as write_report
from lookalike.sources import Source
from lookalike.training import loop, plots, pretrained
from lookalike.training.adapt import check_folders
from lookalike.training.augment import POLICIES
from lookalike.training.contrast import ContrastRecipe, found_in, texts_of
from lookalike.training.export import write_encoder
from lookalike.training.loop import Log, Recipe
from lookalike.training.options import Classify, Contrast, Metric, Options, Siamese, size_of, to_json
from lookalike.training.photos import Photos, check, pack
from lookalike.training.recipes import ClassifyRecipe, MetricRecipe, SiameseRecipe

MEASURED = 2000
"""Held-out photos that are asked with, at most."""


def main(
    recipe: str, source: Source, out: Path, work: Path, options: Options, roles: Mapping[str, str], log: Log
) -> dict[str, Any]:
    """Train; a second call with the same ``work`` goes on where the first was.

    Returns:
        ``{"recipe", "photos", "held_out", "labels", "rare", "before", "after", "gains", "gain", "history",
        "kept_epoch", "seconds", "better"}``; figures as ``{"mean", "low", "high"}``. ``out`` is the encoder, ``work`` the rest.

    Raises:
        InputError: too little data, no such start, ``out`` in use, or ``work`` holds another run.
    """
    check_folders(out, work, work / "made")
    if os.environ.get("LOCAL_RANK", "0") != "0":  # one more device of a run that holds the lock
        return _run(recipe, source, out, work, options, roles, lambda line: None)
    try:
        with FileLock(work / "lock", timeout=0):
            return _run(recipe, source, out, work, options, roles, log)
    except Timeout:
        raise InputError(f"{work}: another run is at work there; wait for it, or give another --work") from None


def _run(
    recipe: str, source: Source, out: Path, work: Path, options: Options, roles: Mapping[str, str], log: Log
) -> dict[str, Any]:
    config = to_json(recipe, source.key, dict(roles), options)
    _same_run(work, config)
    check(source, options)  # before anything is downloaded
    torch.manual_seed(options.seed)
    size = size_of(options.size) if options.size else None
    backbone = (
        clip.backbone(options.start, size) if isinstance(options, Contrast) else pretrained.start(options.start, size)
    )
    photos = pack(source, backbone.preprocess, work, options, log)
    _same_data(work, photos, backbone)
    held = int(photos.validation.sum())
    log(
        f"{len(photos.labels)} photos, {held} of them held out; {len(photos.names)} labels of {photos.label or 'nothing'}"
    )
    ids = dict.fromkeys(p for p, out_of in zip(photos.products, photos.validation, strict=True) if out_of)
    (work / "held-out.txt").write_text("\n".join(ids) + "\n", "utf-8")
    plots.classes(photos, work / "classes.png")
    plots.augmented(photos, options.augment, POLICIES[options.augment], options.seed, work / "augmentation.png")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = PhotoNet(backbone.net, backbone.preprocess)  # without what a recipe puts behind it
    made = recipe_of(photos, backbone, options)
    (work / "config.json").write_text(config, "utf-8")  # from here on it is this run's: what was asked can be done
    before = _before(made, start, work, device, log)
    learning = sum(p.numel() for p in made.parameters() if p.requires_grad)
    if not learning:
        raise UsageError(f"--train {options.train}: nothing is left to learn; name a part of {options.start}, or all")
    log(f"{learning:,} of {sum(p.numel() for p in made.parameters()):,} parameters learn")
    first = made.weights() if isinstance(made, ContrastRecipe) else {}
    loop.fit(made, work, log)
    made.to(device)
    tried = made.interpolate(first, log) if isinstance(made, ContrastRecipe) else []
    log("measuring")
    after = _vectors(made, made.encoder(), device, log)
    made.cpu()
    found = report_of(recipe, made, photos, figures(made, before), figures(made, after))
    if tried:
        found["interpolation"] = tried
        plots.interpolation(tried, work / "interpolation.png")
    plots.curves(made.history, made.best(), work / "curves.png")
    plots.distances(*_pairs(photos, [before["photos"], after["photos"]], options.seed), work / "distances.png")
    training = {k: found[k] for k in ("recipe", "seconds", "photos", "labels", "kept_epoch")}
    training |= {"start": backbone.name, "start_digest": backbone.digest, "label": photos.label}
    training |= {
        f"start_{key}": value for key, value in backbone.source.items() if key != "file"
    }  # hub, revision, licence
    name = f"{recipe}-{backbone.name}"[:60]
    dim = after["photos"].shape[1]
    texts = {"text": backbone.text, "tokenizer": backbone.tokenizer} if isinstance(made, ContrastRecipe) else {}
    _shown(found, work)
    write_encoder(out, name, made.encoder(), backbone.preprocess, dim, training=training, **texts)
    return found


def recipe_of(photos: Photos, backbone: Backbone, options: Options) -> Recipe:
    """The recipe that these options are of."""
    match options:
        case Classify():
            return ClassifyRecipe(photos, backbone, options)
        case Siamese():
            return SiameseRecipe(photos, backbone, options)
        case Metric():
            return MetricRecipe(photos, backbone, options)
        case Contrast():
            return ContrastRecipe(photos, backbone, options)
        case _:
            raise TypeError(f"no recipe for {type(options).__name__}")


def figures(made: Recipe, vectors: dict[str, NDArray[np.float32]]) -> dict[str, metrics.PerQuery]:
    """P@1 and P@10 of held-out photos' labels among all others; the product's own (unless products are the labels) and
    byte-identical ones left out.

    Where texts are learnt, too: whether a photo of a held-out product's title is among the first ten of all.
    """
    photos, found = made.photos, {}
    rows = asked(photos)
    products, digests = (np.unique(v, return_inverse=True)[1] for v in (photos.products, photos.digests))
    hits = np.zeros((len(rows), 10), bool)
    for n, row in enumerate(rows):
        scores = vectors["photos"] @ vectors["photos"][row]
        scores[
            digests == digests[row] if photos.by_item else (products == products[row]) | (digests == digests[row])
        ] = -np.inf
        top = np.argsort(-scores, kind="stable")[:10]
        hits[n, : len(top)] = (photos.labels[top] == photos.labels[row]) & np.isfinite(scores[top])
    if len(photos.names) > 1:
        found = {f"same {photos.label} P@{k}": metrics.precision(hits, k) for k in (1, 10)}
    if isinstance(made, ContrastRecipe):
        found["title → photo, found in 10"] = found_in(vectors["photos"], vectors["texts"], made.texts.titles, 10, rows)
    return found


def asked(photos: Photos) -> NDArray[np.int64]:
    """The held-out rows that are asked with."""
    rows = np.flatnonzero(photos.validation)
    return rows if len(rows) <= MEASURED else np.sort(np.random.default_rng(0).permutation(rows)[:MEASURED])


def report_of(
    recipe: str, made: Recipe, photos: Photos, before: dict[str, metrics.PerQuery], after: dict[str, metrics.PerQuery]
) -> dict[str, Any]:
    """What ``main`` returns."""
    gain = np.mean([after[name] - before[name] for name in before], axis=0)
    kept = made.best()
    return {
        "recipe": recipe, "start": made.options.start, "photos": len(photos.labels), "held_out": int(photos.validation.sum()),
        "label": photos.label, "labels": len(photos.names), "rare": photos.rare,
        "before": {name: summary(v) for name, v in before.items()},
        "after": {name: summary(v) for name, v in after.items()},
        "gains": {name: summary(after[name] - before[name]) for name in before},
        "gain": summary(gain), "better": metrics.interval(gain)[0] > 0,
        "kept_epoch": kept + 1, "seconds": made.history[-1]["seconds"], "history": made.history,
    }  # fmt: skip


def _vectors(made: Recipe, net: torch.nn.Module, device: torch.device, log: Log) -> dict[str, NDArray[np.float32]]:
    """Of all photos, and of the texts that are asked with."""
    out = {"photos": loop.encode(net, made.photos, device, log)}
    if isinstance(made, ContrastRecipe):
        out["texts"] = texts_of(made.backbone, [made.texts.titles[row] for row in asked(made.photos)])
    return out


def _before(
    made: Recipe, start: PhotoNet, work: Path, device: torch.device, log: Log
) -> dict[str, NDArray[np.float32]]:
    """Vectors of the start, kept for a run that goes on."""
    file = work / "before.npz"
    if file.is_file():
        with np.load(file) as kept:
            return dict(kept)
    log("measuring the start")
    vectors = _vectors(made, start, device, log)
    made.cpu()
    with (work / "before.part").open("wb") as part:
        np.savez(part, **vectors)  # type: ignore[arg-type]
    (work / "before.part").replace(file)
    return vectors


def _pairs(photos: Photos, both: list[NDArray[np.float32]], seed: int) -> tuple[Any, Any]:
    """Distances of held-out pairs of one label, and of two, in each of ``both`` spaces."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(photos.validation)
    a, b = rng.choice(rows, 20000), rng.choice(rows, 20000)
    same = (photos.labels[a] == photos.labels[b]) & (a != b)
    apart = [np.sqrt(np.maximum(0, 2 - 2 * (v[a] * v[b]).sum(1))) for v in both]
    return [d[same] for d in apart], [d[(photos.labels[a] != photos.labels[b])] for d in apart]


def _shown(found: dict[str, Any], work: Path) -> None:
    """``report.json`` and the page."""
    (work / "report.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    rows = {"before": found["before"], "after": found["after"], "gain": {**found["gains"], "mean": found["gain"]}}
    pictures = {
        "Curves": "curves.png", "Old and new weights": "interpolation.png", "Labels": "classes.png",
        "Distances": "distances.png", "Augmentation": "augmentation.png",
    }  # fmt: skip
    page = {
        "title": f"Recipe {found['recipe']}", "encoder": found["start"],
        "note": f"{found['photos']} photos, {found['held_out']} of them held out, {found['labels']} labels; "
        f"{found['seconds']:.0f} s of training; the weights of epoch {found['kept_epoch']} are kept.",
        "tables": [{"name": "On held-out products", "queries": min(MEASURED, found["held_out"]), "rows": rows}],
        "pictures": [(title, work / file) for title, file in pictures.items() if (work / file).is_file()],
    }  # fmt: skip
    write_report(page, work / "report.html")


def _same_run(work: Path, config: str) -> None:
    file = work / "config.json"
    if file.is_file() and file.read_text("utf-8") != config:
        raise InputError(f"{work}: holds a run of another source or other options; remove it, or give another --work")


def _same_data(work: Path, photos: Photos, backbone: Backbone) -> None:
    file, now = work / "data.json", json.dumps({"photos": photos.digest, "start": backbone.digest})
    if file.is_file() and file.read_text("utf-8") != now:
        if (work / "last.safetensors").is_file():
            raise InputError(
                f"{work}: the photos, their labels or the start's weights have changed since; give another --work"
            )
        (work / "before.npz").unlink(missing_ok=True)  # nothing is learnt yet: the start is measured anew
    file.write_text(now, "utf-8")
