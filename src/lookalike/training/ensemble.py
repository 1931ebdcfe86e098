"""Fit an ensemble of photo encoders to a label of one's own catalogue, beside its members and the plainer ways.

Members' features of different sizes are averaged after univariate selection (scikit-learn's SelectKBest with the F test of the
label) has brought the larger to the size of the smallest; beside it stand concatenation and principal components. Weights are
searched on a validation split, the choice between the ways is made there too, and the figures come from a third split.
"""

from __future__ import annotations

import itertools
import math
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lookalike import encoders, images
from lookalike.encoders.base import Encoder, Vectors
from lookalike.encoders.baselines import TFLiteFeatures
from lookalike.encoders.ensemble import Ensemble
from lookalike.encoders.onnx import OnnxEncoder, write_config
from lookalike.encoders.torch import TorchEncoder
from lookalike.errors import ImageError, InputError, UsageError
from lookalike.evaluation import metrics
from lookalike.evaluation.protocol import Report, encode_files, summary
from lookalike.sources import Source
from lookalike.training.adapt import LEAST, LEAST_HELD_OUT, check_folders, places
from lookalike.training.export import export_encoder

HOWS = ("average", "concat", "pca")
TEST, VALIDATION = 0.2, 0.4
"""Edges of the splits, in places between 0 and 1; the rest is for the selection and the components."""

POINTS = 300
"""Weights tried, at most."""

QUERIES = 1000
"""Validation photos that ask for each of them, at most."""

CHUNK, SAVE_SECONDS = 256, 30.0
SAME = 0.9999
"""Cosine between what was measured and what was written, under which it is refused."""

