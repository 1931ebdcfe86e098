"""The recipe that learns from words: fine-tune a photo-and-text model on photos with their titles."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lookalike.encoders.torch import Backbone
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import metrics
from lookalike.training.builtin import contrast
from lookalike.training.loop import Log, Recipe, encode
from lookalike.training.options import Contrast
from lookalike.training.photos import Photos, filled

LIMIT = math.log(100)
"""Of the logarithm of CLIP's temperature (Radford et al. 2021, 2.5); SigLIP has none."""

SHARES = tuple(n / 10 for n in range(11))
"""Shares of the new weights that are tried against forgetting."""


class ContrastRecipe(Recipe):
    """CLIP's symmetric InfoNCE (Radford et al. 2021), or SigLIP's pairwise sigmoid (Zhai et al. 2023).

    Equal texts within a batch are positives of each other. With ``chunk``, embeddings are computed without memory of
    how, the loss is taken over the whole batch, and each chunk is computed again for its gradients (gradient caching, Gao et
    al. 2021, https://arxiv.org/abs/2101.06983): the same step in less memory. Use ``adapt`` for the built-in model.
    """

    options: Contrast

    def __init__(self, photos: Photos, backbone: Backbone, options: Contrast):
        if backbone.text is None or backbone.tokenizer is None:
            raise InputError(f"--start {options.start}: reads no text; contrast wants a model of photos and texts")
        if options.chunk and options.precision == "16-mixed":
            raise UsageError("--chunk: gradient caching works with --precision 32-true or bf16-mixed")
        if options.chunk and options.devices > 1:
            raise UsageError("--chunk: gradient caching works with --devices 1")
        model: Any = backbone.text.model
        super().__init__(photos, backbone, options, model)
        self.text = backbone.text
        self.automatic_optimization = not options.chunk
        self.scale: nn.Parameter = model.logit_scale
        bias = getattr(model, "logit_bias", None)
        self.bias = bias if bias is not None else nn.Parameter(torch.tensor(-10.0))
        self.bias.requires_grad = options.loss == "siglip"
        self.texts = Texts(photos, options)
        kept = sorted({t for t in self.texts.titles if t})
        if len(kept) < 2:
            raise InputError(
                f"{len(kept)} different texts to learn from; give titles (--map title=COLUMN) or --template"
            )

    def kept(self) -> nn.Module:
        """Both towers."""
        model: nn.Module = self.text.model  # type: ignore[assignment]
        return model

    def loss(self, rows: Tensor, x: Tensor) -> dict[str, Tensor]:
        """The loss over the batch, and how often a text's photo is the nearest."""
        texts = self.texts.of(rows, self.training)
        return self._compared(F.normalize(self.net.net(x).float(), dim=-1), self.text(self._ids(texts)), texts)

    def _compared(self, photos: Tensor, texts: Tensor, said: list[str]) -> dict[str, Tensor]:
        known = {text: n for n, text in enumerate(dict.fromkeys(said))}
        keys = torch.tensor([known[text] for text in said], device=photos.device)
        infonce = self.options.loss == "infonce"
        if infonce:  # CLIP's limit, on the parameter itself: a limit on what comes of it would hold it there for good
            with torch.no_grad():
                self.scale.clamp_(max=LIMIT)
        scale = self.scale.float().exp()
        if infonce:
            loss = contrast(photos, texts, keys, scale)
        else:
            sign = torch.where(keys[:, None] == keys[None], 1.0, -1.0)
            loss = -F.logsigmoid(sign * (scale * photos @ texts.T + self.bias)).sum() / len(photos)
        right = keys[(texts @ photos.T).argmax(1)] == keys
        return {"loss": loss, "accuracy": right.float().mean()}

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return token_ids(self.backbone, texts).to(self.device)

    def training_step(self, rows: Tensor, at: int) -> Tensor:
        """As ``Recipe.training_step``, or in chunks."""
        o = self.options
        if not o.chunk:
            return super().training_step(rows, at)
        x = self.augmented(rows, at)
        said = self.texts.of(rows, True)
        ids = self._ids(said)
        parts = [(x[n : n + o.chunk], ids[n : n + o.chunk]) for n in range(0, len(x), o.chunk)]
        seeds = [int(torch.randint(2**31, ())) for _ in parts]

        def computed(n: int) -> tuple[Tensor, Tensor]:
            torch.manual_seed(seeds[n])  # what is dropped must be the same both times
            return F.normalize(self.net.net(parts[n][0]).float(), dim=-1), self.text(parts[n][1])

        with torch.no_grad():
            photos, texts = (
                torch.cat(both).requires_grad_() for both in zip(*map(computed, range(len(parts))), strict=True)
            )
        found = self._compared(photos, texts, said)
        optimiser: Any = self.optimizers()
        optimiser.zero_grad()
        self.manual_backward(found["loss"])
        assert photos.grad is not None
        assert texts.grad is not None
        begin = 0
        for n in range(len(parts)):
            a, b = computed(n)
            end = begin + len(a)
            self.manual_backward((a * photos.grad[begin:end]).sum() + (b * texts.grad[begin:end]).sum())
            begin = end
        optimiser.step()
        schedule: Any = self.lr_schedulers()
        if schedule is not None:
            schedule.step()
        self._note("training", found, len(rows))
        return found["loss"].detach()

    @torch.no_grad()
    def interpolate(self, first: dict[str, Tensor], log: Log) -> list[dict[str, float]]:
        """Put a mean of the first weights and those learnt in place (WiSE-FT, Wortsman et al. 2022).

        https://arxiv.org/abs/2109.01903. The share is the one given, or else the smallest whose figure on the
        validation products is within 1% of the best one's: as little is forgotten as the gain allows.

        Returns:
            ``[{"share", "found in 10", "kept"}, …]``.
        """
        asked = self.options.interpolate
        last = self.weights()
        shares = SHARES if asked == "auto" else (float(asked),)
        rows = np.flatnonzero(self.photos.validation)[:2000]
        titles = [self.texts.titles[row] for row in rows]
        tried = []
        for share in shares:
            self._mix(first, last, share)
            vectors = encode(self.net, self.photos, self.device, log, rows)
            hits = found_in(vectors, texts_of(self.backbone, titles), titles, 10, np.arange(len(rows)))
            tried.append({"share": share, "found in 10": round(float(hits.mean()), 4)})
        best = max(t["found in 10"] for t in tried)
        kept = next(t["share"] for t in tried if t["found in 10"] >= 0.99 * best)
        self._mix(first, last, kept)
        return [{**t, "kept": float(t["share"] == kept)} for t in tried]

    def _mix(self, first: dict[str, Tensor], last: dict[str, Tensor], share: float) -> None:
        mixed = {k: v if not v.is_floating_point() else first[k] + share * (v - first[k]) for k, v in last.items()}
        self.kept().load_state_dict(mixed)


