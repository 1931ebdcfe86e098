"""Fine-tune an exported model on one's own catalogue, and keep the result only where it is better.

The weights are read back from the ONNX files that ship (8-bit ones dequantised), trained with the built-in model's own losses
on the titles and the attributes of a source, exported again, and measured through the same runtime as before on products that
the training never saw.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer
from torch import Tensor, nn

from lookalike import images
from lookalike.encoders.base import Encoder
from lookalike.encoders.onnx import OnnxEncoder
from lookalike.errors import ImageError, InputError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import encode_texts, summary
from lookalike.feedback import Vote
from lookalike.indexes.lexical import singular
from lookalike.sources import Source
from lookalike.training import checkpoint
from lookalike.training.builtin import augment, contrast, fast_bfloat16, padded
from lookalike.training.towers import Conv, PhotoTower, TextTower

LEAST = 100
"""Products under which there is nothing to learn, and nothing to measure."""

HELD_OUT = 0.2
LEAST_HELD_OUT, LEAST_TO_CALIBRATE = 15, 60
"""Held-out products under which nothing can be said of a gain, or of what a cosine means."""

SHARED = 8
"""A photo that stands at more products than this is a size chart or a placeholder, and says nothing of any."""
KINDS = 200
"""A column with more different values than this is no kind of thing (codes, titles)."""


@dataclass(frozen=True)
class Options:
    """Hyper-parameters; stored with the checkpoint."""

    epochs: float = 6.0
    least_steps: int = 150
    batch: int = 128
    rate: float = 3e-4
    decay: float = 0.02
    clip: float = 1.0
    title_weight: float = 1.0
    attribute_weight: float = 0.5
    frozen: int = 7
    votes: int = 32
    vote_weight: float = 0.5
    seed: int = 1


@dataclass(frozen=True)
class OwnData:
    """A source packed for training: one row per photo.

    ``photos`` uint8 (n, h, w, 3); ``columns``: text column → its values (n,), "" where missing; ``test`` bool (n,): held out,
    whole products at a time, byte-identical photos on one side; ``votes`` are (words, row, whether found good); ``digest`` of
    everything that is here.
    """

    products: list[str]
    titles: list[str]
    photos: NDArray[np.uint8]
    columns: dict[str, NDArray[Any]]
    test: NDArray[np.bool_]
    digest: str = ""
    votes: Sequence[tuple[str, int, bool]] = ()

    @property
    def first(self) -> NDArray[np.int64]:
        """The row of each product's first photo: what is measured, since photos of one product are no independent draws."""
        return np.sort(np.unique(np.array(self.products, object), return_index=True)[1])


def load(source: Source, encoder: Encoder, log: Callable[[str], None], votes: Sequence[Vote] = ()) -> OwnData:
    """Read and prepare every photo of ``source``; ``votes`` are what visitors found good or bad of it.

    Raises:
        InputError: too few products that have a title or text attributes.
    """
    products, titles, photos, digests, rows = [], [], [], [], []
    for n, product in enumerate(source.products):
        for photo in product.photos:
            try:
                content = images.load(photo)
                photos.append(encoder.prepare(images.read(content, at_least=max(encoder.size), name=str(photo))))
            except (ImageError, InputError) as error:
                log(f"left out: {error}")
                continue
            products.append(product.id)
            titles.append(product.title.strip())
            digests.append(images.digest(content))
            rows.append(product.attributes)
        if n and n % 2000 == 0:
            log(f"{n} of {len(source.products)} products read")
    columns: dict[str, NDArray[Any]] = {}
    for name in dict.fromkeys(c for row in rows for c in row):
        values = [row.get(name) for row in rows]
        texts = np.array([v if isinstance(v, str) else "" for v in values], object)
        if 2 <= len(set(texts) - {""}) <= KINDS and all(v is None or isinstance(v, str) for v in values):
            columns[name] = texts
    owners: dict[str, set[str]] = {}
    for product_id, digest in zip(products, digests, strict=True):
        owners.setdefault(digest, set()).add(product_id)
    charts = {d for d, of in owners.items() if len(of) > SHARED}
    if charts:
        log(f"left out: {sum(d in charts for d in digests)} photos that each stand at more than {SHARED} products")
    said = [bool(title) or any(c[n] for c in columns.values()) for n, title in enumerate(titles)]
    keep = np.array([n for n in range(len(products)) if said[n] and digests[n] not in charts], np.int64)
    useful = len({products[n] for n in keep})
    if useful < LEAST:
        raise InputError(
            f"{source.key}: {useful} products with a photo and a title or text columns; at least {LEAST} are needed to "
            "train and to measure"
        )
    products, titles, digests = ([values[n] for n in keep] for values in (products, titles, digests))
    columns = {name: values[keep] for name, values in columns.items()}
    packed = np.stack([photos[n] for n in keep])
    test = places(products, digests) < HELD_OUT
    row_of = {p: n for n, p in reversed(list(enumerate(products)))}
    said_of = [
        (v.text.strip(), row_of[v.product], v.vote == "up") for v in votes if v.text.strip() and v.product in row_of
    ]
    if votes:
        log(
            f"{len(said_of)} votes on words; {len(votes) - len(said_of)} on photos or on products not here teach nothing"
        )
    everything = json.dumps(
        [products, titles, digests, {c: v.tolist() for c, v in columns.items()}, test.tolist(), said_of]
    )
    return OwnData(products, titles, packed, columns, test, hashlib.sha256(everything.encode()).hexdigest(), said_of)


