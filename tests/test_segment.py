"""Base, delta and derived files against the catalog read whole: every question has the same answer."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from filelock import FileLock

import lookalike
from conftest import draw
from lookalike import segment, snapshot, where
from lookalike.errors import CatalogError, CatalogLocked, NotFound, UsageError
from lookalike.indexes import base
from lookalike.indexing import photo_key
from lookalike.snapshot import Snapshot
from lookalike.store import Manifest, Store, schema
from lookalike.types import Query

DIM = 16
COLOURS = ["Red", "Blue", "Green", "Black"]


class Shop:
    """A catalog that is written below the encoder, and the rows that it should have."""

    def __init__(self, directory: Path, products: int, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.store = Store(directory)
        kinds = {"colour": "text", "price": "number", "new": "flag"}
        self.store.create(Manifest("fake", "fake-1", DIM, {"colour": "colour", "price": "price"}, kinds))
        self.write([f"p{n:05d}" for n in range(products)])

    def write(self, ids: list[str], photos: int = 0, replaces: bool = False) -> None:
        """Products with one to three photos each; ``replaces`` those that are there."""
        rows = [(i, n) for i in ids for n in range(photos or int(self.rng.integers(1, 4)))]
        vectors = self.rng.normal(size=(len(rows), DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        value = {
            i: (self.rng.choice(COLOURS), float(self.rng.integers(5, 90)), bool(self.rng.random() < 0.5)) for i in ids
        }
        palette = self.rng.integers(0, 256, (len(rows), 16), np.uint8)
        ours = {
            "lk_photo": [photo_key(i, n) for i, n in rows],
            "lk_id": [i for i, _ in rows],
            "lk_position": [n for _, n in rows],
            "lk_title": [f"{value[i][0]} thing {i[-2:]}" for i, _ in rows],
            "lk_source": ["here"] * len(rows),
            "lk_path": [f"/photos/{i}-{n}.jpg" for i, n in rows],
            "lk_digest": [f"{self.rng.integers(1 << 40):032x}" for _ in rows],
            "lk_size": [1] * len(rows),
            "lk_mtime": [1] * len(rows),
            "lk_colours": [p.tobytes() for p in palette],
            "lk_encoder": ["fake-1"] * len(rows),
        }
        wanted = schema(DIM)
        arrays = [pa.array(v, wanted.field(k).type) for k, v in ours.items()]
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM))
        own = [pa.array([value[i][n] for i, _ in rows]) for n in range(3)]
        fields = [
            *wanted,
            pa.field("colour", pa.string()),
            pa.field("price", pa.float64()),
            pa.field("new", pa.bool_()),
        ]
        self.store.commit(pa.Table.from_arrays([*arrays, *own], schema=pa.schema(fields)), replaces=replaces)

    def drop(self, ids: list[str]) -> None:
        rows = self.store.rows(["lk_photo", "lk_id"]).to_pylist()
        self.store.delete(r["lk_photo"] for r in rows if r["lk_id"] in ids)

    def drop_photo(self, identity: str, position: int) -> None:
        self.store.delete([photo_key(identity, position)])


def same(one: Snapshot, other: Snapshot, rng: np.random.Generator) -> None:
    """Asserts that two snapshots answer alike, whatever is asked."""
    order = other.positions
    ids = [other.ids[n] for n in order]
    assert ids == [one.ids[n] for n in one.positions] == sorted(ids)
    assert len(one) == len(other) == len(ids)
    assert one.photo_count == other.photo_count
    mine = {one.ids[n]: n for n in one.positions}
    for identity in ids[:: max(1, len(ids) // 25)]:
        a, b = one.product(identity), other.product(identity)
        assert a == mine[identity]
        assert [one.photos[r] for r in one.rows(a)] == [other.photos[r] for r in other.rows(b)]
        assert [one.digests[r] for r in one.rows(a)] == [other.digests[r] for r in other.rows(b)]
        assert np.array_equal(one.vectors[list(one.rows(a))], other.vectors[list(other.rows(b))])
        assert one.attributes_of([a]) == other.attributes_of([b])
        assert one.titles[a] == other.titles[b]
        row = one.photo(other.photos[other.rows(b)[0]])
        assert row == one.rows(a)[0]
        assert np.array_equal(one.palettes[row], other.palettes[other.rows(b)[0]])
    assert one.facets() == other.facets()
    for expression in ("colour = 'red'", "price < 20 and not new", "id in ('p00003', 'p00007')", "title like '%1'"):
        tree = where.parse(expression)
        passing = [{s.ids[n] for n in np.flatnonzero(s.mask(tree))} for s in (one, other)]
        assert passing[0] == passing[1], expression
        assert one.facets(tree) == other.facets(tree)
        for wanted in (5, 1000):
            query = rng.normal(size=DIM).astype(np.float32)
            query /= np.linalg.norm(query)
            found = [
                [(s.ids[f.product], round(f.score, 5)) for f in s.rank(query, s.mask(tree)).top(wanted)]
                for s in (one, other)
            ]
            assert found[0] == found[1], expression
    hue = [s.wardrobe.closeness(np.array([200, 30, 60], np.uint8)) for s in (one, other)]
    found = [[s.ids[f.product] for f in s.rank(None, colour=c).top(20)] for s, c in zip((one, other), hue, strict=True)]
    assert found[0] == found[1]


def changes(shop: Shop) -> list[str]:
    """One change after another; yields what it was."""
    known = [f"p{n:05d}" for n in range(60)]

    def compact() -> None:
        shop.store.compact(force=True)

    steps = {
        "new products": lambda: shop.write([f"a{n:03d}" for n in range(5)] + ["z1", "p00003x"]),
        "products replaced": lambda: shop.write(known[3:6], replaces=True),
        "one removed": lambda: shop.drop([known[10]]),
        "a photo more": lambda: shop.write([known[12]], photos=4, replaces=True),
        "its first photo gone": lambda: shop.drop_photo(known[12], 0),
        "compacted": compact,
        "a new one removed": lambda: shop.drop(["a001", "z1"]),
        "removed and back": lambda: (shop.drop([known[20]]), shop.write([known[20]])),
        "compacted again": compact,
    }
    for name, step in steps.items():
        step()
        yield name


@pytest.mark.parametrize("files", [False, True])
def test_a_newer_version_is_the_base_and_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: bool):
    monkeypatch.setattr(snapshot, "DELTA_FROM", 10)
    monkeypatch.setattr(snapshot, "OUTGROWN", 10.0)
    shop = Shop(tmp_path / "c", 60)
    if files:
        segment.make(shop.store, "exact", 1 << 30)
    now = Snapshot(shop.store)
    base = now.base
    assert (base.directory is not None) == files
    for name in changes(shop):
        now = Snapshot(shop.store, now)
        assert now.base is base, name  # and not read anew
        assert now.delta is not None, name
        same(now, Snapshot(shop.store, whole=True), np.random.default_rng(1))
    with pytest.raises(NotFound):
        now.product("p00010")
    with pytest.raises(NotFound):
        now.photo(photo_key("p00010", 0))
    opened = lookalike.open(tmp_path / "c")
    if files:
        same(opened.snapshot(), now, np.random.default_rng(2))
        assert opened.status()["index"]["newer"] == len(now.delta)


def test_what_changed_much_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(snapshot, "DELTA_FROM", 10)
    shop = Shop(tmp_path / "c", 60)
    before = Snapshot(shop.store)
    shop.write(["x1"])
    now = Snapshot(shop.store, before)
    assert now.base is before.base
    assert not now.outgrown
    shop.write([f"y{n}" for n in range(20)])
    now = Snapshot(shop.store, now)
    assert now.base is not before.base
    assert now.delta is None


@pytest.mark.parametrize("kind", ["int8", "lsh", "hnsw", "ivf"])
def test_an_index_answers_as_the_scan_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    monkeypatch.setattr(snapshot, "OUTGROWN", 10.0)
    shop = Shop(tmp_path / "c", 60)
    told = segment.make(shop.store, kind, 1 << 30)
    assert told["kind"] == kind
    assert told["settings"]["recall"]["photos"] >= 0.99
    now = Snapshot(shop.store)
    assert now.base.index.kind == kind
    now.base.index.gathered = 0  # or so few would be scanned
    for _ in changes(shop):
        now = Snapshot(shop.store, now)
        same(now, Snapshot(shop.store, whole=True), np.random.default_rng(1))
    again = segment.make(shop.store, "", 1 << 30)
    assert again["kind"] == kind  # as it was asked for last
    now = Snapshot(shop.store, now)
    assert now.delta is None
    same(now, Snapshot(shop.store, whole=True), np.random.default_rng(3))


def test_a_version_that_lance_searches_is_held_until_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shop = Shop(tmp_path / "c", 200)
    segment.make(shop.store, "ivf", 1 << 30)
    now = Snapshot(shop.store)
    assert not (now.base.directory / "vectors.npy").exists()
    held = shop.store.dataset().tags.list()
    assert list(held) == [now.base.directory.name]
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(0))
    shop.write([f"w{n}" for n in range(50)])
    shop.store.compact(force=True)
    later = Snapshot(shop.store, now)
    for one in (now, later, Snapshot(shop.store)):
        query = rng_unit(3)
        assert len(one.rank(query).top(5)) == 5
    same(later, Snapshot(shop.store, whole=True), np.random.default_rng(1))
    for _ in range(2):
        segment.make(shop.store, "exact", 1 << 30)
    assert not shop.store.dataset().tags.list()


def rng_unit(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def test_words_and_colours_are_mixed_in_where_an_index_answers(tmp_path: Path):
    shop = Shop(tmp_path / "c", 300)
    whole = Snapshot(shop.store, whole=True)
    segment.make(shop.store, "lsh", 1 << 30)
    shop.write(["new1", "new2"])
    near, plain = Snapshot(shop.store), Snapshot(shop.store, whole=True)
    assert len(near) == len(plain) == len(whole) + 2
    rng = np.random.default_rng(5)
    for n in range(5):
        query = rng.normal(size=DIM).astype(np.float32)
        query /= np.linalg.norm(query)
        answers = []
        for s in (near, plain):
            words = s.lexical.scores("red thing 17")
            hue = s.wardrobe.closeness(np.array([40, 60, 200], np.uint8))
            share, pull = ((0.3, 0.0), (0.3, 0.7), (0.0, 1.0), (1.0, 0.0), (0.5, 0.2))[n]
            found = s.rank(query, None, (), words, share, hue, pull).top(30)
            answers.append([(s.ids[f.product], round(f.score, 4)) for f in found])
            assert found == s.rank(query, None, (), words, share, hue, pull).top(400)[:30]
        assert (
            len(set(answers[0]) & set(answers[1])) >= 28
        )  # the words' weights differ a little in what was written since


def test_searches_go_on_with_what_is_there_while_the_index_is_made(tmp_path: Path):
    shop = Shop(tmp_path / "c", 60)
    catalog = lookalike.open(tmp_path / "c")
    seen: list[tuple[str, str | None]] = []

    def progress(stage: str, done: int, total: int) -> None:
        now = catalog.snapshot()
        seen.append((stage, now.base.directory and now.base.directory.name))
        if stage == "index" and len(shop.store.rows()) < 300:
            shop.write([f"w{n}" for n in range(200)])  # a writer does not wait either
            with pytest.raises(CatalogLocked, match="another process makes"):
                segment.make(shop.store, "exact", 1 << 30)

    segment.make(shop.store, "lsh", 1 << 30, None, progress)
    assert {name for _, name in seen} == {None}
    assert {"reading", "index", "recall"} <= {stage for stage, _ in seen}
    now = catalog.snapshot()
    assert now.base.index.kind == "lsh"
    assert len(now) == 260
    assert now.outgrown


def test_damaged_files_are_left_aside_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    shop = Shop(tmp_path / "c", 60)
    segment.make(shop.store, "lsh", 1 << 30)
    place = segment.latest(shop.store.cache)
    with (place / "vectors.npy").open("r+b") as file:
        file.truncate(100)
    now = Snapshot(shop.store)
    assert now.base.directory is None
    assert "lookalike reindex" in caplog.text
    same(now, Snapshot(shop.store, whole=True), np.random.default_rng(1))
    segment.make(shop.store, "", 1 << 30)
    assert Snapshot(shop.store).base.directory is not None
    (shop.store.cache / "current.json").write_text("{")
    assert Snapshot(shop.store).base.directory is None


def test_derived_files_are_on_the_disk_before_they_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a power cut a file that was not synced may be as long as it was, and zeros: no size tells."""
    shop = Shop(tmp_path / "c", 30)
    synced: set[Path] = set()
    real, rename = os.fsync, Path.replace
    before: list[set[Path]] = []

    def fsync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    def replaced(path: Path, target: Path) -> Path:
        if Path(target).name == "current.json":
            before.append(set(synced))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replaced)
    segment.make(shop.store, "int8", 10**9)
    generation = segment.latest(shop.store.cache)
    assert generation is not None
    made = {p for p in generation.rglob("*") if p.name != "generation.json"}
    wanted = {
        *made,
        generation,
        generation.parent,
        generation / "generation.json.part",
        generation.parent / "current.json.part",
    }
    assert len(made) > 12
    assert before[0] >= wanted
    assert generation.parent in synced