class Texts:
    """What is said of each photo: its title, or a template filled from its attributes."""

    def __init__(self, photos: Photos, options: Contrast):
        fields = re.findall(r"\{(.*?)\}", options.template)
        missing = next((f for f in fields if not any(f in row for row in photos.rows)), "")
        if missing:
            known = dict.fromkeys(c for row in photos.rows for c in row)
            raise InputError(f"--template {options.template!r}: no column {missing!r}; there are {', '.join(known)}")
        self.templates = [filled(options.template, row) for row in photos.rows]
        self.share = options.template_share if options.template else 0.0
        self.titles = [title or text for title, text in zip(photos.titles, self.templates, strict=True)]

    def of(self, rows: Tensor, drawn: bool) -> list[str]:
        """One text of each row; while training, sometimes that of the template. Draws from torch's generator."""
        out = []
        for row, chance in zip(rows.tolist(), torch.rand(len(rows)).tolist(), strict=True):
            use = drawn and chance < self.share and self.templates[row]
            out.append(self.templates[row] if use else self.titles[row])
        return out


def token_ids(backbone: Backbone, texts: Sequence[str]) -> Tensor:
    """Texts → int64 (n, length), as the tokenizer pads them."""
    assert backbone.tokenizer is not None
    return torch.tensor([e.ids for e in backbone.tokenizer.encode_batch(list(texts))], dtype=torch.long)


@torch.no_grad()
def texts_of(backbone: Backbone, texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of texts (n, dim)."""
    assert backbone.text is not None
    net = backbone.text.eval()
    device = next(net.parameters()).device
    parts = [net(token_ids(backbone, texts[n : n + 64]).to(device)).cpu().numpy() for n in range(0, len(texts), 64)]
    return np.concatenate(parts).astype(np.float32)


def found_in(
    vectors: NDArray[np.float32], texts: NDArray[np.float32], titles: Sequence[str], k: int, rows: NDArray[np.int64]
) -> metrics.PerQuery:
    """Whether a photo of that title, in any case, is among the first ``k``: for each of ``rows``, whose are ``texts``."""
    order = metrics.ranked(vectors, texts, k)
    lower = np.array([title.lower() for title in titles], object)
    return np.asarray((lower[order] == lower[rows][:, None]).any(1), np.float64)
