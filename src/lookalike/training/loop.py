"""The loop that all recipes share: Lightning, with batches and randomness that depend on (seed, epoch, batch) alone.

So a run that was killed at any moment, and run again with the same ``work``, ends with the same weights (on a GPU, but for what
its sums vary by).
"""

from __future__ import annotations

import csv
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import CheckpointIO
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from lookalike.encoders.torch import Backbone, PhotoNet
from lookalike.errors import InputError, UsageError
from lookalike.training import checkpoint
from lookalike.training.augment import POLICIES, augment
from lookalike.training.builtin import fast_bfloat16
from lookalike.training.options import Options
from lookalike.training.photos import Photos

Log = Callable[[str], None]
Batch = NDArray[np.int64]
"""Rows of ``Photos``."""


class Batches:
    """The batches of an epoch: ``draw(epoch)`` gives all of them, the same at each call; goes on within an epoch.

    With several devices, each takes its own photos of every batch.
    """

    def __init__(self, recipe: Recipe, draw: Callable[[int], list[Batch]]):
        self._recipe, self._draw = recipe, draw
        self._length = len(draw(0))
        self._at = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Tensor]:
        begin, self._at = self._at, 0
        trainer = self._recipe.trainer
        for n, rows in enumerate(self._draw(self._recipe.current_epoch)[begin:], begin + 1):
            self._at = n if n < self._length else 0
            each = -(-len(rows) // trainer.world_size)  # all devices take the same number: some rows twice
            first = trainer.global_rank * each
            yield torch.from_numpy(rows[np.arange(first, first + each) % len(rows)])

    def state_dict(self) -> dict[str, int]:
        """Where it stands within the epoch."""
        return {"at": self._at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin there, once."""
        self._at = state["at"]


class Recipe(L.LightningModule):
    """What recipes share: a backbone of which a part learns, augmented photos, an optimiser, a history of epochs.

    A recipe adds ``loss(rows, photos)``, its batches, and ``encoder``: what is exported.
    """

    monitor, sign = "validation_loss", -1

    def __init__(self, photos: Photos, backbone: Backbone, options: Options, whole: nn.Module | None = None):
        """``whole`` is what ``--train`` names parts of, where that is more than the photo net."""
        super().__init__()
        self.photos, self.options, self.backbone = photos, options, backbone
        self.net = PhotoNet(backbone.net, backbone.preprocess)
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0
        self.last_loss = math.nan
        self._frozen = freeze(whole or backbone.net, options.train)
        self._sums: dict[str, list[Tensor]] = {}
        self._since = time.monotonic()

    # What a recipe says

    def loss(self, rows: Tensor, x: Tensor) -> dict[str, Tensor]:
        """``{"loss": …, other figures}`` of rows (n,) and their normalised photos (n, 3, h, w)."""
        raise NotImplementedError

    def draw(self, epoch: int) -> list[Batch]:
        """Batches of an epoch: by default a permutation of the training rows."""
        rows = np.flatnonzero(~self.photos.validation)
        rows = np.random.default_rng((self.options.seed, epoch)).permutation(rows)
        size = self.options.batch * self.options.devices
        whole = [rows[n : n + size] for n in range(0, len(rows), size)]
        return whole if len(whole) == 1 or len(whole[-1]) > 1 else whole[:-1]  # batch normalisation wants two

    def draw_validation(self, epoch: int) -> list[Batch]:
        """Batches of the validation rows, the same in every epoch."""
        rows = np.flatnonzero(self.photos.validation)
        return [rows[n : n + 64] for n in range(0, len(rows), 64)]

    def encoder(self) -> nn.Module:
        """uint8 photos (n, h, w, 3) → unit vectors: what is exported."""
        return self.net

    def kept(self) -> nn.Module:
        """All whose weights are kept of the best epoch."""
        return self.encoder()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What learns, for the optimiser; biases and norms do not decay."""
        learning = [p for p in self.parameters() if p.requires_grad]
        weights, others = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
        return [g for g in groups if g["params"]]

    # The rest is Lightning's

    def configure_optimizers(self) -> Any:
        """Adam (Kingma and Ba 2015), AdamW where weights decay."""
        o = self.options
        kind = torch.optim.AdamW if o.decay else torch.optim.Adam
        # fused=False: the fused one scrambles gradients of channels_last weights on CPUs (docs/lab-log.md)
        optimiser = kind(self.parameter_groups(), lr=o.rate, weight_decay=o.decay, fused=False)
        if o.schedule == "constant":
            return optimiser
        steps = max(1, len(self.draw(0)) * o.epochs)
        curve = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": curve, "interval": "step"}}

    def train(self, mode: bool = True) -> Recipe:
        """Frozen parts stay as in use: their batch normalisation does not move either."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def training_step(self, rows: Tensor, at: int) -> Tensor:
        """One step on augmented photos."""
        rows = rows.flatten()  # pairs and longer groups come as rows of several
        found = self.loss(rows, self.augmented(rows, at))
        self._note("training", found, len(rows))
        return found["loss"]

    def augmented(self, rows: Tensor, at: int) -> Tensor:
        """Normalised photos (n, 3, h, w) of batch ``at`` as the policy draws them; torch is seeded for the batch, too."""
        rng = np.random.default_rng((self.options.seed, self.current_epoch, at, self.global_rank))
        torch.manual_seed(int(rng.integers(2**31)))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        pixels = self.photos.pixels(rows.cpu().numpy()).to(self.device)
        return self.net.scaled(augment(pixels, POLICIES[self.options.augment], generator))

    def validation_step(self, rows: Tensor, at: int) -> None:
        """The same figures on photos as they are."""
        rows = rows.flatten()
        pixels = self.photos.pixels(rows.cpu().numpy()).to(self.device)
        self._note("validation", self.loss(rows, self.net.normalised(pixels)), len(rows))

    def _note(self, split: str, found: dict[str, Tensor], photos: int) -> None:
        for name, value in found.items():
            figure = value.detach().float()
            self._sums.setdefault(f"{split}_{name}", []).append(torch.stack([figure * photos, figure * 0 + photos]))
        if split == "training":
            self.last_loss = found["loss"].item()

    def on_validation_epoch_end(self) -> None:
        """One line of the history: validation is the end of each epoch."""
        line: dict[str, float] = {"epoch": self.current_epoch + 1}
        for name, values in self._sums.items():
            # Those of a checkpoint are on the CPU. A batch counts by its photos: the last one has few.
            total = torch.stack([v.to(self.device) for v in values]).sum(0)
            if self.trainer.world_size > 1:
                total = cast("Tensor", self.all_gather(total)).sum(0)
            line[name] = round((total[0] / total[1]).item(), 6)
        self._sums = {}
        self.seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        line["seconds"] = round(self.seconds, 1)
        for name in ("training_loss", self.monitor):
            if not math.isfinite(line.get(name, 0.0)):
                raise InputError(
                    f"epoch {self.current_epoch + 1}: {name.replace('_', ' ')} is {line[name]}, the weights are spoilt; begin "
                    "again with a lower --rate (or --precision 32-true) and another --work"
                )
        self.history.append(line)
        for name, value in line.items():
            self.logger.log_metrics({name: value}, step=self.current_epoch + 1)  # type: ignore[union-attr]

    def best(self) -> int:
        """The position in the history of the epoch whose weights are kept."""
        values = [-math.inf if math.isnan(v) else v for v in (self.sign * line[self.monitor] for line in self.history)]
        return values.index(max(values))

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        """Beside the weights: the history, and the sums of the epoch that has begun."""
        seconds = self.seconds + time.monotonic() - self._since
        saved["recipe"] = {"history": self.history, "sums": self._sums, "seconds": seconds}

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        """The same back."""
        kept = saved["recipe"]
        self.history, self._sums, self.seconds = kept["history"], kept["sums"], kept["seconds"]

    def on_train_start(self) -> None:
        """The time of training begins: measuring the start is none of it."""
        self._since = time.monotonic()

    def weights(self) -> dict[str, Tensor]:
        """A copy of what is kept."""
        return {k: v.detach().cpu().clone() for k, v in self.kept().state_dict().items()}


def freeze(net: nn.Module, what: str) -> list[nn.Module]:
    """Leave only a part of ``net`` learning; the modules that stay as they are.

    Args:
        net: a backbone.
        what: ``head`` (nothing of it), ``last`` (its last stage: ResNet's ``layer4``), ``all``, or the beginnings of
            parameters' names, with commas.

    Raises:
        UsageError: no parameter is named so.
    """
    names = [name for name, _ in net.named_parameters()]
    if what == "all":
        learning = set(names)
    elif what == "head":
        learning = set()
    elif what == "last":
        learning = set(_last_stage(net))
    else:
        starts = tuple(part.strip() for part in what.split(","))
        learning = {n for n in names if n.startswith(starts)}
        missing = next((s for s in starts if not any(n.startswith(s) for n in names)), "")
        if missing:
            known = list(dict.fromkeys(n.rsplit(".", 2)[0] for n in names))
            raise UsageError(f"--train {missing}: no layer is named so; there are {', '.join(known[:60])}")
    for name, parameter in net.named_parameters():
        parameter.requires_grad = name in learning
    return [
        m for m in net.modules() if not any(p.requires_grad for p in m.parameters()) and any(True for _ in m.buffers())
    ]


def _last_stage(net: nn.Module) -> list[str]:
    """Names of the parameters of the last stage, as timm groups them; elsewhere the last quarter of them.

    A last group of nearly nothing, like a norm of its own, is taken with the one before it.
    """
    total = sum(p.numel() for p in net.parameters())
    for prefix, module in net.named_modules():
        if hasattr(module, "group_matcher"):
            from timm.models import group_parameters

            groups = group_parameters(module, module.group_matcher(coarse=True))
            start = f"{prefix}." if prefix else ""
            own = {n: p.numel() for n, p in module.named_parameters()}
            stage: list[str] = []
            for names in reversed([[n for n in names if n in own] for names in groups.values()]):
                stage = names + stage
                if sum(own[n] for n in stage) > total / 50:
                    break
            return [start + n for n in stage]
    taken = 0
    last: list[str] = []
    for name, parameter in reversed(list(net.named_parameters())):
        if taken > total / 4 and name.rsplit(".", 1)[0] != last[-1].rsplit(".", 1)[0]:
            break
        last.append(name)
        taken += parameter.numel()
    return last


class _SafeCheckpoints(CheckpointIO):
    """Lightning's checkpoints as safetensors alone."""

    def save_checkpoint(self, checkpoint_: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoint.save_tree(Path(path), checkpoint_)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return cast("dict[str, Any]", checkpoint.read_tree(Path(path), torch.device("cpu")))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class _Keep(Callback):
    """A checkpoint every so many steps and after each epoch, the best weights, ``metrics.csv``; and what is seen of it all.

    The bar is tqdm's on standard error, since Lightning's goes to standard output, where results belong.
    """

    def __init__(self, work: Path, every: int, log: Log):
        self.work, self.every, self.say = work, every, log
        self.shown = time.monotonic()
        self.bar: Any = None

    def on_train_epoch_start(self, trainer: L.Trainer, recipe: Any) -> None:
        if trainer.is_global_zero and sys.stderr.isatty():
            done = (
                trainer.fit_loop.epoch_loop.batch_progress.current.ready % trainer.num_training_batches
            )  # not reset yet
            label = f"epoch {trainer.current_epoch + 1} of {recipe.options.epochs}"
            self.bar = tqdm(
                total=int(trainer.num_training_batches),
                initial=done,
                desc=label,
                unit="step",
                dynamic_ncols=True,
                leave=False,
            )

    def on_train_batch_end(self, trainer: L.Trainer, recipe: Any, *rest: Any) -> None:
        at = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if at < trainer.num_training_batches and at % self.every == 0:
            trainer.save_checkpoint(self.work / "last.safetensors")
        loss = recipe.last_loss
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            self.bar.update()
        elif not sys.stderr.isatty() and time.monotonic() - self.shown > 20:
            self.shown = time.monotonic()
            self.say(f"epoch {trainer.current_epoch + 1}, step {at} of {trainer.num_training_batches}, loss {loss:.4f}")

    def on_validation_start(self, trainer: L.Trainer, recipe: Any) -> None:
        self.teardown(trainer, recipe, "validate")

    def teardown(self, trainer: L.Trainer, recipe: Any, stage: str) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def on_train_epoch_end(self, trainer: L.Trainer, recipe: Any) -> None:
        history = recipe.history
        if trainer.is_global_zero:
            if recipe.best() == len(history) - 1:
                checkpoint.save_tree(self.work / "best.safetensors", recipe.weights())
            write_history(self.work / "metrics.csv", history)
            line = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in history[-1].items() if k != "epoch")
            self.say(f"epoch {len(history)}: {line}")
        trainer.save_checkpoint(self.work / "last.safetensors")


def write_history(file: Path, history: list[dict[str, float]]) -> None:
    """One row per epoch, whole."""
    columns = list(dict.fromkeys(name for line in history for name in line))
    part = file.with_suffix(".part")
    with part.open("w", newline="") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(history)
    part.replace(file)


def fit(recipe: Recipe, work: Path, log: Log) -> None:
    """Train to the end, or on from ``work/last.safetensors``; then the best epoch's weights are in ``recipe``.

    Raises:
        InputError: the checkpoint there is damaged.
    """
    o = recipe.options
    last = work / "last.safetensors"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = o.precision if o.precision != "auto" else "bf16-mixed" if fast_bfloat16(device) else "32-true"
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")  # advice on workers and frozen modules
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
        several = "ddp_find_unused_parameters_true" if o.devices > 1 else "auto"
        trainer = L.Trainer(
            default_root_dir=work, max_epochs=o.epochs, precision=cast("Any", precision), devices=o.devices,
            strategy=several, callbacks=[_Keep(work, o.checkpoint_steps, log)],
            logger=TensorBoardLogger(str(work), name="tensorboard", version=""), plugins=[_SafeCheckpoints()],
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
            num_sanity_val_steps=0, use_distributed_sampler=False, deterministic="warn" if device.type == "cpu" else False,
        )  # fmt: skip
        recipe.train()  # Lightning leaves modules in the mode that it finds, and measuring the start left them at rest
        if last.is_file():
            log(f"going on from {last}")
        trainer.fit(
            recipe, Batches(recipe, recipe.draw), Batches(recipe, recipe.draw_validation),
            ckpt_path=last if last.is_file() else None,
        )  # fmt: skip
    if trainer.interrupted:
        raise KeyboardInterrupt
    if trainer.global_rank:
        raise SystemExit(0)  # the first process goes on alone
    recipe.kept().load_state_dict(checkpoint.read_tree(work / "best.safetensors", torch.device("cpu")))
    recipe.cpu().eval()


@torch.no_grad()
def encode(
    net: nn.Module, photos: Photos, device: torch.device, log: Log, rows: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Unit vectors of these rows, or of all (n, dim)."""
    net = net.eval().to(device)
    rows = np.arange(len(photos.labels)) if rows is None else rows
    parts, shown = [], time.monotonic()
    for n in range(0, len(rows), 64):
        parts.append(net(photos.pixels(rows[n : n + 64]).to(device)).float().cpu().numpy())
        if time.monotonic() - shown > 20:
            shown = time.monotonic()
            log(f"{n} of {len(rows)} photos encoded")
    return np.concatenate(parts).astype(np.float32)