def test_two_generations_are_kept_and_a_killed_one_leaves_nothing_in_use(tmp_path: Path):
    shop = Shop(tmp_path / "c", 20)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "recall":
            raise KeyboardInterrupt

    for _ in range(4):
        segment.make(shop.store, "lsh", 1 << 30)
    with pytest.raises(KeyboardInterrupt):
        segment.make(shop.store, "lsh", 1 << 30, None, stop)
    folders = [p for p in shop.store.cache.iterdir() if p.is_dir()]
    assert len(folders) == 2
    assert segment.latest(shop.store.cache) in folders
    content = json.loads((segment.latest(shop.store.cache) / "generation.json").read_text())
    assert content["index"]["asked"] == "lsh"


def test_settings_that_are_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, catalog: lookalike.Catalog):
    with pytest.raises(UsageError, match="no such kind"):
        catalog.reindex("btree")
    monkeypatch.setenv("LOOKALIKE_MEMORY", "much")
    with pytest.raises(UsageError, match="LOOKALIKE_MEMORY is 'much'"):
        catalog.reindex()
    monkeypatch.setenv("LOOKALIKE_MEMORY", "2 GiB")
    assert catalog.reindex()["kind"] == "exact"
    with pytest.raises(CatalogError, match="no catalog there"):
        lookalike.open(tmp_path / "none").reindex()


