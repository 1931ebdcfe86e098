"""Hyper-parameters of the recipes: one dataclass each. Names, defaults and help here are those of the command line.

No torch: the command line reads this before it knows what is asked.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from lookalike.errors import InputError, UsageError

LOSSES = ("triplet", "multi-similarity", "proxy-anchor", "contrastive", "supcon", "arcface", "circle")
POLICIES = ("none", "light", "standard", "strong")


def _opt(
    default: Any, text: str, among: tuple[str, ...] = (), least: float | None = None, most: float | None = None
) -> Any:
    return field(default=default, metadata={"help": text, "among": among, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every recipe has."""

    label: str = _opt("", "Column to learn; several with commas are one label; by default the column of categories.")
    start: str = _opt("resnet50", "What to begin with: a timm name, NAME@FILE, builtin, a .tflite, simple-cnn.")
    size: str = _opt("", "HEIGHTxWIDTH of the photos; by default that of --start.")
    epochs: int = _opt(10, "Times through the training photos.", least=1)
    batch: int = _opt(16, "Photos of a step, on each device.", least=2)
    rate: float = _opt(1e-3, "Learning rate.", least=0, most=10)
    decay: float = _opt(0.0, "Weight decay (decoupled, AdamW, where not 0).", least=0, most=10)
    schedule: str = _opt("constant", "Learning rate over the epochs.", ("constant", "cosine"))
    train: str = _opt(
        "last", "What of --start learns: head, last (its last stage), all, or beginnings of layers' names."
    )
    augment: str = _opt("standard", "Augmentation policy; see docs/training.md.", POLICIES)
    validation: float = _opt(0.2, "Share of each label's products that is held out and measured.", least=0.01)
    least: int = _opt(100, "Photos under which a label is rare.", least=2)
    rare: str = _opt("leave", "Rare labels: leave them out, or merge them into one, 'other'.", ("leave", "merge"))
    limit: int = _opt(0, "Use this many products only, drawn by the seed; 0 for all.", least=0)
    hold_out: str = _opt("", "A file of product ids that take no part: one a line, or KAGL's ground truth.")
    checkpoint_steps: int = _opt(100, "Steps between two checkpoints; there is one after each epoch besides.", least=1)
    precision: str = _opt("auto", "Arithmetic.", ("auto", "32-true", "bf16-mixed", "16-mixed"))
    devices: int = _opt(1, "How many accelerators, or CPU processes.", least=1)
    seed: int = _opt(1, "Of everything that is drawn.", least=0, most=2**32 - 1)