def places(products: list[str], digests: list[str]) -> NDArray[np.float64]:
    """Where each photo falls between 0 and 1 (photos,), for cutting into splits: by the least digest of all that products
    share, however indirectly, so that a product and byte-identical photos stay together.
    """
    parent = {name: name for name in (*products, *digests)}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for product, digest in zip(products, digests, strict=True):
        parent[root(product)] = root(digest)
    least: dict[str, str] = {}
    for digest in digests:
        least[root(digest)] = min(digest, least.get(root(digest), digest))
    return np.array([int(least[root(d)][:8], 16) / 2**32 for d in digests])


# Weights: ONNX → torch


def load_towers(directory: Path) -> tuple[PhotoTower, TextTower]:
    """The towers that an exported directory was made of, without batch normalisation (it is folded in).

    Raises:
        InputError: it was not exported by ``training.export``.
    """
    try:
        photo, text = onnx.load(directory / "photo.onnx"), onnx.load(directory / "text.onnx")
        return _photo_tower(_initializers(photo)), _text_tower(text, _initializers(text))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{directory}: not a model that lookalike trained ({error}); adapt such a one") from error


def _initializers(model: Any) -> dict[str, NDArray[Any]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def _real(values: dict[str, NDArray[Any]], name: str) -> Tensor:
    """A tensor by the name it had in torch, however it was stored: float32, float16, or 8 bits with scales."""
    if name in values:
        return torch.from_numpy(values[name].astype(np.float32))
    if f"{name}.half" in values:
        return torch.from_numpy(values[f"{name}.half"].astype(np.float32))
    codes = values[f"{name}_quantized"].astype(np.float32)
    scale = values.get(f"{name}_scale", values.get(f"{name}_quantized_scale"))
    zero = values.get(f"{name}_zero_point", values.get(f"{name}_quantized_zero_point"))
    if scale is None or zero is None:
        raise KeyError(f"{name}_scale")
    shape = (-1,) + (1,) * (codes.ndim - 1)
    return torch.from_numpy((codes - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape))


def load_trunk(directory: Path) -> nn.ModuleList:
    """The convolutions of a directory whose photo net has a ``PhotoTower``'s, whatever stands behind them.

    Raises:
        InputError: it has none, or not as ``training.export`` writes them.
    """
    try:
        values = _initializers(onnx.load(directory / "photo.onnx"))
        return _layers(values, 1).layers
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{directory}: its photo net is not the built-in's ({error}); begin with what it was made of"
        ) from error


def _layers(values: dict[str, NDArray[Any]], dim: int) -> PhotoTower:
    """A tower with the stored convolutions; its projection is new."""
    first = next((name for name in values if "layers.0.conv.bias" in name), "layers.0.conv.bias")
    prefix = first.partition("layers.")[0]
    layers = [int(name.removeprefix(prefix).split(".")[1]) for name in values if name.startswith(f"{prefix}layers.")]
    width = len(_real(values, f"{prefix}layers.0.conv.bias")) / 32
    tower = PhotoTower(dim, frozen=1 + max(layers), width=width)  # all "frozen": none has batch normalisation
    with torch.no_grad():
        for n, layer in enumerate(tower.layers):
            assert isinstance(layer, Conv)
            assert layer.conv.bias is not None
            layer.conv.weight.copy_(_real(values, f"{prefix}layers.{n}.conv.weight"))
            layer.conv.bias.copy_(_real(values, f"{prefix}layers.{n}.conv.bias"))
    return tower