def test_a_reindexed_catalog_answers_queries_of_all_kinds(catalog: lookalike.Catalog, tmp_path: Path):
    photo = tmp_path / "img" / "0b.jpg"
    queries = [
        Query(text="red shirt", k=12),
        Query(image=photo, k=12, fold=True),
        Query(text="red", like=("p01",), k=5, diversity=0.3),
        Query(text="shirt", lexical=0.3, where="gender = 'women'", sort="price"),
        Query(colour="#c81e3a"),
        Query(text="blue", colour="#c81e3a", not_like=("p02",), up=("p03",)),
    ]
    before = [[h.id for h in catalog.answer(q).hits] for q in queries]
    catalog.reindex("lsh")
    catalog.snapshot().base.index.gathered = 0
    assert catalog.status()["index"]["kind"] == "lsh"
    assert [[h.id for h in catalog.answer(q).hits] for q in queries] == before


def test_pages_never_show_a_product_twice(tmp_path: Path):
    shop = Shop(tmp_path / "c", 3000)
    segment.make(shop.store, "lsh", 1 << 30)
    now = Snapshot(shop.store)
    now.base.index.settings["rerank"] = {"least": 20, "per_hit": 2}  # as bad as an index can be
    for seed in range(20):
        ranking = now.rank(rng_unit(seed))
        before: list[int] = []
        for k in (1, 12, 60, 300, 1000, 3000):
            found = [f.product for f in ranking.top(k)]
            assert found[: len(before)] == before
            assert len(found) == len(set(found)) == k
            before = found


