"""One version of a catalog in memory: what answers searches. Immutable; swapped whole when a newer version is seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lookalike import where as filters
from lookalike.colours import Wardrobe
from lookalike.errors import CatalogError, NotFound
from lookalike.indexes import exact
from lookalike.indexes.lexical import Lexical, words_of
from lookalike.store import COLOURS, PREFIX, Manifest, Store
from lookalike.types import Value

FACET_VALUES = 200
"""A text column with more values than this is no facet (titles, codes)."""


BINS = 20
"""Bars of a number column's histogram, at most."""

SAMPLE = 20_000
"""Photos that the covariance of the vectors is taken from."""

MASKS = 16
"""Filters whose masks (a byte a product each) and counts are kept."""


@dataclass(frozen=True, slots=True)
class Found:
    """A product found: its position, its best photo's row, the cosine."""

    product: int
    row: int
    score: float


class Snapshot:
    """Products in order of id, their photos' rows beside them, and the vectors.

    ``vectors`` (photos, dim) float32, and ``photo_vectors`` what of them is the photos' own: the same but where the encoder
    sets the product's words beside. ``first`` (products,) is the row of each product's first photo; ``table`` has one row per
    product: the attributes under their own names, and the roles (id, title, image, category …) as aliases.
    """

    def __init__(self, store: Store):
        """Load the latest version.

        Raises:
            CatalogError: it cannot be read, or holds vectors of another encoder than its manifest says.
        """
        self.stamp = store.stamp()
        self.version = self.stamp[0]
        self.manifest: Manifest | None = store.manifest()
        rows = store.rows(version=self.version or None)
        rows = rows.take(pc.sort_indices(rows, [("lk_id", "ascending"), ("lk_position", "ascending")])).combine_chunks()
        self._check(rows, store)
        dim = rows.schema.field("lk_vector").type.list_size
        flat = rows["lk_vector"].combine_chunks()
        values = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) and flat.num_chunks else flat
        self.vectors: NDArray[np.float32] = (
            np.ascontiguousarray(values.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim))
            if len(rows)
            else np.empty((0, dim), np.float32)
        )
        self.photo_vectors = self.vectors[:, : (self.manifest.photo_dim if self.manifest else 0) or None]
        ids = rows["lk_id"].to_numpy(zero_copy_only=False)
        self.first: NDArray[np.intp] = np.flatnonzero(np.r_[len(ids) > 0, ids[1:] != ids[:-1]][: len(ids)])
        self.ids: list[str] = list(ids[self.first])
        self.photos: list[str] = rows["lk_photo"].to_pylist()
        self.paths: list[str] = rows["lk_path"].to_pylist()
        found = rows["lk_colours"].to_pylist() if "lk_colours" in rows.column_names else [None] * len(rows)
        self.has_colours = any(found)
        # Photos from before there were colours have none (all shares 0) until they are indexed again.
        self.palettes: NDArray[np.uint8] = np.frombuffer(
            b"".join(c or bytes(COLOURS) for c in found), np.uint8
        ).reshape(-1, COLOURS // 4, 4)
        self.digests: list[str] = rows["lk_digest"].to_pylist()
        self.titles: list[str] = [t or "" for t in rows["lk_title"].take(pa.array(self.first)).to_pylist()]
        self._product: dict[str, int] = dict(zip(self.ids, range(len(self.ids)), strict=True))
        self._photo: dict[str, int] = dict(zip(self.photos, range(len(self.photos)), strict=True))
        self._one_each = len(self.first) == len(self.photos)
        self.owner: NDArray[np.intp] = np.repeat(
            np.arange(len(self.first)), np.diff(np.r_[self.first, len(self.photos)]).astype(np.intp)
        )
        """The product of each photo (photos,)."""
        self.attributes, self.table = self._columns(rows.take(pa.array(self.first)))
        self._mask = _remembered(self.table)
        self._facets: dict[str, list[dict[str, Any]]] = {}

    def _check(self, rows: pa.Table, store: Store) -> None:
        if self.manifest is None or not len(rows):
            return
        made_by = pc.unique(rows["lk_encoder"]).to_pylist()
        if made_by != [self.manifest.encoder_id]:
            raise CatalogError(
                f"{store.directory}: its vectors were made by {', '.join(made_by)}, its catalog.json says "
                f"{self.manifest.encoder_id}; restore it from a backup, or remove it and index again"
            )

    def _columns(self, products: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The source's own columns, and those with the roles' aliases for filters."""
        own = {}
        for name in products.column_names:
            if not name.startswith(PREFIX) and products[name].null_count < len(products):
                column = products[name].combine_chunks()
                own[name] = column.dictionary_encode() if pa.types.is_string(column.type) else column
        aliases: dict[str, Any] = {}
        roles = self.manifest.roles if self.manifest else {}
        fixed = {"id": "lk_id", "title": "lk_title", "image": "lk_path"}
        for role, column in fixed.items():
            aliases[role] = products[column]
            if role != "image" and roles.get(role):
                aliases.setdefault(roles[role], products[column])
        for role, name in roles.items():
            if role not in fixed and name in own and role not in own:
                aliases[role] = own[name]
        return pa.table(own), pa.table({**own, **aliases})

    def __len__(self) -> int:
        return len(self.ids)

    # Looking things up

    def product(self, identity: str) -> int:
        """Position of a product. Raises NotFound."""
        try:
            return self._product[identity]
        except KeyError:
            raise NotFound(f"no product {identity!r} in the catalog") from None

    def has(self, identity: str) -> bool:
        """Whether there is a product of that id."""
        return identity in self._product

    def photo(self, photo: str) -> int:
        """Row of a photo. Raises NotFound."""
        try:
            return self._photo[photo]
        except KeyError:
            raise NotFound(f"no photo {photo!r} in the catalog") from None

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
        columns = [
            c for c in self.attributes.column_names if pa.types.is_dictionary(self.attributes.schema.field(c).type)
        ]
        texts = zip(self.titles, self.ids, *[self.attributes[c].to_pylist() for c in columns], strict=True)
        return Lexical([" ".join(t for t in parts if t) for parts in texts])

    # Filters and facets

    def mask(self, expression: filters.Expr | None) -> NDArray[np.bool_] | None:
        """Which products pass a filter, (products,); None where there is no filter. Raises UsageError."""
        return None if expression is None else self._mask(expression)

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
        if not 1 < len(column.dictionary) <= FACET_VALUES:
            return None
        codes = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
        counts = np.bincount((codes if mask is None else codes[mask]) + 1, minlength=len(column.dictionary) + 1)[1:]
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
        return float(np.sqrt(max(float(vector @ self._covariance @ vector), 1e-8)))

    def length(self, vector: NDArray[np.float32]) -> float:
        """Length of a query's photo part and of its text part together: divided by it, its scores are −1 … 1."""
        cut = self.photo_vectors.shape[1]
        return float(np.linalg.norm(vector[:cut]) + np.linalg.norm(vector[cut:]))

    @cached_property
    def _covariance(self) -> NDArray[np.float32]:
        step = max(1, len(self.vectors) // SAMPLE)
        sample = self.vectors[::step]
        centred = sample - sample.mean(0)
        return np.asarray(centred.T @ centred / max(1, len(sample)), np.float32)

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """Each text column that is a facet → its values, most frequent first."""
        found = (self._facet(name, None) for name in self.attributes.column_names)
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
        excluded = list(without)
        if excluded:
            mask = np.ones(len(self), np.bool_) if mask is None else mask.copy()
            mask[excluded] = False
        if not len(self):
            nothing = np.empty(0, np.float32)
            return Ranking(self, nothing, nothing, nothing)
        allowed = mask if mask is None or self._one_each else mask[self.owner]
        if query is not None:
            scores = exact.scan(self.vectors, query, allowed)
        else:
            assert colour is not None
            scores = colour if allowed is None else np.where(allowed, colour, -np.inf).astype(np.float32)
        mixed = scores
        if query is not None and colour is not None and colour_weight:
            mixed = scores + np.float32(colour_weight * self.spread(query) / max(float(colour.std()), 1e-6)) * colour
        order = mixed if self._one_each else np.maximum.reduceat(mixed, self.first)
        if words is not None and share:
            order = (1 - share) * order + share * words
        return Ranking(self, scores, mixed, order)


@dataclass(frozen=True)
class Ranking:
    """An order of all products.

    ``scores`` (photos,) is the cosine, ``mixed`` (photos,) chooses a product's best photo, ``order`` (products,) is what the
    products are ordered by; −inf is never given.
    """

    snapshot: Snapshot
    scores: NDArray[np.float32]
    mixed: NDArray[np.float32]
    order: NDArray[np.float32]

    def top(self, k: int) -> list[Found]:
        """The ``k`` best."""
        found = []
        for product in exact.top(self.order, k).tolist():
            rows = self.snapshot.rows(product)
            row = rows[0] if len(rows) == 1 else rows[int(np.argmax(self.mixed[rows.start : rows.stop]))]
            found.append(Found(product, row, float(self.scores[row])))
        return found


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