def _photo_tower(values: dict[str, NDArray[Any]]) -> PhotoTower:
    weight = _real(values, "project.weight")
    tower = _layers(values, weight.shape[0])
    with torch.no_grad():
        tower.project.weight.copy_(weight)
        tower.project.bias.copy_(_real(values, "project.bias"))
    return tower


def _text_tower(model: Any, values: dict[str, NDArray[Any]]) -> TextTower:
    table = next(v for v in values.values() if v.dtype == np.int8 and v.ndim == 2)
    scale = next(v for v in values.values() if v.shape == (len(table), 1)).astype(np.float32)
    dim, width = len(_real(values, "tower.project.bias")), len(_real(values, "tower.enter.bias"))
    tower = TextTower(torch.from_numpy(table.astype(np.float32) * scale), dim, width)
    made = {output: node for node in model.graph.node for output in node.output}
    state = tower.state_dict()
    for name in state:
        if name in ("table", "delta"):
            continue
        try:
            state[name] = _real(values, f"tower.{name}")
        except KeyError:  # the exporter keeps most matrices transposed and nameless, before the Add of their bias
            bias = name.replace("weight", "bias")
            add = next(n for n in model.graph.node if n.op_type == "Add" and f"tower.{bias}" in n.input)
            product = next(made[i] for i in add.input if i in made and made[i].op_type == "MatMul")
            state[name] = _real(values, product.input[1]).T.contiguous()
    tower.load_state_dict(state)
    return tower


# Training


