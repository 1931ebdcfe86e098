"""Every index against the exact scan: the one contract suite of the kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lookalike.errors import CatalogError, UsageError
from lookalike.indexes import base, exact, ivf
from lookalike.indexes.hnsw import Hnsw

pytest.importorskip("numkong", reason="pip install 'lookalike[hnsw]'")

KINDS = ["exact", "int8", "lsh", "hnsw", "ivf"]
SMALL = {"rerank": {"least": 40, "per_hit": 4}}
"""Far fewer rows than there are: what the index proposes decides."""


def garments(n: int, dim: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors in groups around a mean, some directions wider than others, as photos' are."""
    rng = np.random.default_rng(seed)
    width = 2 / np.sqrt(np.arange(1, dim + 1))
    centres = 0.5 + rng.normal(size=(max(1, n // 50), dim)) * width
    vectors = centres[rng.integers(len(centres), size=n)] + 0.5 * rng.normal(size=(n, dim)) * width
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def queries(vectors: NDArray[np.float32], n: int = 40) -> NDArray[np.float32]:
    rng = np.random.default_rng(9)
    asked = vectors[rng.choice(len(vectors), n)] + 0.05 * rng.normal(size=(n, vectors.shape[1]))
    return (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)


Made = Callable[..., base.Index]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Makes an index of vectors; for ``ivf`` they lie in Lance, in an order of their own."""

    def make(kind: str, vectors: NDArray[np.float32], small: bool = True) -> base.Index:
        if kind == "ivf":
            dataset, addresses = stored(tmp_path / f"{len(list(tmp_path.iterdir()))}.lance", vectors)
            index: base.Index = ivf.build_ivf(dataset, addresses, partition=256)
        else:
            index = base.build(kind, vectors)
        if small and kind != "exact":
            index.settings.update(json.loads(json.dumps(SMALL)))
            index.settings.update(
                {"lsh": {"nearest": 200}, "hnsw": {"looked_at": 60}, "ivf": {"nprobes": 10}}.get(kind, {})
            )
        return index

    return make


def stored(path: Path, vectors: NDArray[np.float32]) -> tuple[Any, NDArray[np.uint64]]:
    """Vectors in two fragments of Lance, shuffled, and the address of each."""
    order = np.random.default_rng(4).permutation(len(vectors))
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[order].ravel()), vectors.shape[1])
    table = pa.table({"row": pa.array(order), "lk_vector": column})
    dataset = lance.write_dataset(table, str(path), max_rows_per_file=max(1, len(vectors) * 2 // 3))
    return dataset, addresses_of(dataset, len(vectors))


def addresses_of(dataset: Any, n: int) -> NDArray[np.uint64]:
    found = dataset.scanner(columns=["row"], with_row_id=True).to_table()
    addresses = np.zeros(n, np.uint64)
    addresses[found["row"].to_numpy()] = found["_rowid"].to_numpy()
    return addresses


def search(index: base.Index, vectors: NDArray[np.float32], *asked: Any) -> Any:
    return base.search(index, getattr(index, "vectors", vectors), *asked)


def right(
    index: base.Index, vectors: NDArray[np.float32], query: NDArray[np.float32], k: int, allowed: object = None
) -> float:
    """Share of the k best that is found; whatever is found must be allowed, once, rightly scored and in order."""
    mask = None if allowed is None else np.asarray(allowed)
    rows, scores = search(index, vectors, query, k, mask)
    truth = exact.scan(vectors, query, mask)
    best = exact.top(truth, k)
    assert len(set(rows.tolist())) == len(rows) <= k
    assert np.allclose(scores, truth[rows], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    assert all(a < b for a, b, same in zip(rows, rows[1:], np.diff(scores) == 0, strict=False) if same)
    if not len(best):
        assert not len(rows)
        return 1.0
    return float(np.count_nonzero(scores >= truth[best[-1]] - 1e-6)) / len(best)


def moved(index: base.Index, vectors: NDArray[np.float32], old: NDArray[np.int64]) -> base.Index:
    """``carried``; for ``ivf``, the rows in Lance are removed and added first, as commits do."""
    if not isinstance(index, ivf.Ivf):
        return index.carried(vectors, old)
    dataset = lance.dataset(index.vectors.dataset.uri)
    was = index.vectors.addresses
    gone = np.setdiff1d(was, was[old[old >= 0]])
    if len(gone):
        dataset.delete(f"_rowid in ({','.join(map(str, gone))})")
    where = np.zeros(len(old), np.uint64)
    where[old >= 0] = was[old[old >= 0]]
    fresh = np.flatnonzero(old < 0)
    if len(fresh):
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[fresh].ravel()), vectors.shape[1])
        dataset.insert(pa.table({"row": pa.array(100_000 + fresh), "lk_vector": column}))
        where[fresh] = addresses_of(dataset, 200_000)[100_000 + fresh]
    return index.carried(ivf.Stored(dataset, where), old)


def tuned(index: base.Index, vectors: NDArray[np.float32], *queries: NDArray[np.float32]) -> base.Index:
    return base.tuned(index, getattr(index, "vectors", vectors), *queries, sample=20 if index.kind == "ivf" else 100)


@pytest.mark.parametrize("kind", KINDS)
def test_of_many_rows_the_best_are_found(kind: str, made: Made):
    vectors = garments(3000)
    index = made(kind, vectors)
    for k in (1, 10, 50):
        assert np.mean([right(index, vectors, q, k) for q in queries(vectors)]) > 0.98
    assert len(index.candidates(vectors[0], 40)) <= 40


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.001, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("gathered", [0, 100])
def test_what_a_filter_leaves_out_is_never_found_and_the_rest_is(kind: str, made: Made, share: float, gathered: int):
    vectors = garments(3000)
    index = made(kind, vectors)
    index.gathered = gathered
    rng = np.random.default_rng(1)
    found = [right(index, vectors, q, 10, rng.random(3000) < share) for q in queries(vectors)]
    assert np.mean(found) > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_that_leaves_only_what_is_far_from_the_query_is_answered_in_full(kind: str, made: Made):
    vectors = garments(3000)
    index = made(kind, vectors)
    index.gathered = 0
    for query in queries(vectors, 10):
        far = np.argsort(vectors @ query)[:300]
        mask = np.zeros(3000, np.bool_)
        mask[far] = True
        assert len(search(index, vectors, query, 10, mask)[0]) == 10


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_small_and_odd_sets_answer_as_the_exact_scan(kind: str, made: Made, data: st.DataObject):
    """Empty, one row, k above the rows, ties, zero vectors, masks of nothing."""
    n = data.draw(st.integers(0, 30))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    vectors = garments(max(1, n), 64, seed)[:n]
    if n and data.draw(st.booleans()):  # duplicates
        vectors = vectors[rng.integers(0, n, size=n)]
    if n and data.draw(st.booleans()):
        vectors[rng.integers(0, n)] = 0
    query = data.draw(st.sampled_from(["zero", "any"]))
    asked = np.zeros(64, np.float32) if query == "zero" else garments(1, 64, seed + 1)[0]
    allowed = data.draw(st.none() | st.floats(0, 1))
    mask = None if allowed is None else rng.random(n) < allowed
    index = made(kind, vectors, False)
    k = data.draw(st.integers(1, 40))
    assert right(index, vectors, asked, k, mask) == 1
    if query == "any":
        rows, _ = search(index, vectors, asked, k, mask)
        assert len(rows) == min(k, n if mask is None else int(mask.sum()))


@pytest.mark.parametrize("kind", KINDS)
def test_more_equal_rows_than_are_scored_are_cut_in_a_fixed_order(kind: str, made: Made):
    vectors = np.repeat(garments(3, 64), 400, axis=0)  # as a shop's "no photo" picture
    index = made(kind, vectors)
    rows, _ = search(index, vectors, vectors[500], 10)
    assert set(rows.tolist()) <= set(range(400, 800))
    if kind != "ivf":
        assert rows.tolist() == list(range(400, 410))


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_two_halves_of_which_one_may_be_missing(kind: str, made: Made):
    photo, words = garments(2000, 64), garments(2000, 64, 1)
    words[::3] = 0  # products without words
    vectors = np.concatenate([photo, words], axis=1)
    nothing = np.zeros((40, 64), np.float32)
    by_photo, by_words = np.c_[queries(photo), nothing], np.c_[nothing, queries(photo)]
    index = tuned(made(kind, vectors), vectors, np.concatenate([by_photo, by_words]))
    for query in (by_photo, by_words, (by_photo + by_words) / 2):
        assert np.mean([right(index, vectors, q, 10) for q in query]) > 0.97


@pytest.mark.parametrize("kind", KINDS)
def test_carried_over_to_other_rows_it_answers_as_one_built_anew(kind: str, made: Made):
    vectors, more = garments(2000), garments(300, seed=5)
    index = made(kind, vectors)
    rng = np.random.default_rng(2)
    old = np.concatenate([rng.permutation(2000)[:1500], np.full(300, -1)])
    rng.shuffle(old)
    now = np.empty((1800, 64), np.float32)
    now[old >= 0] = vectors[old[old >= 0]]
    now[old < 0] = more
    before = search(index, vectors, vectors[7], 10)
    carried, anew = moved(index, now, old), made(kind, now)
    for query in queries(now, 30):
        assert right(carried, now, query, 10) >= right(anew, now, query, 10) - 0.1
    assert np.mean([right(carried, now, q, 10) for q in queries(now)]) > 0.98
    again = moved(carried, now, np.arange(1800))
    assert np.array_equal(search(again, now, now[3], 10)[0], search(carried, now, now[3], 10)[0])
    empty = moved(carried, now[:0], np.empty(0, np.int64))
    assert not len(search(empty, now[:0], now[0], 10)[0])
    # What it was made from is as it was: searches may still go on in it.
    assert np.array_equal(before[0], search(index, vectors, vectors[7], 10)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_mapped_it_answers_the_same(kind: str, made: Made, tmp_path: Path):
    vectors = garments(1000)
    index = tuned(made(kind, vectors), vectors)
    index.save(tmp_path)
    loaded = base.load(kind, tmp_path, getattr(index, "vectors", vectors))
    assert loaded.settings == index.settings
    assert loaded.kind == index.kind == kind
    assert loaded.nbytes > 0
    for query in queries(vectors, 10):
        assert np.array_equal(search(loaded, vectors, query, 10)[0], search(index, vectors, query, 10)[0])
    turned, old = vectors[::-1].copy(), np.arange(1000)[::-1].copy()
    turned[3], old[3] = garments(1, seed=8)[0], -1
    carried = moved(loaded, turned, old)
    assert 3 in search(carried, turned, turned[3], 1)[0]
    assert right(carried, turned, vectors[5], 10) >= 0.9
    assert right(loaded, vectors, vectors[5], 10) >= 0.9


def test_files_of_other_rows_or_damaged_are_refused(tmp_path: Path):
    vectors = garments(100)
    base.build("lsh", vectors).save(tmp_path)
    with pytest.raises(CatalogError, match=r"lsh of 100 rows, not lsh of 99.*reindex"):
        base.load("lsh", tmp_path, vectors[:99])
    (tmp_path / "words.npy").write_bytes(b"")
    with pytest.raises(CatalogError, match="cannot be read"):
        base.load("lsh", tmp_path, vectors)


def test_unknown_kinds_and_settings_are_refused():
    vectors = garments(10)
    with pytest.raises(UsageError, match="exact, int8, lsh"):
        base.build("annoy", vectors)
    with pytest.raises(UsageError, match="bit"):
        base.build("lsh", vectors, {"bit": 3})
    with pytest.raises(UsageError, match="multiple of 64"):
        base.build("lsh", vectors, {"bits": 100})
    with pytest.raises(UsageError, match="at most 64 bits"):
        base.build("lsh", vectors, {"bits": 128, "rotation": "itq"})


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_missing_library_is_named(kind: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("numkong", "usearch", "usearch.index"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    if kind in ("exact", "lsh"):
        assert base.build(kind, garments(10)).kind == kind
    else:
        with pytest.raises(UsageError, match=r"pip install 'lookalike\[hnsw\]'"):
            base.build(kind, garments(10))


@pytest.mark.parametrize("kind", KINDS)
def test_progress_reaches_its_end(kind: str, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    if kind == "ivf":
        ivf.build_ivf(*stored(tmp_path / "a.lance", garments(500)), lambda done, total: seen.append((done, total)))
    else:
        base.build(kind, garments(500), progress=lambda done, total: seen.append((done, total)))
    assert kind == "exact" or seen[-1] == (500, 500)


def test_codes_of_more_bits_and_of_a_learnt_rotation_estimate_better():
    vectors = garments(3000, 128)
    asked = queries(vectors)

    def of(**changes: object) -> float:
        index = base.build("lsh", vectors, changes)
        index.settings.update(nearest=100, rerank={"least": 12, "per_hit": 1})
        return float(np.mean([right(index, vectors, q, 10) for q in asked]))

    assert of(bits=64) < of(bits=128) < of(bits=512)
    assert of(bits=64, rotation="itq") > of(bits=64)


def test_the_estimate_comes_before_the_exact_scores_and_is_better_than_the_distance():
    vectors = garments(3000)
    index = base.build("lsh", vectors, {"bits": 64})
    index.settings["nearest"] = 400
    near = far = 0
    for query in queries(vectors):
        best = set(exact.top(vectors @ query, 20).tolist())
        near += len(best & set(index.candidates(query, 60).tolist()))
        index.settings["nearest"] = 60
        far += len(best & set(index.candidates(query, 60).tolist()))
        index.settings["nearest"] = 400
    assert near > 1.05 * far


def test_a_graph_is_made_anew_once_half_of_what_it_saw_is_gone():
    vectors = garments(400)
    index = base.build("hnsw", vectors)
    assert isinstance(index, Hnsw)
    for turn in range(1, 7):  # each time a quarter is replaced
        old = np.arange(400)
        old[:100] = -1
        vectors = vectors.copy()
        vectors[:100] = garments(100, seed=20 + turn)
        index = index.carried(vectors, old)
        assert len(index.graph) == 400
        assert np.mean([right(index, vectors, q, 10) for q in queries(vectors, 20)]) > 0.93
    assert index.settings["seen"] == 500  # anew after 800, and a quarter since


@pytest.mark.parametrize("kind", KINDS)
def test_searches_go_on_beside_each_other(kind: str, made: Made):
    vectors = garments(2000)
    index = made(kind, vectors)
    asked = queries(vectors, 60)
    alone = [search(index, vectors, q, 10)[0].tolist() for q in asked]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda q: search(index, vectors, q, 10)[0].tolist(), asked)) == alone


# Tuning and choosing


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "exact"])
def test_tuned_takes_the_first_settings_that_reach_the_recall_and_says_what_they_reach(kind: str, made: Made):
    vectors = garments(3000)
    texts = np.random.default_rng(3).normal(size=(50, 64)).astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    alone = tuned(made(kind, vectors), vectors)
    both = tuned(made(kind, vectors), vectors, texts)
    assert alone.settings["recall"].keys() == {"k", "photos"}
    assert alone.settings["recall"]["photos"] >= 0.99
    assert both.settings["recall"]["texts"] >= 0.99
    for name in ("nearest", "looked_at", "nprobes"):  # words need no less than photos
        assert both.settings.get(name, 0) >= alone.settings.get(name, 0)
    assert both.settings["rerank"]["least"] >= alone.settings["rerank"]["least"]
    json.dumps(both.settings)
    found = [right(both, vectors, q, 100) for q in texts]
    assert np.mean(found) > 0.98  # of 100 as of 10


def test_recall_counts_what_is_as_good_and_leaves_the_photo_itself_out():
    vectors = np.repeat(garments(40, 64), 5, axis=0)
    selves = np.arange(0, 200, 7)
    edge = base.edges(vectors, vectors[selves], [4, 5], selves)
    assert np.allclose(edge[:, 0], 1, atol=1e-5)  # four twins each
    assert (edge[:, 1] < 0.99).all()
    index = base.build("exact", vectors)
    assert base.recall(index, vectors, vectors[selves], edge[:, 0], 4, selves) == 1
    index.candidates = lambda query, n, allowed=None: np.arange(100)  # type: ignore[method-assign]
    assert 0.4 < base.recall(index, vectors, vectors[selves], edge[:, 0], 4, selves) < 0.6


def test_edges_are_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch):
    vectors = garments(500)
    asked = vectors[[3, 99, 250]]
    selves = np.array([3, 99, 250])
    whole = base.edges(vectors, asked, [1, 10], selves)
    monkeypatch.setattr(base, "BLOCK", 64)
    assert np.allclose(base.edges(vectors, asked, [1, 10], selves), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("rows", "memory", "local", "kind"),
    [
        (0, 1 << 30, True, "exact"),
        (100_000, 1 << 30, True, "exact"),
        (100_001, 1 << 30, True, "int8"),
        (2_000_000, 4 << 30, True, "int8"),
        (2_000_001, 4 << 30, True, "ivf"),
        (90_000, 1 << 20, True, "ivf"),
        (10_000_000, 8 << 30, True, "ivf"),
        (10_000_000, 8 << 30, False, "ivf"),
    ],
)
def test_the_choice_by_size_and_memory_says_why(rows: int, memory: int, local: bool, kind: str):
    chosen, why = base.choose(rows, 256, memory, local)
    assert chosen == kind
    assert f"{rows:,} vectors of 256" in why


def test_without_the_extra_and_without_words_the_choice_is_another(monkeypatch: pytest.MonkeyPatch):
    assert base.choose(3_000_000, 256, 4 << 30, words=False)[0] == "hnsw"
    assert base.choose(1_000_000, 256, 4 << 30, words=False)[0] == "int8"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert base.choose(1_000_000, 256, 4 << 30)[0] == "ivf"
    assert base.choose(1_000_000, 256, 4 << 30, words=False)[0] == "lsh"