def test_words_are_found_under_a_filter_and_beside_what_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(snapshot, "LEAST_REACH", 20)
    monkeypatch.setattr(snapshot, "STEPS", (20, 200))
    shop = Shop(tmp_path / "c", 400)
    shop.write(["zebra"])
    segment.make(shop.store, "lsh", 1 << 30)
    now = Snapshot(shop.store)
    now.base.index.gathered = 0
    red = now.mask(where.parse("title like 'Red%' and price < 12"))
    words = now.lexical.scores("red thing")
    found = now.rank(rng_unit(1), red, (), words, 1.0).top(5)
    best = np.sort(np.where(red, words, -1))[::-1][:5]
    assert [round(float(words[f.product]), 5) for f in found] == [round(float(w), 5) for w in best]
    shop.drop(["zebra"])
    now, whole = Snapshot(shop.store, now), Snapshot(shop.store, whole=True)
    title = whole.titles[0]
    assert max(now.lexical.scores(f"{title} zebra")) == pytest.approx(1)
    assert now.lexical.names(title) == whole.lexical.names(title)


def test_values_of_removed_products_are_no_facets(tmp_path: Path):
    shop = Shop(tmp_path / "c", 0)
    for n, colour in enumerate(["Red"] * 5 + ["Blue"]):
        monkey, COLOURS[:] = list(COLOURS), [colour]
        shop.write([f"q{n}"])
        COLOURS[:] = monkey
    segment.make(shop.store, "exact", 1 << 30)
    shop.drop(["q5"])
    now, whole = Snapshot(shop.store), Snapshot(shop.store, whole=True)
    assert now.live is not None
    assert now.facets() == whole.facets()
    assert "colour" not in {f["column"] for f in now.facets()}