class Adaptation:
    """One fine-tuning run; saved and resumed as safetensors, its randomness drawn from (seed, step) alone."""

    def __init__(self, data: OwnData, directory: Path, options: Options):
        self.data, self.options = data, options
        self.base = OnnxEncoder(directory).id
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        photo, text = load_towers(directory)
        photo.frozen = min(options.frozen, photo.frozen)
        self.model = nn.ModuleDict({"photo": photo, "text": text}).to(self.device)
        photo.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.photo, self.text = photo, text
        self.train_rows = np.flatnonzero(~data.test)
        learnt = [v for v in data.votes if not data.test[v[1]]]
        self.liked = [(text, row) for text, row, up in learnt if up]
        self.pairs = [(text, row, other) for text, row in self.liked for t, other, up in learnt if not up and t == text]
        """Of one text, a product that was found good and one that was found bad."""
        per_epoch = max(1, len(self.train_rows) // options.batch)
        self.steps = max(options.least_steps, round(options.epochs * per_epoch))
        self.step = 0
        groups: dict[float, list[nn.Parameter]] = {}
        fixed = {id(p) for layer in photo.layers[: photo.frozen] for p in layer.parameters()}
        for p in self.model.parameters():
            if id(p) not in fixed:
                groups.setdefault(options.decay if p.ndim > 1 else 0.0, []).append(p)
        self.optimiser = torch.optim.AdamW(
            [{"params": p, "weight_decay": d} for d, p in groups.items()], lr=options.rate, fused=False
        )

    def advance(self) -> dict[str, float]:
        """One optimiser step."""
        o = self.options
        rng = np.random.default_rng((o.seed, self.step))
        torch.manual_seed(int(rng.integers(2**31)))
        rows = rng.choice(self.train_rows, min(o.batch, len(self.train_rows)), replace=False)
        factor = min(1.0, (self.step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps)))
        for group in self.optimiser.param_groups:
            group["lr"] = o.rate * factor
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            parts = self._losses(rows, rng)
            loss = sum(parts.values(), start=torch.zeros((), device=self.device))
        if parts:  # a batch of a sparse table may have nothing to tell apart
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), o.clip)
            self.optimiser.step()
        self.step += 1
        return {k: v.item() for k, v in parts.items()}

    def _losses(self, rows: NDArray[np.int64], rng: np.random.Generator) -> dict[str, Tensor]:
        o, data = self.options, self.data
        taken = [self.liked[n] for n in rng.permutation(len(self.liked))[: o.votes]]
        pairs = [self.pairs[n] for n in rng.permutation(len(self.pairs))[: o.votes]]
        own = len(rows)
        rows = np.array([*rows, *(row for _, row in taken), *(r for _, *two in pairs for r in two)], np.int64)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        pixels = torch.from_numpy(data.photos[rows]).to(self.device)
        size = (pixels.shape[1], pixels.shape[2])
        vectors = F.normalize(self.photo.project(self.photo.pooled(augment(pixels, size, generator))).float(), dim=-1)
        parts: dict[str, Tensor] = {}
        # What visitors typed for a product is one more title of it.
        titled = np.array([n for n, r in enumerate(rows[: own + len(taken)]) if n >= own or data.titles[r]], np.int64)
        if len(titled) > 1:
            texts = [data.titles[rows[n]] if n < own else taken[n - own][0] for n in titled]
            parts["title"] = o.title_weight * self._contrast(vectors[titled], texts, [t.lower() for t in texts])
        if pairs:  # the good before the bad (Rendle et al. 2009, https://arxiv.org/abs/1205.2618)
            tokens = [self.tokenizer.encode(text, add_special_tokens=False).ids for text, *_ in pairs]
            said = self.text(padded(tokens).to(self.device))
            good, bad = vectors[own + len(taken) :: 2], vectors[own + len(taken) + 1 :: 2]
            parts["votes"] = o.vote_weight * F.softplus(-20.0 * (said * (good - bad)).sum(-1)).mean()
        rows, vectors = rows[:own], vectors[:own]
        if data.columns:
            names = list(data.columns)
            chosen = [names[n] for n in rng.permutation(len(names))[: rng.integers(1, min(3, len(names)) + 1)]]
            values = [tuple(data.columns[c][r] for c in chosen) for r in rows]
            known = np.array([n for n, v in enumerate(values) if any(v)], np.int64)
            if len(known) > 1:
                said = [" ".join(singular(v) if rng.random() < 0.5 else v for v in values[n] if v) for n in known]
                keys = [values[n] for n in known]
                parts["attributes"] = o.attribute_weight * self._contrast(vectors[known], said, keys)
        return parts

    def _contrast(self, vectors: Tensor, texts: list[str], keys: list[Any]) -> Tensor:
        tokens = [self.tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
        known = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        same = torch.tensor([known[k] for k in keys], device=self.device)
        return contrast(
            vectors, self.text(padded(tokens).to(self.device)), same, torch.tensor(20.0, device=self.device)
        )

    def save(self, file: Path) -> None:
        """All that a later process needs to go on, replaced whole."""
        notes = {"step": str(self.step), "of": self._of()}
        checkpoint.save(file, {"model": self.model}, self.optimiser, notes)

    def resume(self, file: Path) -> None:
        """Go on from ``file``. Raises InputError: it is of another model, other options or other data, or damaged."""
        tensors, notes = checkpoint.read(file, self.device)
        if notes.get("of") != self._of():
            raise InputError(f"{file}: a run of another model, options or data; remove it, or give another --work")
        checkpoint.restore(tensors, {"model": self.model}, self.optimiser)
        self.step = int(notes["step"])

    def _of(self) -> str:
        return json.dumps([vars(self.options), self.base, self.data.digest])


# Measuring


def measure(data: OwnData, encoder: Encoder) -> dict[str, metrics.PerQuery]:
    """Figures of each held-out product's first photo among all products' first photos, NaN where it has none: whether its
    title finds it (or one of that title) in ten, which share of the words it was voted good for does, and P@10 of each
    column's value.
    """
    first = data.first
    vectors = np.vstack(
        [encoder.encode_photos(data.photos[part]) for part in np.array_split(first, len(first) // 64 + 1)]
    )
    rows = np.flatnonzero(data.test[first])
    nothing = np.full(len(rows), np.nan)
    out: dict[str, metrics.PerQuery] = {}
    names = [data.titles[n] for n in first]
    titles = np.array([t.lower() for t in names], object)
    known = np.array([bool(names[r]) for r in rows], np.bool_)
    if known.any():
        order = metrics.ranked(vectors, encode_texts(encoder, [names[r] for r in rows[known]]), 10)
        found = out["title → photo, found in 10"] = nothing.copy()
        found[known] = (titles[order] == titles[rows[known]][:, None]).any(1)
    voted = [(t, n) for n, r in enumerate(rows) for t, row, up in data.votes if up and row == first[r]]
    if voted:
        order = metrics.ranked(vectors, encode_texts(encoder, [t for t, _ in voted]), 10)
        found = out["voted words → product, found in 10"] = nothing.copy()
        places = np.array([n for _, n in voted])
        hits = (order == rows[places][:, None]).any(1)
        for n in np.unique(places):
            found[n] = hits[places == n].mean()
    others = metrics.neighbours(vectors, rows) if len(rows) else rows[:, None]
    for name, column in data.columns.items():
        values = column[first]
        known = np.array([bool(values[r]) for r in rows], np.bool_)
        if known.any():
            figure = out[f"photo → photo, same {name} P@10"] = nothing.copy()
            figure[known] = metrics.precision(values[others[known]] == values[rows[known]][:, None], 10)
    return out


def main(
    source: Source,
    base: Path,
    out: Path,
    work: Path,
    options: Options,
    log: Callable[[str], None],
    save_every: float = 120.0,
    votes: Sequence[Vote] = (),
) -> dict[str, Any]:
    """Fine-tune ``base`` on ``source`` into ``out``; a second call with the same ``work`` goes on where the first was.

    Returns:
        ``{"better": bool, "products", "held_out", "before": {figure: {"mean", "low", "high"}}, "after", "gain"}``; nothing is
        left in ``out`` where the mean gain's 95% interval does not lie above zero.

    Raises:
        InputError: too little data, a model that was not trained here, or ``out`` is in use.
    """
    from lookalike.training.export import calibrate, export

    made = work / "adapted"
    check_folders(out, work, made)
    old = OnnxEncoder(base)
    if not old.reads_text:
        raise InputError(f"{base}: reads no text, and titles are what it would learn from; adapt one that does")
    load_towers(base)  # before the photos are read: it may be one that was not trained here
    log("reading photos")
    data = load(source, old, log, votes)
    held = int(data.test[data.first].sum())
    log(f"{len(data.first)} products, {held} of them held out; columns: {', '.join(data.columns) or 'none'}")
    if held < LEAST_HELD_OUT or data.test.all():
        raise InputError(
            f"{source.key}: {held} of {len(data.first)} products can be held out, since products that share photos stay "
            f"together; at least {LEAST_HELD_OUT}, and as many to learn from, are needed"
        )
    before = measure(data, old)
    run = Adaptation(data, base, options)
    unfinished = work / "adapt.safetensors"
    if unfinished.is_file():
        run.resume(unfinished)
        log(f"going on at step {run.step} of {run.steps}")
    began = saved = time.monotonic()
    first = run.step
    try:
        while run.step < run.steps:
            parts = run.advance()
            now = time.monotonic()
            if run.step % 10 == 0 or run.step == run.steps:
                left = (run.steps - run.step) * (now - began) / (run.step - first) / 60
                shown = " ".join(f"{k} {v:.3f}" for k, v in parts.items())
                log(f"step {run.step}/{run.steps}  {shown}  {left:.0f} min left")
            if now - saved > save_every:
                run.save(unfinished)
                saved = now
    finally:  # interrupted, too
        run.save(unfinished)
    shutil.rmtree(made, ignore_errors=True)
    rows = np.random.default_rng(0).permutation(run.train_rows)[:512]
    run.model.cpu().float()
    export(run.photo, run.text, run.tokenizer, old.size, data.photos[np.sort(rows)], made, "adapted")
    kinds = [c for r in ("category", "colour", "gender") if (c := source.roles.get(r, "")) in data.columns]
    if held >= LEAST_TO_CALIBRATE and len(kinds) > 1:
        attributes = np.stack([data.columns[c][data.first] for c in kinds], 1)
        calibrate(made, data.photos[data.first], attributes, data.test[data.first])
    log("measuring")
    after = measure(data, OnnxEncoder(made))
    # A held-out product's mean gain over the figures that it has is one draw: its figures are not independent.
    gains = np.stack([after[name] - before[name] for name in before])
    gain = np.nanmean(gains[:, ~np.isnan(gains).all(0)], 0)
    low, high = metrics.interval(gain)
    better = low > 0
    if better:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    unfinished.unlink(missing_ok=True)  # done: the next run is another one
    return {
        "better": better,
        "products": len(data.first),
        "held_out": held,
        "before": {name: summary(values[~np.isnan(values)]) for name, values in before.items()},
        "after": {name: summary(values[~np.isnan(values)]) for name, values in after.items()},
        "gain": {"mean": round(float(gain.mean()), 4), "low": round(low, 4), "high": round(high, 4)},
    }


def check_folders(out: Path, work: Path, made: Path) -> None:
    """Make ``work``; refuse what would fail only after the training. Raises InputError."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out}: not an empty or new directory; give --out one")
    if out.resolve() in (work.resolve(), made.resolve()):
        raise InputError(f"{out}: --out and --work must differ")
    try:
        work.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        for folder in (work, out if out.is_dir() else out.parent):
            with tempfile.TemporaryDirectory(dir=folder):
                pass
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be made ({error.strerror}); give another --work or --out"
        ) from error
