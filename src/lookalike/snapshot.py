"""One version of a catalog: what answers searches. Immutable; swapped whole when a newer version is seen.

It stands on a *base*, the photos of some earlier version with an index over them, and a *delta*, what was written since. The
base is in memory, or (from ``reindex`` on) files that are mapped; the delta is in memory and scanned whole. A product lies in
one of the two with all its photos; where it is in the delta, what the base has of it is dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lookalike import segment as segments
from lookalike import where as filters
from lookalike.colours import Wardrobe
from lookalike.errors import CatalogError, LookalikeError, NotFound
from lookalike.indexes import exact
from lookalike.indexes.lexical import Lexical, words_of
from lookalike.segment import Column, Segment
from lookalike.store import COLOURS, PREFIX, Manifest, Store
from lookalike.types import Value

log = logging.getLogger("lookalike")

FACET_VALUES = 200
"""A text column with more values than this is no facet (titles, codes)."""


BINS = 20
"""Bars of a number column's histogram, at most."""

MASKS = 16
"""Filters whose masks (a byte a product each) and counts are kept."""

DELTA_FROM = 20_000
"""Photos from which on a newer version is read as what changed; fewer are read anew in no time."""

STEPS = (50, 500, 5000, 20_000)
"""How far an index is looked into, one after the other, until there are as many products as are asked for."""

SCANNED = 0.25
"""Share of the photos from which on all of them are scored rather than looked for."""

LEAST_REACH = 1000
"""Candidates of each measure at least, where several are mixed: the best of the mixture need be the best of none."""

OUTGROWN = 0.1
"""Share of the base that delta and dead photos may have before the base is made anew."""


@dataclass(frozen=True, slots=True)
class Found:
    """A product found: its position, its best photo's row, the cosine, and what it was ordered by."""

    product: int
    row: int
    score: float
    value: float = 0.0