Features = list[NDArray[np.float32]]
"""Of each member (photos, its dim), unit length."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Data:
    """One photo of each product that has a label. ``split`` (n,): 0 train, 1 validation, 2 held out."""

    products: list[str]
    titles: list[str]
    files: list[str]
    digests: list[str]
    labels: NDArray[Any]
    split: NDArray[np.int8]


def load(source: Source, labels_of: Sequence[str], log: Log) -> Data:
    """The first readable photo of each product with a value in each of the columns ``labels_of`` (roles will do): together
    they are its label.

    Raises:
        UsageError: no such column.
        InputError: too few products, or all of one label.
    """
    columns = [source.roles.get(c, c) for c in labels_of]
    for column in columns:
        if not any(column in p.attributes for p in source.products):
            there = sorted({c for p in source.products for c in p.attributes})
            raise UsageError(f"--label {column}: no such column in {source.key}; it has {', '.join(there) or 'none'}")
    products, titles, files, digests, labels = [], [], [], [], []
    for product in source.products:
        values = [product.attributes.get(column) for column in columns]
        if any(value is None or value == "" for value in values):
            continue
        for photo in product.photos:
            try:
                content = images.load(photo)
                images.read(content, at_least=16, name=str(photo))  # encoding reads it again
            except (ImageError, InputError) as error:
                log(f"left out: {error}")
                continue
            products.append(product.id)
            titles.append(product.title)
            files.append(str(photo))
            digests.append(images.digest(content))
            labels.append(", ".join(str(value) for value in values))
            break
    if len(products) < LEAST or len(set(labels)) < 2:
        raise InputError(
            f"{source.key}: {len(products)} products with a photo and {len(set(labels))} values of {', '.join(columns)}; at "
            f"least {LEAST} products of two values are needed"
        )
    where = places(products, digests)
    split = np.select([where < TEST, where < VALIDATION], [2, 1], 0).astype(np.int8)
    for n, name in enumerate(("to learn from", "to choose weights by", "held out")):
        if (split == n).sum() < LEAST_HELD_OUT:
            raise InputError(
                f"{source.key}: {(split == n).sum()} of {len(products)} products are {name}, since products that share "
                f"photos stay together; at least {LEAST_HELD_OUT} are needed"
            )
    return Data(products, titles, files, digests, np.array(labels, object), split)


def features(member: Encoder, data: Data, work: Path, log: Log) -> NDArray[np.float32]:
    """The member's vectors (photos, dim), kept under ``work`` by its id and the photos' digests; interrupted runs go on."""
    safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in member.id)
    file = work / f"features-{safe}.npz"
    known: dict[str, NDArray[np.float32]] = {}
    if file.is_file():
        try:
            with np.load(file) as kept:
                known = dict(zip(kept["digests"].tolist(), kept["vectors"], strict=True))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{file}: damaged ({error}); remove it and begin again") from error
    todo = [(d, f) for d, f in dict(zip(data.digests, data.files, strict=True)).items() if d not in known]
    saved = time.monotonic()

    def save() -> None:
        part = file.with_name(file.name + ".part.npz")
        np.savez(part, digests=np.array(list(known)), vectors=np.stack(list(known.values())))
        part.replace(file)

    try:
        for at in range(0, len(todo), CHUNK):
            chunk = todo[at : at + CHUNK]
            known |= zip([d for d, _ in chunk], encode_files(member, [f for _, f in chunk]), strict=True)
            log(f"{member.id}: {min(at + CHUNK, len(todo))} of {len(todo)} photos")
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    finally:  # interrupted, too
        if todo and known:
            save()
    return np.stack([known[d] for d in data.digests])


# Ways to put vectors together


@dataclass(frozen=True)
class Head:
    """How members become one: selected columns of each, their weights, and how these are joined.

    ``columns`` has of each member the columns that count, None for all; ``weights`` sum to 1; ``how`` is one of ``HOWS``;
    ``mean`` (sum of dims,) and ``components`` (sum of dims, dim) belong to ``pca``.
    """

    how: str
    weights: tuple[float, ...]
    columns: tuple[NDArray[np.int64] | None, ...]
    mean: NDArray[np.float32] | None = None
    components: NDArray[np.float32] | None = None

    def apply(self, parts: Features) -> Vectors:
        """(photos, dim), unit length."""
        taken = [p if c is None else _unit(p[:, c]) for p, c in zip(parts, self.columns, strict=True)]
        if self.how == "average":
            return _unit(np.add.reduce([np.float32(w) * p for w, p in zip(self.weights, taken, strict=True)]))
        joined = np.hstack([np.float32(math.sqrt(w)) * p for w, p in zip(self.weights, taken, strict=True) if w])
        if self.how == "pca":
            assert self.mean is not None
            assert self.components is not None
            joined = (joined - self.mean) @ self.components
        return _unit(joined)

    def to_onnx(self, dims: Sequence[int]) -> onnx.ModelProto:
        """The same over unit vectors of these members side by side."""
        nodes: list[onnx.NodeProto] = []
        constants: list[onnx.TensorProto] = []
        parts: list[str] = []

        def constant(name: str, value: NDArray[Any]) -> str:
            constants.append(numpy_helper.from_array(value, name))
            return name

        def node(kind: str, *inputs: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(kind, list(inputs), [f"value{len(nodes)}"], **attributes))
            return f"value{len(nodes) - 1}"

        for n, (w, chosen, start) in enumerate(
            zip(self.weights, self.columns, np.cumsum([0, *dims[:-1]]).tolist(), strict=True)
        ):
            if not w:
                continue
            places = np.arange(dims[n]) if chosen is None else chosen
            part = node("Gather", "features", constant(f"columns{n}", places.astype(np.int64) + start), axis=1)
            if chosen is not None:
                part = node("LpNormalization", part, axis=1, p=2)
            scale = w if self.how == "average" else math.sqrt(w)
            parts.append(node("Mul", part, constant(f"weight{n}", np.float32(scale).reshape(1))))
        out = node("Sum", *parts) if self.how == "average" else node("Concat", *parts, axis=1)
        if self.how == "pca":
            assert self.mean is not None
            assert self.components is not None
            out = node("MatMul", node("Sub", out, constant("mean", self.mean)), constant("components", self.components))
        nodes.append(helper.make_node("LpNormalization", [out], ["vectors"], axis=1, p=2))
        dim = self.apply([np.eye(1, d, dtype=np.float32) for d in dims]).shape[1]
        given = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", sum(dims)])
        made = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["n", dim])
        graph = helper.make_graph(nodes, "head", [given], [made], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def _unit(vectors: NDArray[np.float32]) -> Vectors:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)


def grid(members: int) -> NDArray[np.float64]:
    """Points of the simplex (points, members), at most ``POINTS``, those nearest to equal weights first."""
    steps = next(
        s for s in (20, 10, 8, 6, 5, 4, 3, 2, 1) if math.comb(s + members - 1, members - 1) <= POINTS or s == 1
    )
    cuts = itertools.combinations(range(steps + members - 1), members - 1)
    points = np.array([np.diff([-1, *c, steps + members - 1]) - 1 for c in cuts], np.float64) / steps
    points = np.vstack([np.full(members, 1 / members), points])
    return points[np.argsort(((points - 1 / members) ** 2).sum(1), kind="stable")]


def precision(vectors: Vectors, labels: NDArray[Any], rows: NDArray[np.int64], k: int = 10) -> metrics.PerQuery:
    """P@k of the label among all other photos, for the photos ``rows``."""
    near = metrics.neighbours(vectors, rows, k)
    return metrics.precision(labels[near] == labels[rows][:, None], k)


def selected(parts: Features, labels: NDArray[Any], train: NDArray[np.bool_]) -> list[NDArray[np.int64] | None]:
    """The columns of each larger member that tell the label best, as many as the smallest has; None for all."""
    from sklearn.feature_selection import SelectKBest, f_classif

    least = min(p.shape[1] for p in parts)
    out: list[NDArray[np.int64] | None] = []
    for part in parts:
        if part.shape[1] == least:
            out.append(None)
            continue
        with warnings.catch_warnings():  # of columns that are always the same, which are then not chosen
            warnings.filterwarnings("ignore", "Features ", UserWarning)
            warnings.filterwarnings("ignore", "(invalid|divide by zero)", RuntimeWarning)
            chosen = SelectKBest(f_classif, k=least).fit(part[train], labels[train].astype(str))
        out.append(np.flatnonzero(chosen.get_support()))
    return out


def fit(parts: Features, data: Data, seed: int, log: Log) -> dict[str, tuple[Head, float]]:
    """Name → head and its P@10 on the validation split: plain and weighted concatenation, weighted average, components."""
    from sklearn.decomposition import PCA

    count = len(parts)
    train, rng = data.split == 0, np.random.default_rng(seed)
    rows = np.sort(rng.permutation(np.flatnonzero(data.split == 1))[:QUERIES])
    equal, everything = (1 / count,) * count, (None,) * count

    def score(head: Head) -> float:
        return float(precision(head.apply(parts), data.labels, rows).mean())

    def searched(how: str, columns: tuple[NDArray[np.int64] | None, ...]) -> tuple[Head, float]:
        best, most = Head(how, equal, columns), -1.0
        for point in grid(count):
            head = Head(how, tuple(point.tolist()), columns)
            found = score(head)
            if found > most:
                best, most = head, found
        log(f"{how}: weights {', '.join(f'{w:.2f}' for w in best.weights)}, P@10 {most:.3f} on the validation split")
        return best, most

    plain = Head("concat", equal, everything)
    joined = np.hstack([np.float32(math.sqrt(1 / count)) * p for p in parts])
    size = min(min(p.shape[1] for p in parts), int(train.sum()))
    components = PCA(size, random_state=seed).fit(joined[train])
    reduced = Head(
        "pca", equal, everything, components.mean_.astype(np.float32), components.components_.T.astype(np.float32)
    )
    return {
        "concat": (plain, score(plain)),
        "concat, weighted": searched("concat", everything),
        "average, weighted": searched("average", tuple(selected(parts, data.labels, train))),
        "pca": (reduced, score(reduced)),
    }


def main(
    source: Source, name: str, label: Sequence[str], out: Path, work: Path, how: str, seed: int, log: Log
) -> tuple[Report, dict[str, Any]]:
    """Fit the ensemble ``name`` (``ensemble:A+B``) to ``label`` and write it to ``out``; features are kept in ``work``.

    Args:
        source: the catalogue.
        name: members.
        label: columns that neighbours should share, all of them.
        out: new or empty directory.
        work: cached features; a second run goes on from there.
        how: one of ``HOWS``, or "" for what is best on the validation split.
        seed: of the photos that ask, and of the components' solver.
        log: told what is being done.

    Returns:
        A report on the held-out split, and ``{"how", "weights", "dim", "seconds"}`` of what was written.

    Raises:
        UsageError: no ensemble, no such column, or no such way.
        InputError: too little data, or ``out`` is in use.
    """
    if how and how not in HOWS:
        raise UsageError(f"--how {how}: choose {', '.join(HOWS)}")
    made = encoders.load(name)
    if not isinstance(made, Ensemble):
        raise UsageError(f"--encoder {name}: no ensemble; write it as ensemble:A+B")
    new = work / "ensemble"
    check_folders(out, work, new)
    log("reading photos")
    data = load(source, label, log)
    sizes = [int((data.split == n).sum()) for n in range(3)]
    log(f"{len(data.files)} products: {sizes[0]} to learn from, {sizes[1]} to choose by, {sizes[2]} held out")
    start = time.monotonic()
    parts = [features(member, data, work, log) for member in made.members]
    heads = fit(parts, data, seed, log)
    chosen = max((n for n in heads if not how or heads[n][0].how == how), key=lambda n: heads[n][1])
    head = heads[chosen][0]
    notes = {"recipe": "ensemble", "how": chosen, "weights": [round(w, 4) for w in head.weights], "label": list(label),
             "members": [m.id for m in made.members], "seed": seed}  # fmt: skip
    seconds = round(time.monotonic() - start, 1)
    shutil.rmtree(new, ignore_errors=True)
    used = [n for n, w in enumerate(head.weights) if w]
    dims = [parts[n].shape[1] for n in used]
    kept = Head(
        head.how, tuple(head.weights[n] for n in used), tuple(head.columns[n] for n in used), head.mean, head.components
    )
    write(new, [made.members[n] for n in used], kept, dims, {**notes, "seconds": seconds})
    _check(new, data, kept.apply([parts[n] for n in used]))
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.rmdir()
    shutil.move(new, out)
    written = encoders.load(str(out))
    report = _report(data, made, parts, heads, chosen, label, written.id)
    return report, {"how": chosen, "weights": notes["weights"], "dim": written.dim, "seconds": seconds}


def write(directory: Path, members: Sequence[Encoder], head: Head, dims: Sequence[int], notes: dict[str, Any]) -> None:
    """Write the encoder's directory: members that are files beside the head, others by name."""
    directory.mkdir(parents=True)
    named = []
    for n, member in enumerate(members, 1):
        folder = f"member-{n}"
        if isinstance(member, OnnxEncoder):
            shutil.copytree(member.directory, directory / folder)
        elif isinstance(member, Ensemble):
            shutil.copytree(member.name, directory / folder)
        elif isinstance(member, TorchEncoder):
            export_encoder(member.name, directory / folder)
        elif isinstance(member, TFLiteFeatures):
            (directory / folder).mkdir()
            folder = f"{folder}/{Path(member.name).name}"
            shutil.copy(member.name, directory / folder)
        else:
            folder = member.name
        named.append(folder)
    onnx.save(head.to_onnx(dims), directory / "head.onnx")
    dim = int(head.apply([np.eye(1, d, dtype=np.float32) for d in dims]).shape[1])
    config = {"name": "ensemble", "dim": dim, "members": named, "head": "head.onnx"} | (
        {"training": notes} if notes else {}
    )
    write_config(directory, config)


