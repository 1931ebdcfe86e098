"""The recipe of the built-in model: photo and text towers trained together on products' photos, titles and attributes.

Losses: InfoNCE on titles, equal titles being positives (CLIP, Radford et al. 2021, https://arxiv.org/abs/2103.00020, with
the multi-positive targets of UniCL, Yang et al. 2022, https://arxiv.org/abs/2204.03610); the same on short texts made of
attributes; cross-entropy of attribute heads, which are thrown away afterwards. The weights that ship are an exponential
moving average. A run is resumable at any checkpoint and draws its randomness from (seed, step) alone.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from lookalike.errors import InputError, UsageError
from lookalike.indexes.lexical import singular
from lookalike.training import checkpoint
from lookalike.training.augment import POLICIES
from lookalike.training.augment import augment as augmented
from lookalike.training.data import HEADS, FashionData, load, thesaurus
from lookalike.training.pretrained import load_mobilenet, tokenizer_of, word_piece_table
from lookalike.training.towers import MAX_TOKENS, PhotoTower, TextTower

HEAD_WEIGHTS = dict(zip(HEADS, (1.0, 0.7, 0.3, 0.3, 0.15, 0.1, 0.1), strict=True))
MIXES: list[tuple[tuple[str, ...], float]] = [
    (("gender", "baseColour", "articleType"), 0.35),
    (("baseColour",), 0.15),
    (("articleType",), 0.2),
    (("subCategory",), 0.05),
    (("baseColour", "articleType"), 0.1),
    (("gender", "articleType"), 0.05),
    (("usage", "articleType"), 0.05),
    (("usage",), 0.025),
    (("season",), 0.025),
]
"""Attributes that make a short text together, and how often."""


ALIKE = ("articleType", "baseColour", "gender")
"""What makes two photos alike."""

CALIBRATED_AMONG = 12_000
"""Training photos that calibration looks among, beside those of the validation split."""

FRAMES = (
    "looking for {}", "i need {}", "{} please", "a nice {}", "some {}", "buy {} online", "cheap {}", "good quality {}",
    "{} as a gift", "{} for the holidays", "something like {}", "do you have {}", "where can i find {}", "new {}", "best {}",
    "comfortable {}", "simple {}", "lovely {}", "my favourite {}", "the latest {}", "branded {}", "trendy {}", "show me {}",
    "{} that lasts", "i want {} for tomorrow", "any {} in the sale", "{} with fast delivery", "a pair of {}", "which {}",
)  # fmt: skip
"""What people say around the thing."""

STREET_WORDS = {
    "T-Shirt": "Tshirts", "Pants": "Trousers", "Shoes": "Casual Shoes", "Shirt": "Shirts", "Outwear": "Jackets",
    "Dress": "Dresses", "Shorts": "Shorts", "Hat": "Caps", "Skirt": "Skirts", "Blazer": "Blazers", "Hoodie": "Sweatshirts",
    "Undershirt": "Innerwear Vests", "Body": "Rompers", "Top": "Tops", "Blouse": "Tops",
}  # fmt: skip
"""The clothing dataset's kinds in the catalogue's words, whose synonyms hold for both."""


@dataclass(frozen=True)
class Options:
    """Every hyper-parameter of the recipe; stored with the weights it made."""

    height: int = 128
    width: int = 96
    dim: int = 256
    frozen: int = 3
    epochs: float = 23.0
    batch: int = 384
    rate: float = 2e-3
    trunk_rate: float = 8e-4
    decay: float = 0.05
    warmup: int = 60
    average: float = 0.99
    small_share: float = 0.6
    small_scale: float = 0.75
    title_weight: float = 1.0
    attribute_weight: float = 0.5
    head_weight: float = 0.4
    smoothing: float = 0.05
    clip: float = 3.0
    trunk_width: float = 1.0
    synonyms: float = 0.4
    street: int = 48
    street_weight: float = 0.3
    pairs_weight: float = 0.0
    bank_weight: float = 0.0
    strength: float = 1.0
    word_drop: float = 0.12
    polish: int = 1500
    polish_rate: float = 6e-4
    seed: int = 1


class Towers(nn.Module):
    """Both towers, the temperature, and the attribute heads that only training needs."""

    def __init__(self, options: Options, table: Tensor, names: dict[str, list[str]]):
        super().__init__()
        self.photo = PhotoTower(options.dim, options.frozen, options.trunk_width)
        self.text = TextTower(table, options.dim)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.heads = nn.ModuleDict({h: nn.Linear(self.photo.features, len(names[h])) for h in HEADS})


class Bank(nn.Module):
    """What was last said of each training product, for a loss that sees the whole catalogue (Wang et al. 2020,
    https://arxiv.org/abs/1912.06798): unit vectors of photos, as the batches brought them, and of whole titles (n, dim).
    """

    photos: Tensor
    titles: Tensor

    def __init__(self, n: int, dim: int):
        super().__init__()
        self.register_buffer("photos", torch.zeros(n, dim))
        self.register_buffer("titles", torch.zeros(n, dim))


class Texts:
    """Titles and attributes as token ids, words dropped at random while training."""

    def __init__(self, data: FashionData, tokenizer: Tokenizer, synonyms: float = 0.0, word_drop: float = 0.12):
        self.data, self.tokenizer, self.synonyms, self.others = data, tokenizer, synonyms, thesaurus()
        self.word_drop = word_drop
        self.cache: dict[str, list[list[int]]] = {}

    def words(self, text: str) -> list[list[int]]:
        """The text's words, each as its word pieces."""
        if text not in self.cache:
            encoded = self.tokenizer.encode(text, add_special_tokens=False)
            pieces: dict[int, list[int]] = {}
            for token, word in zip(encoded.ids, encoded.word_ids, strict=True):
                pieces.setdefault(word or 0, []).append(token)
            self.cache[text] = list(pieces.values())
        return self.cache[text]

    def title(self, row: int, rng: np.random.Generator) -> list[int]:
        """A title: whole in 40% of cases, else half the time without its brand, and with words dropped at random."""
        words = self.words(self.data.titles[row])
        if len(words) > 3 and rng.random() > 0.4:
            if rng.random() < 0.5:
                words = words[rng.integers(1, 3) :]
            words = [w for w in words if rng.random() > self.word_drop] or words
        return [t for w in words for t in w]

    def word(self, value: str, rng: np.random.Generator) -> str:
        """A catalogue's word, its singular, or (``synonyms``) one of the thesaurus for it."""
        others = self.others.get(value, ())
        if others and rng.random() < self.synonyms:
            return others[rng.integers(len(others))]
        return singular(value) if rng.random() < 0.5 else value

    def spoken(self, text: str, rng: np.random.Generator) -> str:
        """As a person might type it: at times within a sentence, at times with a slip of the finger."""
        if rng.random() < 0.3:
            text = FRAMES[rng.integers(len(FRAMES))].format(text)
        if rng.random() < 0.12 and len(text) > 4:
            n = int(rng.integers(1, len(text) - 1))
            slip = int(rng.integers(3))  # a letter twice, one left out, two swapped
            text = text[:n] + (text[n - 1] + text[n:], text[n + 1 :], text[n : n + 2][::-1] + text[n + 2 :])[slip]
        return text

    def attributes(self, row: int, heads: tuple[str, ...], rng: np.random.Generator) -> list[int]:
        """Some attributes in a random order, "red dresses women" or "women red dress"."""
        return self.tokens(self.said(row, heads, rng))

    def said(self, row: int, heads: tuple[str, ...], rng: np.random.Generator) -> str:
        """Some attributes in a random order, as text."""
        values = [self.word(self.data.value(h, row), rng) for h in heads]
        return " ".join(values[n] for n in rng.permutation(len(values)))

    def tokens(self, text: str) -> list[int]:
        """A text's word pieces."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def kind(self, name: str, rng: np.random.Generator) -> list[int]:
        """A kind of garment of the clothing dataset, in its own word or in the catalogue's or a synonym of that."""
        known = STREET_WORDS.get(name)
        return self.tokens(self.word(known, rng) if known and rng.random() < 0.6 else name)


def padded(tokens: list[list[int]]) -> Tensor:
    """Token lists → int64 (n, longest), 0 where padded."""
    length = max(1, min(MAX_TOKENS, max(map(len, tokens))))
    out = torch.zeros(len(tokens), length, dtype=torch.long)
    for row, ids in enumerate(tokens):
        out[row, : len(ids[:length])] = torch.tensor(ids[:length], dtype=torch.long)
    return out


def augment(photos: Tensor, size: tuple[int, int], rng: torch.Generator, strength: float = 1.0) -> Tensor:
    """uint8 (n, h, w, 3) → floats (n, 3, *size) in −1 … 1: the standard policy, warps ``strength`` times as large.

    Light and colour stay, since colours must be told; above a strength of 1 half of the photos lose a rectangle.
    """
    s = POLICIES["standard"]
    grown = replace(s, rotate=s.rotate * strength, zoom=s.zoom * strength, shift=s.shift * strength)
    x = augmented(photos, replace(grown, erase=0.5 if strength > 1 else 0.0), rng, size)
    return ((x - 128) / 128).contiguous(memory_format=torch.channels_last)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Unit vectors (n, d) and (m, d) → (n, m); float32 also under autocast: scaled, 8 bits of mantissa are steps of .25."""
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float().T


def contrast(photos: Tensor, texts: Tensor, keys: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE both ways over unit vectors (n, d), those of equal ``keys`` (n,) being positives."""
    same = (keys[:, None] == keys[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    logits = scale * cosines(photos, texts)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pull(vectors: Tensor, keys: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrast (Khosla et al. 2020, https://arxiv.org/abs/2004.11362): unit vectors (n, d) of equal ``keys``."""
    himself = torch.eye(len(keys), dtype=torch.bool, device=keys.device)
    same = (keys[:, None] == keys[None, :]) & ~himself
    paired = same.any(1)
    logits = (cosines(vectors, vectors) / temperature).masked_fill(himself, -1e4)[paired]
    target = same[paired].float()
    return F.cross_entropy(logits, target / target.sum(1, keepdim=True)) if len(logits) else vectors.sum() * 0


def batches(data: FashionData, options: Options, start: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(step, rows) from step ``start`` on: each epoch is a permutation of the training split."""
    train = np.flatnonzero(data.split == 0)
    per_epoch = max(1, len(train) // options.batch)
    for step in range(start, round(options.epochs * per_epoch)):
        epoch, part = divmod(step, per_epoch)
        order = np.random.default_rng((options.seed, epoch)).permutation(train)
        yield step, order[part * options.batch : (part + 1) * options.batch]


def photos_of(data: FashionData, rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The rows' photos; the larger edition half of the time where there is one."""
    out = data.photos[rows]
    large = data.large[rows]
    for n in np.flatnonzero((large >= 0) & (rng.random(len(rows)) < 0.5)):
        out[n] = data.large_photos[large[n]]
    return out


class Run:
    """One training run: model, average, optimiser, schedule; saved and resumed as safetensors."""

    def __init__(self, data: FashionData, tokenizer: Tokenizer, table: NDArray[np.float32], options: Options):
        torch.manual_seed(options.seed)
        self.data, self.options = data, options
        self.texts = Texts(data, tokenizer, options.synonyms, options.word_drop)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Towers(options, torch.from_numpy(table), data.names)
        self.train_rows = np.flatnonzero(data.split == 0)
        self.per_epoch = max(1, len(self.train_rows) // options.batch)
        self.steps = round(options.epochs * self.per_epoch)
        self.step = 0
        ids: dict[str, int] = {}
        self.titles = np.array([ids.setdefault(t.lower(), len(ids)) for t in data.titles])
        self.bank = Bank(len(self.train_rows) if options.bank_weight else 0, options.dim).to(self.device)

    def begin(self, start: Callable[[PhotoTower], None] | None) -> None:
        """Load the starting weights (``start``), calibrate, and make the average and the optimiser."""
        options, model = self.options, self.model
        if start:
            start(model.photo)
            model.photo.calibrate(self._pixels(self.train_rows[:256], device=torch.device("cpu")))
        model.to(device=self.device)
        model.photo.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        frozen = {id(p) for layer in model.photo.layers[: model.photo.frozen] for p in layer.parameters()}
        for name, p in model.named_parameters():
            if id(p) not in frozen:
                rate = options.trunk_rate if name.startswith("photo.layers") else options.rate
                decay = options.decay if p.ndim > 1 and name != "text.delta" else 0.0
                groups.setdefault((rate, decay), []).append(p)
        # fused AdamW on the CPU pairs raw memory and scrambles channels_last weights: keep it off.
        self.optimiser = torch.optim.AdamW(
            [{"params": p, "lr": r, "base": r, "weight_decay": d} for (r, d), p in groups.items()],
            betas=(0.9, 0.98), fused=False,
        )  # fmt: skip

    def loss(self, rows: NDArray[np.int64]) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and its parts for the log."""
        o, data, model = self.options, self.data, self.model
        rng = np.random.default_rng((o.seed, 7, self.step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        torch.manual_seed(int(rng.integers(2**31)))
        scale = o.small_scale if self.step < self.steps * o.small_share else 1.0
        size = (round(o.height * scale / 32) * 32, round(o.width * scale / 32) * 32) if scale != 0.75 else (96, 72)
        photos = torch.from_numpy(photos_of(data, rows, rng)).to(self.device)
        taken = self._street_rows(rng)
        if len(taken) and data.street is not None:
            photos = torch.cat([photos, torch.from_numpy(data.street.photos[taken]).to(self.device)])
        pooled = model.photo.pooled(augment(photos, size, generator, o.strength))
        vectors = F.normalize(model.photo.project(pooled).float(), dim=-1)
        street, vectors, pooled = vectors[len(rows) :], vectors[: len(rows)], pooled[: len(rows)]
        temperature = model.scale.exp().clamp(max=100)

        titles = model.text(padded([self.texts.title(r, rng) for r in rows]).to(self.device))
        keys = torch.from_numpy(self.titles[rows]).to(self.device)
        parts = {"title": contrast(vectors, titles, keys, temperature) * o.title_weight}
        if o.bank_weight:
            parts |= self._among_all(rows, vectors, titles, temperature)

        chosen = MIXES[rng.choice(len(MIXES), p=[share for _, share in MIXES])][0]
        labels = data.labels[rows]
        values = labels[:, [HEADS.index(h) for h in chosen]]
        known = np.flatnonzero((values >= 0).all(1))
        texts = model.text(padded([self.texts.attributes(rows[n], chosen, rng) for n in known]).to(self.device))
        same = torch.from_numpy(np.unique(values[known], axis=0, return_inverse=True)[1].reshape(-1)).to(self.device)
        parts["attributes"] = contrast(vectors[known], texts, same, temperature) * o.attribute_weight

        if o.pairs_weight:
            alike = labels[:, [HEADS.index(h) for h in ALIKE]]
            known = np.flatnonzero((alike >= 0).all(1))
            same = torch.from_numpy(np.unique(alike[known], axis=0, return_inverse=True)[1].reshape(-1)).to(self.device)
            parts["pairs"] = pull(vectors[known], same) * o.pairs_weight

        if len(taken) and data.street is not None:
            kinds = data.street.labels[taken]
            texts = model.text(padded([self.texts.kind(data.street.names[k], rng) for k in kinds]).to(self.device))
            keys = torch.from_numpy(kinds).to(self.device)
            parts["street"] = contrast(street, texts, keys, temperature) * o.street_weight

        targets = torch.from_numpy(labels).to(self.device)
        parts["heads"] = o.head_weight * sum(
            (
                weight
                * F.cross_entropy(model.heads[h](pooled), targets[:, n], ignore_index=-1, label_smoothing=o.smoothing)
                for n, (h, weight) in enumerate(HEAD_WEIGHTS.items())
            ),
            start=torch.zeros((), device=self.device),
        )
        return sum(parts.values(), start=torch.zeros((), device=self.device)), {k: v.item() for k, v in parts.items()}

    def _among_all(
        self, rows: NDArray[np.int64], photos: Tensor, titles: Tensor, temperature: Tensor
    ) -> dict[str, Tensor]:
        """The title loss against every product of the training split, once all have been seen; keeps what this batch says."""
        parts = {}
        seen = self.bank.photos.any(1)
        # An epoch leaves out what fills no batch, another one in all likelihood does not.
        if seen.all() or self.step >= 2 * self.per_epoch:
            if self.step % max(1, self.per_epoch // 2) == 0 or not self.bank.titles.any():
                self.bank.titles = self._whole_titles()
            same = torch.from_numpy(self.titles[rows][:, None] == self.titles[self.train_rows][None, :]).to(self.device)
            target = same.float() / same.sum(1, keepdim=True)
            found = F.cross_entropy(temperature * cosines(photos, self.bank.titles), target)
            same = same & seen
            logits = (temperature * cosines(titles, self.bank.photos)).masked_fill(~seen, -1e4)
            found = found + F.cross_entropy(logits, same.float() / same.sum(1, keepdim=True).clamp(min=1))
            parts["bank"] = found / 2 * self.options.bank_weight
        places = torch.from_numpy(np.searchsorted(self.train_rows, rows)).to(self.device)
        # Another tensor: what the loss was taken over must stay until it has been led back.
        self.bank.photos = self.bank.photos.index_copy(0, places, photos.detach())
        return parts

    @torch.no_grad()
    def _whole_titles(self) -> Tensor:
        """What the averaged text tower says of the training split's titles (n, dim)."""
        said = [[t for w in self.texts.words(self.data.titles[r]) for t in w] for r in self.train_rows]
        parts = np.array_split(np.arange(len(said)), len(said) // 1024 + 1)
        return torch.cat([self.average.text(padded([said[n] for n in part]).to(self.device)) for part in parts])

    def _street_rows(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """Photos by people for one step; those for measuring are never among them."""
        if self.data.street is None or not self.options.street:
            return np.zeros(0, np.int64)
        allowed = np.flatnonzero(~self.data.street.test)
        return np.sort(rng.choice(allowed, min(self.options.street, len(allowed)), replace=False))

    def advance(self, rows: NDArray[np.int64]) -> dict[str, float]:
        """One optimiser step."""
        o = self.options
        progress = self.step / self.steps
        factor = min(1.0, (self.step + 1) / o.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            loss, parts = self.loss(rows)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), o.clip)
        self.optimiser.step()
        self.step += 1
        keep = min(o.average, self.step / (self.step + 10))
        for mean, now in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            if mean.dtype.is_floating_point:
                mean.lerp_(now, 1 - keep)
            else:
                mean.copy_(now)
        return parts

    @torch.no_grad()
    def vectors(self, rows: NDArray[np.int64], source: NDArray[np.uint8] | None = None) -> Tensor:
        """What the averaged photo tower says of some photos as they are: unit vectors (rows, dim)."""
        net = self.average.photo
        parts = np.array_split(rows, len(rows) // 256 + 1)
        return F.normalize(torch.cat([net.project(net.pooled(self._pixels(p, source))) for p in parts]), dim=-1)

    @torch.no_grad()
    def validate(self, others: int = 8192) -> dict[str, float]:
        """Of the average, on the validation split: heads' accuracy, recall@1 and @10 of its titles, P@10 of its photos.

        The titles look for their photos among those of the split and ``others`` of the training split: the fewer, the more
        the figure flatters. The figures that count come from ``lookalike evaluate kagl`` over the whole corpus.
        """
        rows = np.flatnonzero(self.data.split == 1)
        train = np.random.default_rng(0).permutation(self.train_rows)[:others]
        corpus = np.concatenate([rows, np.sort(train)])
        net = self.average
        pooled = torch.cat(
            [net.photo.pooled(self._pixels(part)) for part in np.array_split(corpus, len(corpus) // 256 + 1)]
        )
        vectors = F.normalize(net.photo.project(pooled), dim=-1)
        pooled = pooled[: len(rows)]
        asked = rows[np.unique(self.titles[rows], return_index=True)[1]]
        tokens = padded([[t for w in self.texts.words(self.data.titles[r]) for t in w] for r in asked])
        order = (net.text(tokens.to(self.device)) @ vectors.T).topk(min(10, len(corpus)), 1).indices.cpu().numpy()
        right = self.titles[corpus][order] == self.titles[asked][:, None]
        relevant = (self.titles[corpus][None, :] == self.titles[asked][:, None]).sum(1)
        report = {f"recall@{k}": float((right[:, :k].sum(1) / relevant).mean()) for k in (1, 10)}
        among = vectors[: len(rows)] @ vectors.T
        among.fill_diagonal_(-2.0)
        labels = self.data.labels[corpus][:, [HEADS.index(h) for h in ALIKE]]
        near = among.topk(min(10, len(corpus) - 1), 1).indices.cpu().numpy()
        same = labels[near] == labels[: len(rows), None]
        report |= {f"alike {h}": float(same[:, :, n].mean()) for n, h in enumerate(ALIKE)}
        report["alike in all"] = float(same.all(2).mean())
        for n, h in enumerate(HEADS):
            target = self.data.labels[rows, n]
            right = net.heads[h](pooled).argmax(1).cpu().numpy() == target
            report[h] = float(right[target >= 0].mean()) if (target >= 0).any() else math.nan
        return report

    def _pixels(
        self, rows: NDArray[np.int64], source: NDArray[np.uint8] | None = None, device: torch.device | None = None
    ) -> Tensor:
        """The rows' photos as they are, floats (n, 3, h, w) in −1 … 1."""
        photos = torch.from_numpy((self.data.photos if source is None else source)[rows]).to(device or self.device)
        return ((photos.permute(0, 3, 1, 2).float() - 128) / 128).contiguous(memory_format=torch.channels_last)

    def _nets(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average, "bank": self.bank}

    def save(self, file: Path) -> None:
        """Everything that a later process needs to go on, in one safetensors file, replaced whole."""
        meta = {
            "step": str(self.step),
            "options": json.dumps(asdict(self.options)),
            "names": json.dumps(self.data.names),
        }
        checkpoint.save(file, self._nets(), self.optimiser, meta)

    def start_from(self, starts: Sequence[Path]) -> None:
        """Begin with what earlier runs ended with; the mean of their weights where there are several.

        Runs that began with the same weights stay near enough to each other for their mean to be better than each (model
        soups, Wortsman et al. 2022, https://arxiv.org/abs/2203.05482). What batch normalisation has counted is averaged, too:
        counted anew it is the same with a run's own mixture of photos, and far worse with another (docs/lab-log.md).

        Args:
            starts: the runs' ``final.safetensors``; or the directories of the encoders that they made, whose heads are new.

        Raises:
            InputError: one is damaged, or of towers of another shape.
        """
        exported = [start.is_dir() for start in starts]
        if any(exported) and not all(exported):
            raise InputError(f"{', '.join(map(str, starts))}: give --start files or directories, not both")
        states = []
        for start in starts:  # each alone first: what is wrong is said of the file that has it
            states.append(self._exported(start) if start.is_dir() else checkpoint.read(start, self.device)[0])
            self._load(states[-1], start)
        if len(states) > 1:
            weights = [k for k, v in states[0].items() if v.is_floating_point()]
            mean = {k: torch.stack([state[k] for state in states]).mean(0) for k in weights}
            self._load(states[0] | mean, starts[0])
        if exported[0]:  # folded weights compute the same once batch normalisation knows the photos as they are
            last = len(self.train_rows) - 1
            rows = self.train_rows[np.linspace(0, last, min(1024, last + 1)).astype(int)]
            self.model.photo.calibrate(self._pixels(rows))
        self.average.load_state_dict(self.model.state_dict())
        if self.options.bank_weight:
            self.bank.photos = self.vectors(self.train_rows)

    def _load(self, state: dict[str, Tensor], file: Path) -> None:
        """Weights into the model; what an exported encoder has none of (the heads) stays as it is."""
        try:
            self.model.load_state_dict((self.model.state_dict() if file.is_dir() else {}) | state)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{file}: not the weights of such a run ({reason})") from error

    def _exported(self, directory: Path) -> dict[str, Tensor]:
        """The towers of an encoder's directory by this run's names; batch normalisation takes the folded biases."""
        from lookalike.training.adapt import load_towers

        photo, text = load_towers(directory)
        state = {f"photo.{k}": v for k, v in photo.state_dict().items()}
        ours = self.model.state_dict()
        for name in [k for k in state if k not in ours]:
            state[name.replace("conv.bias", "norm.bias")] = state.pop(name)
        state |= {f"text.{k}": v for k, v in text.state_dict().items()}
        # What is exported as one table is the fixed one and what was learnt.
        table, both = ours["text.table"].cpu(), state["text.table"]
        if table.shape == both.shape:
            state |= {"text.delta": both - table, "text.table": table}
        return {k: v.to(self.device) for k, v in state.items()}

    def resume(self, file: Path) -> None:
        """Go on from ``file``.

        Raises:
            InputError: it was made with other options or another data set, or is damaged.
        """
        tensors, meta = checkpoint.read(file, self.device)
        if json.loads(meta["options"]) != asdict(self.options) or json.loads(meta["names"]) != self.data.names:
            raise InputError(f"{file}: a checkpoint of other options or data; remove it, or give another --work")
        checkpoint.restore(tensors, self._nets(), self.optimiser)
        self.step = int(meta["step"])


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: any recent GPU, or a CPU with AMX or AVX-512's bfloat16."""
    cpu = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" or cpu


def train(
    run: Run,
    work: Path,
    start: Callable[[PhotoTower], None] | None = None,
    earlier: Sequence[Path] = (),
    save_every: float = 300.0,
    log: Callable[[str], None] = print,
) -> Path:
    """Train to the end, or on from ``work/checkpoint.safetensors``; returns the checkpoint's path."""
    file = work / "checkpoint.safetensors"
    run.begin(start)
    if file.is_file():
        run.resume(file)
        log(f"going on at step {run.step} of {run.steps}")
    elif earlier:
        run.start_from(earlier)
    began = saved = time.monotonic()
    first = run.step
    for _, rows in batches(run.data, run.options, run.step):
        parts = run.advance(rows)
        now = time.monotonic()
        if run.step % 10 == 0:
            speed = (run.step - first) * run.options.batch / (now - began)
            left = (run.steps - run.step) * run.options.batch / speed / 60
            shown = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
            log(f"step {run.step}/{run.steps}  {shown}  {speed:.0f} photos/s  {left:.0f} min left")
        if run.step % run.per_epoch == 0 or run.step == run.steps:
            report = {k: round(v, 4) for k, v in run.validate().items()}
            log(f"epoch {run.step / run.per_epoch:.1f}  validation {json.dumps(report)}")
            with (work / "log.jsonl").open("a") as lines:
                lines.write(json.dumps({"step": run.step, "losses": parts, "validation": report}) + "\n")
        if now - saved > save_every or run.step == run.steps:
            run.save(file)
            saved = now
    if not run.steps:  # no epochs: the weights that it began with are what is wanted
        run.save(file)
    return file


def options_from(pairs: list[str]) -> Options:
    """``name=value`` texts → options. Raises UsageError where there is no such option or the value is no number."""
    values: dict[str, Any] = {}
    kinds: dict[str, Callable[[str], Any]] = {name: type(value) for name, value in asdict(Options()).items()}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in kinds:
            raise UsageError(f"--set {pair}: no such hyper-parameter; there are {', '.join(kinds)}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            raise UsageError(f"--set {pair}: a number is wanted, like {getattr(Options(), name)}") from None
    return Options(**values)


def main(
    data: Path, large: Path | None, street: Path | None, ground_truth: Path, mobilenet: Path, minilm: str,
    earlier: Sequence[Path], work: Path, out: Path, options: Options, quantise: bool, log: Callable[[str], None],
) -> None:  # fmt: skip
    """From the raw data to the files that ship; a second call with the same ``work`` goes on where the first was.

    Raises:
        InputError: a part of the data is missing, or ``work`` holds a run of other options.
    """
    log("packing photos")
    packed = load(data, large, ground_truth, work, (options.height, options.width), street)
    counts = np.bincount(packed.split, minlength=3)
    log(f"{counts[0]} products to train on, {counts[1]} to validate, {counts[2]} held out")
    kept = work / "pieces.safetensors"
    if not kept.is_file():
        log("reading MiniLM's word pieces")
        table, pieces = word_piece_table(minilm)
        save_file({"table": torch.from_numpy(table)}, kept, {"pieces": json.dumps(pieces)})
    with safe_open(kept, "np") as saved:
        table, pieces = saved.get_tensor("table"), json.loads(saved.metadata()["pieces"])
    tokenizer = tokenizer_of(pieces)
    run = Run(packed, tokenizer, table, options)
    trained = train(run, work, lambda tower: load_mobilenet(tower, mobilenet), earlier, log=log)
    ship(run, trained, out, tokenizer, quantise, log)
    log(f"written to {out}; measure it: lookalike index {data} --encoder {out}, then lookalike evaluate kagl")


def ship(
    run: Run, file: Path, directory: Path, tokenizer: Tokenizer, quantise: bool = True,
    log: Callable[[str], None] = lambda line: None,
) -> None:  # fmt: skip
    """Export a checkpoint's averaged weights as an encoder directory; see ``training.export``."""
    from lookalike.training.export import calibrate, export
    from lookalike.training.polish import polish

    run.begin(None)
    run.resume(file)
    polish(run, log)
    log(f"after polishing: validation {json.dumps({k: round(v, 4) for k, v in run.validate().items()})}")
    save_file(
        {k: v.cpu().contiguous() for k, v in run.average.state_dict().items()}, file.with_name("final.safetensors")
    )
    rows = np.random.default_rng(0).permutation(run.train_rows)[:512]
    size = (run.options.height, run.options.width)
    average = run.average.cpu()
    export(average.photo, average.text, tokenizer, size, run.data.photos[np.sort(rows)], directory, "builtin", quantise)
    # Queries of the validation split, among enough others that the best hit is as near as in a catalogue of some size.
    tried = np.flatnonzero(run.data.split == 1)
    corpus = np.concatenate([tried, np.random.default_rng(1).permutation(run.train_rows)[:CALIBRATED_AMONG]])
    attributes = np.array([[run.data.value(h, int(r)) for h in ALIKE] for r in corpus], object)
    calibrate(directory, run.data.photos[corpus], attributes, np.arange(len(corpus)) < len(tried))