class Vectors:
    """Unit vectors of several segments (photos, dim), one after the other, as far as searching asks of a matrix."""

    def __init__(self, parts: Sequence[Any], cut: int = 0):
        """``parts`` are arrays or ``ivf.Stored``; ``cut``: only the first so many values of each vector."""
        self.parts = parts
        self.begins = np.cumsum([0, *(len(p) for p in parts)])
        self.shape = int(self.begins[-1]), cut or int(parts[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        out = np.empty((len(rows), self.shape[1]), np.float32)
        for part, begin, end in zip(self.parts, self.begins[:-1], self.begins[1:], strict=True):
            here = (rows >= begin) & (rows < end)
            if here.any():
                out[here] = part[rows[here] - begin][:, : self.shape[1]]
        return out


class Snapshot:
    """Products, their photos' rows beside them, and the vectors.

    ``first`` (products,) is the row of each product's first photo, ``owner`` (photos,) the product of each photo; ``live``
    (products,) says which positions hold a product, or is None where all do (then they are in order of id).
    ``vectors`` (photos, dim) float32. ``table`` has one row per position: the attributes under their own names, and the roles
    (id, title, image, category …) as aliases.
    """

    def __init__(self, store: Store, before: Snapshot | None = None, *, whole: bool = False):
        """Load the latest version.

        Args:
            store: the catalog.
            before: an older snapshot of it, whose base is used again where it can be.
            whole: read every row anew: all positions hold products, in order of id.

        Raises:
            CatalogError: it cannot be read, or holds vectors of another encoder than its manifest says.
        """
        self.stamp = store.stamp()
        self.version = self.stamp[0]
        self.manifest: Manifest | None = store.manifest()
        self.generation = segments.latest(store.cache)
        self.base, self.delta, dead = self._segments(store, before, whole)
        self._parts = [self.base, self.delta] if self.delta is not None else [self.base]
        self._begin = len(self.base.first) - 1, len(self.base)  # of the delta's products, and of its photos
        self.photos, self.paths, self.digests = (
            _joined([s.photos for s in self._parts], name) for name in ("lk_photo", "lk_path", "lk_digest")
        )
        self.ids, self.titles = (_joined([s.products for s in self._parts], name) for name in ("lk_id", "lk_title"))
        starts = [s.first[:-1] + begin for s, begin in zip(self._parts, (0, self._begin[1]), strict=False)]
        self.first: NDArray[np.int64] = starts[0] if len(starts) == 1 else np.concatenate(starts)
        self.vectors: Any = self.base.vectors if self.delta is None else Vectors([s.vectors for s in self._parts])
        self.has_colours = any(s.palettes is not None for s in self._parts)
        self._one_each = len(self.first) == len(self.photos)
        self.live: NDArray[np.bool_] | None = None
        if dead is not None:
            self.live = np.append(~dead, np.ones(len(self.first) - self._begin[0], np.bool_))
        self._count = len(self.first) if self.live is None else int(np.count_nonzero(self.live))
        self.attributes, self.table = self._columns()
        self._mask = _remembered(self.table)
        self._facets: dict[str, list[dict[str, Any]]] = {}

    def _segments(
        self, store: Store, before: Snapshot | None, whole: bool
    ) -> tuple[Segment, Segment | None, NDArray[np.bool_] | None]:
        """The base, what was written since, and which of the base's products are dead."""
        manifest = self.manifest
        if manifest is None:
            return segments.nothing(1), None, None
        dataset = store.dataset(self.version)
        kinds = [name for name, kind in manifest.kinds.items() if kind == "text"]
        with store.errors(reading=True):
            base = None if whole else self._base(store, before, manifest)
            if base is not None:
                gone, fresh = _changed(base, dataset)
                self._check(dataset, fresh, manifest, store)
                if not fresh and not gone.any():
                    return base, None, None
                grown = int(gone.sum()) + sum(f.count_rows() for f in fresh)
                if base.directory is not None or grown <= OUTGROWN * len(base):
                    delta, dead = _delta(base, dataset, kinds, gone, fresh)
                    return base, delta, dead
            self._check(dataset, dataset.get_fragments(), manifest, store)
            return segments.read(dataset, kinds, manifest.encoder_id), None, None

    def _base(self, store: Store, before: Snapshot | None, manifest: Manifest) -> Segment | None:
        """The base to stand on: the newest one in files, else that of the snapshot before; None to make one."""
        last = before.base if before is not None and before.stamp[1:] == self.stamp[1:] else None
        if self.generation is not None:
            if before is not None and before.base.directory == self.generation:
                last = before.base
            else:
                try:
                    last = segments.load(self.generation, store)
                except (OSError, ValueError, KeyError, TypeError, LookalikeError) as error:
                    log.warning("%s: the index is not used (%s); make it anew: lookalike reindex", store.cache, error)
        if last is None or last.encoder != manifest.encoder_id:
            return None
        return last if last.directory is not None or len(last) >= DELTA_FROM else None

    def _check(self, dataset: Any, fragments: Sequence[Any], manifest: Manifest, store: Store) -> None:
        """Refuse vectors of another encoder in what was not read before."""
        if not fragments:
            return
        other = f"lk_encoder != {_quoted(manifest.encoder_id)}"
        found = dataset.scanner(columns=["lk_encoder"], filter=other, limit=1, fragments=list(fragments))
        made_by = found.to_table()["lk_encoder"].to_pylist()
        if made_by:
            raise CatalogError(
                f"{store.directory}: its vectors were made by {made_by[0]}, its catalog.json says "
                f"{manifest.encoder_id}; restore it from a backup, or remove it and index again"
            )

    def _columns(self) -> tuple[pa.Table, pa.Table]:
        """The source's own columns, and those with the roles' aliases for filters."""
        own = {}
        tables = [s.products for s in self._parts]
        for name in dict.fromkeys(n for t in tables for n in t.column_names):
            if not name.startswith(PREFIX):
                column = _column(tables, name)
                if column.null_count < len(column):
                    own[name] = column
        aliases: dict[str, Any] = {}
        roles = self.manifest.roles if self.manifest else {}
        paths = self.paths.arrow if self._one_each else self.paths.arrow.take(pa.array(self.first))
        fixed = {"id": self.ids.arrow, "title": self.titles.arrow, "image": paths}
        for role, column in fixed.items():
            aliases[role] = column
            if role != "image" and roles.get(role):
                aliases.setdefault(roles[role], column)
        for role, name in roles.items():
            if role not in fixed and name in own and role not in own:
                aliases[role] = own[name]
        return pa.table(own), pa.table({**own, **aliases})

    @cached_property
    def photo_vectors(self) -> Any:
        """What of the vectors is the photos' own: the same but where the encoder sets the product's words beside."""
        cut = self.manifest.photo_dim if self.manifest else 0
        if not cut:
            return self.vectors
        if isinstance(self.vectors, np.ndarray):
            return self.vectors[:, :cut]
        return Vectors([s.vectors for s in self._parts], cut)

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """The product of each photo (photos,)."""
        return np.repeat(np.arange(len(self.first)), np.diff(np.append(self.first, len(self.photos))))

    @cached_property
    def palettes(self) -> NDArray[np.uint8]:
        """The colours of each photo (photos, COLOURS / 4, 4), shares of 0 in those from before there were colours."""
        parts = [
            np.zeros((len(s), COLOURS // 4, 4), np.uint8) if s.palettes is None else s.palettes for s in self._parts
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def __len__(self) -> int:
        return self._count

    @property
    def outgrown(self) -> bool:
        """Whether so much has changed since the base was made that it should be made anew."""
        dead = 0 if self.live is None else int(np.count_nonzero(~self.live))
        return (0 if self.delta is None else len(self.delta)) + dead > OUTGROWN * len(self.base)

    @property
    def photo_count(self) -> int:
        """Photos of the products that are there."""
        return len(self.photos) if self.live is None else int(np.count_nonzero(self.live[self.owner]))

    @property
    def positions(self) -> NDArray[np.int64]:
        """Where the products are, in order of id."""
        if self.live is None:
            return np.arange(len(self.first))
        here = np.flatnonzero(self.live)
        ids = self.ids.arrow.take(pa.array(here))
        order: NDArray[np.int64] = here[pc.sort_indices(ids).to_numpy()]
        return order

    # Looking things up

    def product(self, identity: str) -> int:
        """Position of a product. Raises NotFound."""
        found = self._product(identity)
        if found < 0:
            raise NotFound(f"no product {identity!r} in the catalog")
        return found

    def has(self, identity: str) -> bool:
        """Whether there is a product of that id."""
        return self._product(identity) >= 0

    def _product(self, identity: str) -> int:
        if self.delta is not None:
            found = self.delta.product(identity)
            if found >= 0:
                return found + self._begin[0]
        found = self.base.product(identity)
        return found if found >= 0 and (self.live is None or self.live[found]) else -1

    def photo(self, photo: str) -> int:
        """Row of a photo. Raises NotFound."""
        if self.delta is not None:
            found = self.delta.photo(photo)
            if found >= 0:
                return found + self._begin[1]
        found = self.base.photo(photo)
        if found < 0 or (self.live is not None and not self.live[self.owner[found]]):
            raise NotFound(f"no photo {photo!r} in the catalog")
        return found

    def rows(self, product: int) -> range:
        """The rows of a product's photos."""
        end = int(self.first[product + 1]) if product + 1 < len(self.first) else len(self.photos)
        return range(int(self.first[product]), end)

    def small(self, found: Found) -> dict[str, str]:
        """A product found, in short: enough to show it and to ask for it."""
        return {
            "id": self.ids[found.product],
            "title": self.titles[found.product],
            "photo": self.photos[found.row],
        }

    def attributes_of(self, products: Sequence[int]) -> list[dict[str, Value]]:
        """Attributes of some products under their own names, missing ones left out."""
        if not self.attributes.column_names:
            return [{} for _ in products]
        taken = self.attributes.take(pa.array(products, pa.int64())).to_pylist()
        return [{c: number(v) for c, v in row.items() if v is not None} for row in taken]

    @cached_property
    def lexical(self) -> Lexical:
        """Word matching over titles, ids and text attributes; built on first use."""
        if self.delta is None:
            return self.base.lexical
        return Lexical.joined([self.base.lexical, self.delta.words(self.base.lexical.mean)], self.live)

    # Filters and facets

    def mask(self, expression: filters.Expr | None) -> NDArray[np.bool_] | None:
        """Which positions hold a product that passes a filter, (products,); None where all do. Raises UsageError."""
        if expression is None:
            return self.live
        found = self._mask(expression)
        return found if self.live is None else found & self.live

    def facets(self, expression: filters.Expr | None = None) -> list[dict[str, Any]]:
        """Counts of each column's values among the products that pass the filter, the column's own conditions left out.

        What is given is kept for the next call, and must not be changed.

        A text or flag column gives ``{"column", "kind": "values", "values": [{"value", "count"}, …]}``, most frequent
        first; a number column gives ``{"column", "kind": "range", "min", "max", "bins": [{"from", "to", "count"}, …]}``.
        """
        key = repr(expression)
        kept = self._facets.get(key)
        if kept is not None:  # nearly every answer of a shop's page asks for the same counts
            return kept
        spoken = {c.casefold() for c in filters.columns(expression)} if expression else set()
        everything = self.mask(expression)
        same = {name: self._aliases(name) for name in self.attributes.column_names}
        out: list[dict[str, Any]] = []
        for name in self.attributes.column_names:
            mask, reduced = everything, expression
            if {alias.casefold() for alias in same[name]} & spoken:
                for alias in same[name]:
                    reduced = filters.without(reduced, alias)
                mask = self.mask(reduced)
            facet = self._facet(name, mask)
            if facet:
                out.append(facet)
        if len(self._facets) >= MASKS:
            self._facets.clear()
        self._facets[key] = out
        return out

    def _aliases(self, name: str) -> set[str]:
        roles = self.manifest.roles if self.manifest else {}
        return {name, *(role for role, column in roles.items() if column == name)}

    def _facet(self, name: str, mask: NDArray[np.bool_] | None) -> dict[str, Any] | None:
        column = self.attributes[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0) if column.num_chunks else column
        if pa.types.is_floating(column.type):
            values = column.to_numpy(zero_copy_only=False)
            values = values[~np.isnan(values)] if mask is None else values[mask & ~np.isnan(values)]
            if not len(values):
                return None
            counts, edges = np.histogram(values, bins=min(BINS, max(1, len(np.unique(values)))))
            bins = [
                {"from": number(float(f"{a:.6g}")), "to": number(float(f"{b:.6g}")), "count": int(c)}
                for a, b, c in zip(edges[:-1], edges[1:], counts, strict=True)
            ]
            return {
                "column": name,
                "kind": "range",
                "min": number(values.min()),
                "max": number(values.max()),
                "bins": bins,
            }
        if pa.types.is_boolean(column.type):
            column = pc.if_else(column, "true", "false").dictionary_encode()
        codes = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
        among = len(column.dictionary) + 1
        there = np.bincount((codes if self.live is None else codes[self.live]) + 1, minlength=among)[1:]
        if not 1 < np.count_nonzero(there) <= FACET_VALUES:
            return None
        counts = (
            there
            if mask is self.live
            else np.bincount((codes if mask is None else codes[mask]) + 1, minlength=among)[1:]
        )
        pairs = sorted(zip(column.dictionary.to_pylist(), counts.tolist(), strict=True), key=lambda p: (-p[1], p[0]))
        values = [{"value": v, "count": c} for v, c in pairs if c]
        return {"column": name, "kind": "values", "values": values} if values else None

    # What the catalog knows of words and vectors

    @cached_property
    def wardrobe(self) -> Wardrobe:
        """The photos' palettes, ready to be compared with a colour; built on first use."""
        return Wardrobe(self.palettes)

    def spread(self, vector: NDArray[np.float32]) -> float:
        """Standard deviation of the cosines of the catalog's photos with a vector (dim,): how strongly it sorts them."""
        return float(np.sqrt(max(float(vector @ self.base.covariance @ vector), 1e-8)))

    def length(self, vector: NDArray[np.float32]) -> float:
        """Length of a query's photo part and of its text part together: divided by it, its scores are −1 … 1."""
        cut = self.photo_vectors.shape[1]
        return float(np.linalg.norm(vector[:cut]) + np.linalg.norm(vector[cut:]))

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """Each text column that is a facet → its values, most frequent first."""
        found = (self._facet(name, self.live) for name in self.attributes.column_names)
        return {f["column"]: [v["value"] for v in f["values"]] for f in found if f and f["kind"] == "values"}

    @cached_property
    def _named(self) -> dict[tuple[str, ...], list[tuple[str, str]]]:
        """Words → the (column, value) that they name."""
        out: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for column, values in self.values.items():
            for value in values:
                out.setdefault(words_of(value), []).append((column, value))
        return out

    def mentions(self, text: str) -> dict[str, tuple[str, int, int]]:
        """The columns whose values a text names: column → (value, position of its first word, words); the longest name wins."""
        words = words_of(text)
        found: dict[str, tuple[str, int, int]] = {}
        taken: set[int] = set()
        for length in (3, 2, 1):
            for start in range(len(words) - length + 1):
                here = set(range(start, start + length))
                if here & taken:
                    continue
                for column, value in self._named.get(words[start : start + length], ()):
                    if column not in found:
                        found[column] = (value, start, length)
                        taken |= here
        return found

    def column(self, name: str) -> str:
        """The column meant by a name (a role will do), as in filters. Raises UsageError listing the columns."""
        return filters.resolve(name, self.table.column_names)

    def role(self, column: str) -> str | None:
        """The role that a column has, if any."""
        roles = self.manifest.roles if self.manifest else {}
        return next((role for role, name in roles.items() if name == column), None)

    # Searching

    def rank(
        self,
        query: NDArray[np.float32] | None,
        mask: NDArray[np.bool_] | None = None,
        without: Iterable[int] = (),
        words: NDArray[np.float32] | None = None,
        share: float = 0.0,
        colour: NDArray[np.float32] | None = None,
        colour_weight: float = 1.0,
    ) -> Ranking:
        """All products in an order that can be cut anywhere.

        Args:
            query: of ``length`` 1 (dim,); None to go by ``colour`` alone, whose closeness is then the score.
            mask: products that may answer (products,), or None for all.
            without: products that may not.
            words: scores of word matching (products,), 0 … 1, mixed in with ``share``: it changes the order, while the
                reported score stays the cosine.
            share: 0 … 1.
            colour: how near each photo's garment is to a wanted colour (photos,), 0 … 1; it changes the order alone.
            colour_weight: at 1 the colour sorts the catalog as strongly as the cosine does.
        """
        if mask is None:
            mask = self.live
        excluded = list(without)
        if excluded:
            mask = np.ones(len(self.first), np.bool_) if mask is None else mask.copy()
            mask[excluded] = False
        if not len(self.photos):
            nothing = np.empty(0, np.float32)
            return Scan(self, nothing, nothing, nothing)
        allowed = mask if mask is None or self._one_each else mask[self.owner]
        pull = 0.0 if query is None or colour is None else colour_weight * self.spread(query)
        pull /= 1 if colour is None else max(float(colour.std()), 1e-6)
        if query is not None and self.base.index is not None:
            return Reach(self, query, allowed, words if share else None, share, colour if pull else None, pull)
        if query is not None:
            scores = self._scan(query, allowed)
        else:
            assert colour is not None
            scores = colour if allowed is None else np.where(allowed, colour, -np.inf).astype(np.float32)
        mixed = scores if query is None or colour is None or not pull else scores + np.float32(pull) * colour
        order = mixed if self._one_each else np.maximum.reduceat(mixed, self.first)
        if words is not None and share:
            order = (1 - share) * order + share * words
        return Scan(self, scores, mixed, order)

    def _scan(self, query: NDArray[np.float32], allowed: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Cosines of all photos with a query (dim,), −inf where not ``allowed``: (photos,)."""
        if self.delta is None:
            return exact.scan(self.vectors, query, allowed)
        cut = self._begin[1]
        masks = (None, None) if allowed is None else (allowed[:cut], allowed[cut:])
        return np.concatenate([exact.scan(s.vectors, query, m) for s, m in zip(self._parts, masks, strict=True)])

    @cached_property
    def rank_of(self) -> NDArray[np.float64] | None:
        """What puts positions in order of id (products,), or None where they are."""
        if self.delta is None:
            return None
        places = np.array([self.base.place(i) for i in self.delta.ids], np.float64)  # ascending, as the ids are
        return np.append(np.arange(self._begin[0]), places - 0.5 + np.arange(len(places)) / (2 * max(1, len(places))))

    def near(
        self, query: NDArray[np.float32], n: int, allowed: NDArray[np.bool_] | None, least: int = 0
    ) -> NDArray[np.intp]:  # fmt: skip
        """Rows that likely hold the ``n`` photos nearest to a query (dim,) of the ``allowed`` (photos,); all of the delta's.

        At least ``least`` of the base's, where so many are allowed.
        """
        index, cut = self.base.index, self._begin[1]
        inside, after = (None, None) if allowed is None else (allowed[:cut], allowed[cut:])
        late = np.arange(cut, len(self.photos)) if after is None else cut + np.flatnonzero(after)
        passing = cut if inside is None else int(np.count_nonzero(inside))
        if inside is not None and passing <= max(n, index.gathered):
            return np.append(np.flatnonzero(inside), late)
        rerank = index.settings["rerank"]
        wanted = max(n, least, rerank["least"], int(np.ceil(rerank["per_hit"] * n)))
        if wanted > SCANNED * passing:
            wanted = passing
        found = index.candidates(query, wanted, inside) if wanted < passing else np.empty(0, np.intp)
        if len(found) < min(n, passing):  # a scan is as fast then; and a graph may have corners that nothing leads to
            found = np.arange(cut) if inside is None else np.flatnonzero(inside)
        return np.append(np.sort(found), late)


class Ranking(Protocol):
    """All products in an order that can be cut anywhere."""

    @property
    def snapshot(self) -> Snapshot:
        """Whose products."""

    def top(self, k: int) -> list[Found]:
        """The ``k`` best, equal ones in order of id."""


@dataclass(frozen=True)
class Scan:
    """An order of all products, each of them scored.

    ``scores`` (photos,) is the cosine, ``mixed`` (photos,) chooses a product's best photo, ``order`` (products,) is what the
    products are ordered by; −inf is never given.
    """

    snapshot: Snapshot
    scores: NDArray[np.float32]
    mixed: NDArray[np.float32]
    order: NDArray[np.float32]

    def top(self, k: int) -> list[Found]:
        """The ``k`` best, equal ones in order of id."""
        found = []
        for product in exact.top(self.order, k, self.snapshot.rank_of).tolist():
            rows = self.snapshot.rows(product)
            row = rows[0] if len(rows) == 1 else rows[int(np.argmax(self.mixed[rows.start : rows.stop]))]
            found.append(Found(product, row, float(self.scores[row]), float(self.order[product])))
        return found


class Reach:
    """An order of the products that an index, words or colours bring up; the further one looks, the more of them.

    Whatever is brought up is scored exactly, as ``Scan`` does it. Of several measures (vectors, words, colour) the best by each
    are brought up, so that only what is in no list far enough up can be missed.
    """

    def __init__(
        self, snapshot: Snapshot, query: NDArray[np.float32], allowed: NDArray[np.bool_] | None,
        words: NDArray[np.float32] | None, share: float, colour: NDArray[np.float32] | None, pull: float,
    ):  # fmt: skip
        self.snapshot, self.query, self.allowed = snapshot, query, allowed
        self.words, self.share, self.colour, self.pull = words, share, colour, pull
        self.there = len(snapshot.photos) if allowed is None else int(np.count_nonzero(allowed))
        self._reached = 0
        self._order = self._rows = np.empty(0, np.int64)  # the products brought up, best first, and their best photos
        self._scores = self._values = np.empty(0, np.float32)

    def top(self, k: int) -> list[Found]:
        """The ``k`` best, equal ones in order of id."""
        while self._reached < self.there and len(self._order) < k:
            following = next((step for step in STEPS if step > self._reached), 4 * self._reached)
            self._reached = min(following, self.there)
            self._bring(self._reached)
        parts = (self._order, self._rows, self._scores, self._values)
        return [Found(*one) for one in zip(*(p[:k].tolist() for p in parts), strict=True)]

    def _bring(self, reach: int) -> None:
        snapshot = self.snapshot
        least = 0 if self.words is None and self.colour is None else LEAST_REACH
        rows = [snapshot.near(self.query, reach, self.allowed, least)]
        if self.colour is not None:
            seen = self.colour if self.allowed is None else np.where(self.allowed, self.colour, -np.inf)
            rows.append(exact.top(seen, max(least, reach)))
        if self.words is not None:
            passing = self.words > 0
            if self.allowed is not None:
                passing &= np.logical_or.reduceat(self.allowed, snapshot.first)
            said = exact.top(np.where(passing, self.words, -np.inf).astype(np.float32), max(least, reach))
            own = np.concatenate(
                [np.arange(r.start, r.stop) for r in map(snapshot.rows, said.tolist())] or [rows[0][:0]]
            )
            rows.append(own if self.allowed is None else own[self.allowed[own]])
        row = np.unique(np.concatenate(rows)).astype(np.int64)
        if not len(row):
            return
        scores = np.asarray(snapshot.vectors[row] @ self.query, np.float32)
        mixed = scores if self.colour is None else scores + np.float32(self.pull) * self.colour[row]
        owner = snapshot.owner[row]
        heads = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        order = np.maximum.reduceat(mixed, heads)
        # The first of a product's photos that reach its best: `heads` is where its photos begin.
        best = np.flatnonzero(mixed == np.repeat(order, np.diff(np.append(heads, len(row)))))
        best = best[np.unique(owner[best], return_index=True)[1]]
        product = owner[heads]
        if self.words is not None:
            order = (1 - self.share) * order + self.share * self.words[product]
        rank = snapshot.rank_of
        by = exact.top(order, len(order), None if rank is None else rank[product])
        # What was given stays as it was given, or pages and folds would show products twice; then what is new, as far as it
        # was looked for.
        by = by[~np.isin(product[by], self._order)][: reach if reach < self.there else None]
        fresh = product[by], row[best[by]], scores[best[by]], order[by]
        given = self._order, self._rows, self._scores, self._values
        whole: list[NDArray[Any]] = [np.concatenate([a, b]) for a, b in zip(given, fresh, strict=True)]
        self._order, self._rows, self._scores, self._values = whole


def _changed(base: Segment, dataset: Any) -> tuple[NDArray[np.bool_], list[Any]]:
    """Which of the base's photos are no longer in the catalog as they were (photos,), and the fragments written since."""
    now = {segments.name_of(f): f for f in dataset.get_fragments()}
    gone = np.zeros(len(base), np.bool_)
    number = base.address >> np.uint64(32)
    for name, deletions in base.fragments.items():
        if name not in now:
            gone |= number == int(name.split("/")[0])
        elif str(now[name].deletion_file() or "") != deletions:
            here = np.flatnonzero(number == now[name].fragment_id)
            scanner = dataset.scanner(columns=[], fragments=[now[name]], with_row_address=True)
            gone[here] |= ~np.isin(base.address[here], scanner.to_table()["_rowaddr"].to_numpy())
    return gone, [f for name, f in now.items() if name not in base.fragments]


def _delta(
    base: Segment, dataset: Any, kinds: Sequence[str], gone: NDArray[np.bool_], fresh: Sequence[Any]
) -> tuple[Segment, NDArray[np.bool_]]:
    """What was written since as a segment, and which of the base's products are dead (products,).

    A product that changed in part goes over with all that it still has.
    """
    columns = [n for n in dataset.schema.names if n not in ("lk_source", "lk_size", "lk_mtime", "lk_encoder")]
    rows = dataset.scanner(columns=columns, fragments=list(fresh), with_row_address=True).to_table()
    heads = base.first[:-1]
    dead = np.logical_or.reduceat(gone, heads) if len(heads) else np.zeros(0, np.bool_)
    for identity in pc.unique(rows["lk_id"]).to_pylist():
        at = base.product(identity)
        if at >= 0:
            dead[at] = True
    moved = np.repeat(dead, np.diff(base.first)) & ~gone
    if moved.any():
        address = pa.array(base.address[moved])
        left = dataset._take_rows(address, columns=columns)  # the one way to read rows by address, as ivf.Stored does
        rows = pa.concat_tables([rows, left.append_column("_rowaddr", address).select(rows.column_names)])
    return segments.read(dataset, kinds, base.encoder, rows=rows), dead


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _as(chunk: Any, kind: Any) -> Any:
    if chunk.type == kind or not pa.types.is_dictionary(kind):
        return chunk.cast(kind)
    return chunk.dictionary_decode().cast(kind.value_type).dictionary_encode()


def _joined(tables: Sequence[pa.Table], name: str) -> Column:
    kind = tables[0][name].type  # large strings where there is much text; the delta has little
    return Column(pa.chunked_array([chunk.cast(kind) for t in tables for chunk in t[name].iterchunks()], kind))


def _column(tables: Sequence[pa.Table], name: str) -> pa.ChunkedArray:
    """A column of several tables as one array; nulls where a table lacks it."""
    kind = next(t[name].type for t in tables if name in t.column_names)
    parts = [t[name] if name in t.column_names else pa.chunked_array([pa.nulls(len(t), kind)]) for t in tables]
    whole = pa.chunked_array([_as(c, kind) for p in parts for c in p.iterchunks()], kind)
    if whole.num_chunks > 1:
        whole = pa.chunked_array([whole.unify_dictionaries().combine_chunks()])
    return whole


def _remembered(table: pa.Table) -> Callable[[filters.Expr], NDArray[np.bool_]]:
    """The masks of the latest filters: one request asks for its mask several times, and the next one often for the same."""
    masks: dict[str, NDArray[np.bool_]] = {}

    def mask(expression: filters.Expr) -> NDArray[np.bool_]:
        key = repr(expression)  # and not its hash, to which 1 and true are the same
        found = masks.get(key)
        if found is None:
            found = filters.mask(expression, table)
            found.flags.writeable = False
            if len(masks) >= MASKS:
                masks.clear()
            masks[key] = found
        return found

    return mask


def number(value: Any) -> Any:
    """A whole float as an integer: numbers are kept as float64, but 2011.0 is no year."""
    if isinstance(value, (float, np.floating)):
        return int(value) if float(value).is_integer() else float(value)
    return value
