"""What a run looks like, as PNG: curves per epoch, class distribution, augmented photos, distances of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from lookalike.training.augment import Policy, augment
from lookalike.training.photos import Photos

matplotlib.use("Agg")  # no display is wanted
from matplotlib import pyplot as plt

_INK = {"training": "#8c2f4b", "validation": "#2b6cb0"}


def curves(history: list[dict[str, float]], best: int, file: Path) -> None:
    """Each figure of training and validation by epoch; the epoch that was kept is marked."""
    names = list(dict.fromkeys(n.split("_", 1)[1] for line in history for n in line if n.startswith(tuple(_INK))))
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 3.6), squeeze=False)
    epochs = [line["epoch"] for line in history]
    for axis, name in zip(axes[0], names, strict=True):
        for split, ink in _INK.items():
            values = [line.get(f"{split}_{name}") for line in history]
            if any(v is not None for v in values):
                axis.plot(epochs, values, color=ink, marker="o", markersize=3, label=split)
        axis.axvline(epochs[best], color="#999", linewidth=0.8, linestyle=":", label="kept")
        axis.set_title(name.replace("_", " "))
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    axes[0][0].legend(frameon=False, loc="upper right")
    _save(figure, file)


def classes(photos: Photos, file: Path, most: int = 40) -> None:
    """Photos of each label, training beside validation, and how many labels were too rare."""
    counts = np.bincount(photos.labels, minlength=len(photos.names))
    held = np.bincount(photos.labels[photos.validation], minlength=len(photos.names))
    order = np.argsort(-counts, kind="stable")[:most][::-1]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.22 * len(order)))
    names = [photos.names[n][:40] for n in order]
    axis.barh(names, counts[order] - held[order], color=_INK["training"], label="training")
    axis.barh(names, held[order], left=counts[order] - held[order], color=_INK["validation"], label="validation")
    axis.set_xlabel("photos")
    shown = "" if len(counts) <= most else f", the largest {most}"
    rare = f"; {len(photos.rare)} rare ones with {sum(photos.rare.values())} photos apart" if photos.rare else ""
    axis.set_title(f"{photos.label}: {len(photos.names)} labels{shown}{rare}")
    axis.legend(frameon=False, loc="lower right")
    _save(figure, file)


def augmented(photos: Photos, name: str, policy: Policy, seed: int, file: Path) -> None:
    """Six training photos, each as it is and five times as a step sees it."""
    rows = np.flatnonzero(~photos.validation)[:: max(1, int((~photos.validation).sum()) // 6)][:6]
    pixels = photos.pixels(rows)
    generator = torch.Generator().manual_seed(seed)
    shown = [pixels.numpy()]
    shown += [augment(pixels, policy, generator).permute(0, 2, 3, 1).byte().numpy() for _ in range(5)]
    figure, axes = plt.subplots(len(rows), 6, figsize=(8, 1.5 * len(rows)), squeeze=False)
    for line, axis_line in enumerate(axes):
        for column, axis in enumerate(axis_line):
            axis.imshow(shown[column][line])
            axis.axis("off")
    axes[0][0].set_title("as it is", fontsize=9)
    axes[0][1].set_title(f"policy {name}", fontsize=9, loc="left")
    _save(figure, file)


def distances(same: NDArray[Any], other: NDArray[Any], file: Path) -> None:
    """How far apart held-out pairs of one label lie (before, after), and pairs of two: two rows of two histograms."""
    figure, axes = plt.subplots(1, len(same), figsize=(4.6 * len(same), 3.4), sharey=True, squeeze=False)
    for axis, near, far, title in zip(axes[0], same, other, ("before", "after"), strict=False):
        for pairs, ink, what in ((near, "validation", "one label"), (far, "training", "two labels")):
            some = len(pairs) > 0  # numpy warns of a density of nothing
            axis.hist(pairs, 40, (0, 2), density=some, alpha=0.6, color=_INK[ink], label=what)
        axis.set_title(title)
        axis.set_xlabel("distance of held-out pairs")
    axes[0][0].legend(frameon=False, loc="upper right")
    _save(figure, file)


def interpolation(tried: list[dict[str, float]], file: Path) -> None:
    """Titles found among validation products by the share of the new weights, and the share that was kept."""
    figure, axis = plt.subplots(figsize=(4.6, 3.4))
    axis.plot([t["share"] for t in tried], [t["found in 10"] for t in tried], color=_INK["validation"], marker="o")
    axis.axvline(next(t["share"] for t in tried if t["kept"]), color="#999", linestyle=":", label="kept")
    axis.set_xlabel("share of the new weights")
    axis.set_ylabel("titles found in 10")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, loc="lower left")
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