def test_only_our_own_folders_are_removed(tmp_path: Path):
    shop = Shop(tmp_path / "c", 20)
    mine = shop.store.cache / "site"
    mine.mkdir(parents=True)
    (mine / "precious.txt").write_text("here")
    for _ in range(3):
        segment.make(shop.store, "exact", 1 << 30)
    assert (mine / "precious.txt").read_text() == "here"


def test_columns_of_any_name_and_much_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segment, "WIDE", 600)
    shop = Shop(tmp_path / "c", 60)
    long = "とても長い列の名前" * 9
    manifest = shop.store.manifest()
    shop.store.write_manifest(replace(manifest, kinds={**manifest.kinds, long: "text", "Colour": "text"}))
    rows = shop.store.dataset().take([0])
    more = {long: pa.array(["x"]), "Colour": pa.array(["y"])}
    for name, column in more.items():
        rows = rows.append_column(name, column)
    shop.store.commit(rows.drop_columns([c for c in rows.column_names if c.startswith("_")]), replaces=True)
    segment.make(shop.store, "exact", 1 << 30)
    shop.write(["new"])
    now = Snapshot(shop.store)
    assert now.delta is not None
    same(now, Snapshot(shop.store, whole=True), np.random.default_rng(1))
    first = next(n for n in now.positions if now.attributes_of([n])[0].get("Colour"))
    assert now.attributes_of([first])[0][long] == "x"


def test_versions_that_were_the_latest_until_lately_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(seconds=2))
    shop = Shop(tmp_path / "c", 60)
    for n in range(3):
        shop.write([f"a{n}"])
    stood = shop.store.version()
    time.sleep(2.5)
    shop.write(["b"])
    shop.store.compact(force=True)
    assert len(shop.store.rows(version=stood)) > 60  # a reader may be at it
    time.sleep(2.5)
    shop.write(["c"])
    shop.store.compact(force=True)
    with pytest.raises(CatalogError, match="cleaned up meanwhile; try again"):
        shop.store.rows(version=stood)


def test_what_lance_leaves_is_cleaned_up(tmp_path: Path):
    shop = Shop(tmp_path / "c", 300)
    segment.make(shop.store, "ivf", 1 << 30)
    shutil.rmtree(shop.store.cache)  # which the guide allows
    segment.make(shop.store, "ivf", 1 << 30)
    assert len(shop.store.held()) == 1
    for _ in range(2):
        segment.make(shop.store, "exact", 1 << 30)
    assert not shop.store.held()
    assert not shop.store.dataset().describe_indices()


def test_a_failing_index_does_not_take_the_report(
    catalog: lookalike.Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    draw(tmp_path / "more" / "new.jpg", "red", "bag", 2)
    monkeypatch.setenv("LOOKALIKE_INDEX", "btree")
    with pytest.raises(UsageError, match="LOOKALIKE_INDEX is 'btree'"):
        catalog.index(tmp_path / "more")
    assert not catalog.snapshot().has("new")
    monkeypatch.setenv("LOOKALIKE_INDEX", "lsh")
    (catalog.store.cache).mkdir()
    with FileLock(catalog.store.cache / "reindex.lock"):
        assert catalog.index(tmp_path / "more").added == 1
    assert "another process makes the index" in caplog.text
    monkeypatch.setenv("LOOKALIKE_MEMORY", "-5")
    with pytest.raises(UsageError, match="LOOKALIKE_MEMORY is '-5'"):
        catalog.reindex()


def test_what_fits_no_code_is_scanned():
    for rows, memory in ((10**6, 10**10), (10**7, 10**9)):
        for dim, halves in ((12, False), (768, True)):
            assert base.choose(rows, dim, memory, halves=halves)[0] in ("int8", "exact")
    assert base.choose(10**7, 256, 10**9)[0] == "ivf"
    assert base.choose(50_000, 256, 10**9)[0] == "exact"


def test_lance_refuses_odd_dimensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.modules[__name__], "DIM", 12)
    shop = Shop(tmp_path / "c", 20)
    with pytest.raises(UsageError, match="multiple of 8 dimensions"):
        segment.make(shop.store, "ivf", 1 << 30)


@pytest.mark.parametrize("text", ["{", '{"generation": null}', '{"generation": "../.."}', "[]"])
def test_a_damaged_pointer_is_no_pointer(tmp_path: Path, text: str):
    shop = Shop(tmp_path / "c", 20)
    segment.make(shop.store, "exact", 1 << 30)
    (shop.store.cache / "current.json").write_text(text)
    assert segment.latest(shop.store.cache) is None
    assert len(Snapshot(shop.store)) == 20