@dataclass(frozen=True, kw_only=True)
class Classify(Options):
    """Transfer learning with a new head."""

    smoothing: float = _opt(0.0, "Label smoothing.", least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class Scratch(Classify):
    """A simple CNN that starts from nothing, as a baseline."""

    start: str = _opt("simple-cnn", "What to begin with.")
    size: str = _opt("80x60", "HEIGHTxWIDTH of the photos.")
    train: str = _opt("all", "What of --start learns.")


@dataclass(frozen=True, kw_only=True)
class Siamese(Options):
    """Two photos through one net: near for a pair of one label, far for others."""

    start: str = _opt("vgg16", Options.__dataclass_fields__["start"].metadata["help"])
    rate: float = _opt(1e-4, "Learning rate.", least=0, most=10)
    dim: int = _opt(128, "Dimensions of the embedding.", least=2)
    margin: float = _opt(1.0, "Distance (0 to 2) that photos of different labels are pushed apart to.", least=0, most=2)
    negatives: int = _opt(1, "Negative pairs for each positive one.", least=1)
    mine: bool = _opt(False, "Take the nearest photo of another label in the batch as each anchor's negative, too.")


@dataclass(frozen=True, kw_only=True)
class Metric(Options):
    """Deep metric learning on batches of P labels with K photos each."""

    rate: float = _opt(1e-4, "Learning rate.", least=0, most=10)
    decay: float = _opt(1e-4, "Weight decay (decoupled, AdamW, where not 0).", least=0, most=10)
    batch: int = _opt(64, "Photos of a step: P labels times K photos.", least=4)
    k: int = _opt(4, "Photos of each label in a batch.", least=2)
    loss: str = _opt("multi-similarity", "Loss of pytorch-metric-learning.", LOSSES)
    dim: int = _opt(256, "Dimensions of the embedding; 0 keeps the features themselves.", least=0)
    least: int = _opt(2, "Photos under which a label is rare.", least=2)
    proxy_rate: float = _opt(100.0, "Learning rate of proxies, in times of --rate.", least=0)


@dataclass(frozen=True, kw_only=True)
class Contrast(Options):
    """Photos and their words in one space: CLIP fine-tuning."""

    start: str = _opt("clip-vit-b-32", "An open_clip model: name, hub id, NAME@FILE or a directory.")
    rate: float = _opt(1e-5, "Learning rate.", least=0, most=10)
    decay: float = _opt(0.1, "Weight decay (decoupled, AdamW, where not 0).", least=0, most=10)
    schedule: str = _opt("cosine", "Learning rate over the epochs.", ("constant", "cosine"))
    train: str = _opt("all", "What of --start learns: all, or the beginnings of its parameters' names, with commas.")
    augment: str = _opt("light", "Augmentation policy; see docs/training.md.", POLICIES)
    batch: int = _opt(64, "Photos and texts that are contrasted with each other, on each device.", least=2)
    chunk: int = _opt(0, "Photos at a time in memory (gradient caching); 0 for the whole batch.", least=0)
    loss: str = _opt("infonce", "Loss.", ("infonce", "siglip"))
    template: str = _opt("", "Texts of attributes, like '{gender} {baseColour} {articleType}', beside titles.")
    template_share: float = _opt(0.3, "How often a text is of the template rather than the title.", least=0, most=1)
    interpolate: str = _opt("auto", "Share of the new weights (0-1) against forgetting; auto chooses on validation.")
    least: int = _opt(1, "Photos under which a label is rare.", least=1)
    rare: str = _opt("merge", "Rare labels: leave them out, or merge them into one, 'other'.", ("leave", "merge"))


RECIPES: dict[str, type[Options]] = {
    "classify": Classify, "scratch": Scratch, "siamese": Siamese, "metric": Metric, "contrast": Contrast,
}  # fmt: skip

O = TypeVar("O", bound=Options)  # noqa: E741


def checked(options: O) -> O:
    """``options`` themselves. Raises UsageError naming the one that is out of its range."""
    for f in fields(options):
        value, (among, least, most) = getattr(options, f.name), (f.metadata[m] for m in ("among", "least", "most"))
        flag = f"--{f.name.replace('_', '-')} {value}"
        if among and value not in among:
            raise UsageError(f"{flag}: choose one of {', '.join(among)}")
        if least is not None and not value >= least:
            raise UsageError(f"{flag}: at least {least:g} is wanted")
        if most is not None and value > most:
            raise UsageError(f"{flag}: at most {most:.10g} is wanted")
    if options.validation >= 0.9:
        raise UsageError(f"--validation {options.validation}: a share below 0.9 is wanted")
    if options.size:
        size_of(options.size)
    if isinstance(options, Contrast):
        _share_of("interpolate", options.interpolate)
    return options


def _share_of(name: str, text: str) -> None:
    """Raises UsageError where ``text`` is neither auto nor a share."""
    try:
        right = text == "auto" or 0 <= float(text) <= 1
    except ValueError:
        right = False
    if not right:
        raise UsageError(f"--{name} {text}: auto, or a share from 0 to 1 is wanted")


def size_of(text: str) -> tuple[int, int]:
    """``80x60`` → (80, 60). Raises UsageError."""
    try:
        height, width = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise UsageError(f"--size {text}: HEIGHTxWIDTH is wanted, like 224x224") from None
    if not (16 <= height <= 1024 and 16 <= width <= 1024):
        raise UsageError(f"--size {text}: sides from 16 to 1024 are wanted")
    return height, width


def to_json(recipe: str, source: str, roles: dict[str, str], options: Options) -> str:
    """A run as ``config.json`` keeps it."""
    return json.dumps({"recipe": recipe, "source": source, "roles": roles, "options": asdict(options)}, indent=1) + "\n"


def from_json(file: Path) -> tuple[str, str, dict[str, str], Options]:
    """Recipe, source, roles and options of a ``config.json``. Raises InputError naming what is wrong in it."""
    try:
        found = json.loads(file.read_text("utf-8"))
        kind = RECIPES[found["recipe"]]
        unknown = sorted(set(found["options"]) - {f.name for f in fields(kind)})
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}")
        return found["recipe"], str(found["source"]), dict(found["roles"]), checked(kind(**found["options"]))
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise InputError(f"{file}: not the config.json of a run ({error})") from error