def export_plain(encoder: Ensemble, directory: Path) -> dict[str, Any]:
    """Write an unfitted ensemble as a directory; what runs in torch is exported. Raises as ``export_encoder``."""
    count, dims = len(encoder.members), [m.dim for m in encoder.members]
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write(part, encoder.members, Head("concat", (1 / count,) * count, (None,) * count), dims, {})
        if directory.exists():
            directory.rmdir()
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    return {"id": encoders.load(str(directory)).id, "dim": encoder.dim, "bytes": size, "copied": False}


def _check(directory: Path, data: Data, expected: Vectors) -> None:
    """Refuse what was written where it does not say what was measured. Raises InputError."""
    rows = np.linspace(0, len(data.files) - 1, 16).astype(int)
    found = encode_files(encoders.load(str(directory)), [data.files[n] for n in rows])
    worst = float((found * expected[rows]).sum(1).min())
    if worst < SAME:
        raise InputError(
            f"{directory}: what was written differs from what was measured (cosine {worst:.4f}); remove --work"
        )


def _report(
    data: Data,
    made: Ensemble,
    parts: Features,
    heads: dict[str, tuple[Head, float]],
    chosen: str,
    label: Sequence[str],
    identity: str,
) -> Report:
    """The ways beside one another on the held-out split, as ``protocol.Report``."""
    rows = np.flatnonzero(data.split == 2)
    ways = {m.id: p for m, p in zip(made.members, parts, strict=True)}
    chosen_way = ""
    for name, (head, _) in heads.items():
        vectors = head.apply(parts)
        told = f"{name} ({' + '.join(f'{w:.2f}' for w in head.weights)}; {vectors.shape[1]} values)"
        ways[told] = vectors
        chosen_way = told if name == chosen else chosen_way
    near = {name: metrics.neighbours(vectors, rows) for name, vectors in ways.items()}
    relevance = {name: data.labels[found] == data.labels[rows][:, None] for name, found in near.items()}
    precisions = {name: metrics.precision(found, 10) for name, found in relevance.items()}
    best = max((m.id for m in made.members), key=lambda n: float(precisions[n].mean()))
    figures = {
        name: {
            "P@1": summary(metrics.precision(found, 1)),
            "P@10": summary(precisions[name]),
            **({} if name == best else {"P@10 less the best member's": summary(precisions[name] - precisions[best])}),
        }
        for name, found in relevance.items()
    }
    curves = [
        {"name": name.partition(" (")[0][:24], "figure": "P@k",
         "points": [[k, round(float(metrics.precision(found, k).mean()), 4)] for k in (1, 2, 5, 10)]}
        for name, found in relevance.items()
    ]  # fmt: skip
    order = np.argsort(-precisions[chosen_way], kind="stable")
    gallery = [
        {
            "query": f"{data.titles[rows[q]] or data.products[rows[q]]} ({data.labels[rows[q]]})",
            "found": bool(precisions[chosen_way][q] > 0),
            "hits": [
                {"path": data.files[n], "title": data.titles[n], "relevant": bool(right)}
                for n, right in zip(near[chosen_way][q][:6], relevance[chosen_way][q][:6], strict=True)
            ],
        }
        for q in [*order[:6], *order[6:][-6:]]
    ]
    note = (
        f"{len(data.files)} products, one photo each; {len(rows)} held out, each asked among all others. Chosen on the "
        f"validation split: {chosen_way}."
    )
    table = {"name": f"photo → photo, same {', '.join(label)}", "queries": len(rows), "rows": figures}
    return {
        "title": "Ensemble",
        "note": note,
        "encoder": identity,
        "tables": [table],
        "curves": curves,
        "gallery": gallery,
    }
