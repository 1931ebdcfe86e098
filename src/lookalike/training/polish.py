"""The last step of the built-in model's recipe: more words for the text tower, against photo vectors that stay as they are.

While the towers learn together, a text comes as often as its products: a synonym of something rare is hardly ever heard.
Here half of each batch is titles, each against every photo of the training split; the other half is attributes, every value
as often as any other, said in the thesaurus' words, within sentences and with slips of the finger. Costs minutes, since no
photo is looked at again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.training.builtin import MIXES, Run, contrast, padded
from lookalike.training.data import HEADS

SYNONYMS = 0.7
"""Share of words that are said otherwise."""


class _Fixed:
    """Photos' vectors that no longer change, and what is said of them."""

    def __init__(self, run: Run):
        self.run, self.o, self.texts = run, run.options, run.texts
        self.rows = run.train_rows
        self.photos = run.vectors(self.rows)
        self.labels = run.data.labels[self.rows]
        self.titles = torch.from_numpy(run.titles[self.rows]).to(run.device)
        street = run.data.street
        self.street = np.flatnonzero(~street.test) if street is not None and self.o.street else self.rows[:0]
        self.street_photos = run.vectors(self.street, street.photos) if street is not None else self.photos[:0]
        self.of_value = [
            [rows for v in range(len(run.data.names[h])) if len(rows := np.flatnonzero(self.labels[:, n] == v))]
            for n, h in enumerate(HEADS)
        ]

    def losses(self, text: nn.Module, scale: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
        """One batch's losses."""
        device = self.run.device

        def against(vectors: Tensor, tokens: list[list[int]], keys: NDArray[np.int64]) -> Tensor:
            return contrast(vectors, text(padded(tokens).to(device)), torch.from_numpy(keys).to(device), scale)

        half = self.o.batch // 2
        rows = rng.choice(len(self.rows), min(half, len(self.rows)), replace=False)
        said = [self.texts.title(int(self.rows[r]), rng) for r in rows]
        # Photos that stay as they are can all be negatives, whole catalogue at once: what retrieval will face.
        same = (self.titles[rows][:, None] == self.titles[None, :]).float()
        logits = scale * text(padded(said).to(device)) @ self.photos.T
        out = {"title": F.cross_entropy(logits, same / same.sum(1, keepdim=True))}

        names, _ = MIXES[rng.integers(len(MIXES))]
        heads = [HEADS.index(h) for h in names]
        lists = self.of_value[
            max(heads, key=lambda h: len(self.of_value[h]))
        ]  # of colour and type, the one with more values
        rows = np.array([rng.choice(lists[v]) for v in rng.integers(len(lists), size=half)])
        values = self.labels[rows][:, heads]
        rows, values = rows[(values >= 0).all(1)], values[(values >= 0).all(1)]
        said = [self.texts.tokens(self.texts.spoken(self.texts.said(int(self.rows[r]), names, rng), rng)) for r in rows]
        keys = np.unique(values, axis=0, return_inverse=True)[1].reshape(-1)
        out["attributes"] = against(self.photos[rows], said, keys)

        street = self.run.data.street
        if street is not None and len(self.street):
            rows = rng.choice(len(self.street), min(self.o.street, len(self.street)), replace=False)
            kinds = street.labels[self.street[rows]]
            said = [self.texts.kind(street.names[k], rng) for k in kinds]
            out["street"] = against(self.street_photos[rows], said, kinds) * self.o.street_weight
        return out


def polish(run: Run, log: Callable[[str], None]) -> None:
    """Teach ``run.average.text``; the photo tower is not touched."""
    o = run.options
    if not o.polish:
        return
    log("encoding the photos once, to polish the text tower")
    fixed = _Fixed(run)
    text = run.average.text
    mean = copy.deepcopy(text)
    text.train().requires_grad_(True)
    parameters = list(text.parameters())
    decayed = [p for p in parameters if p.ndim > 1 and p is not text.delta]
    others = [p for p in parameters if p.ndim < 2 or p is text.delta]
    groups = [{"params": decayed, "weight_decay": o.decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=o.polish_rate, betas=(0.9, 0.98), fused=False)
    scale = run.average.scale.exp().clamp(max=100)
    run.texts.synonyms, before = SYNONYMS, run.texts.synonyms
    for step in range(o.polish):
        shape = min(1.0, (step + 1) / 100) * (0.01 + 0.495 * (1 + math.cos(math.pi * step / o.polish)))
        for group in optimiser.param_groups:
            group["lr"] = o.polish_rate * shape
        rng = np.random.default_rng((o.seed, 8, step))
        torch.manual_seed(int(rng.integers(2**31)))
        losses = fixed.losses(text, scale, rng)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, o.clip)
        optimiser.step()
        with torch.no_grad():
            for kept, now in zip(mean.state_dict().values(), text.state_dict().values(), strict=True):
                kept.lerp_(now, 1 - min(0.998, (step + 1) / (step + 11)))
        if (step + 1) % 200 == 0:
            log(f"polish {step + 1}/{o.polish}  {' '.join(f'{k} {v.item():.3f}' for k, v in losses.items())}")
    run.texts.synonyms = before
    run.average.text = mean.eval()
