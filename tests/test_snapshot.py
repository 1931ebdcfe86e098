"""The exact search against a slow oracle, filters, facets, products of several photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lookalike
from lookalike import where
from lookalike.errors import CatalogError, NotFound, UsageError
from lookalike.indexes import exact
from lookalike.indexes.lexical import Lexical
from lookalike.snapshot import MASKS
from lookalike.types import Product


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-3, 3) | st.none(), max_size=30), st.integers(0, 12))
def test_top_is_a_stable_sort_without_what_is_masked(values: list[int | None], k: int):
    scores = np.array([-np.inf if v is None else v for v in values], np.float32)
    oracle = sorted((n for n, v in enumerate(values) if v is not None), key=lambda n: (-scores[n], n))[:k]
    assert exact.top(scores, k).tolist() == oracle


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2, 0.6, 1.0])
def test_scan_under_a_mask_is_the_plain_product_there_and_nothing_elsewhere(share: float):
    rng = np.random.default_rng(0)
    vectors, query = rng.normal(size=(500, 16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    mask = rng.random(500) < share
    scores = exact.scan(vectors, query, mask)
    assert np.allclose(scores[mask], (vectors @ query)[mask], atol=1e-5)
    assert np.isneginf(scores[~mask]).all()


def test_a_product_stands_once_with_its_best_photo(tmp_path: Path, catalog: lookalike.Catalog):
    second = tmp_path / "img" / "0b.jpg"
    hits = catalog.search(image=second, k=100)
    assert [h.id for h in hits].count("p00") == 1
    assert len(hits) == 12
    assert hits[0].id == "p00"
    assert hits[0].path == str(second)
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_search_against_an_oracle_over_photos(catalog: lookalike.Catalog):
    snapshot, query = catalog.snapshot(), catalog.encoder.encode_texts(["red shirt"])[0]
    scores = snapshot.vectors @ query
    best = {i: max(float(scores[r]) for r in snapshot.rows(n)) for n, i in enumerate(snapshot.ids)}
    oracle = sorted(best, key=lambda i: (-best[i], i))
    assert [h.id for h in catalog.search("red shirt", k=12)] == oracle
    women = [i for i in oracle if snapshot.attributes_of([snapshot.product(i)])[0]["gender"] == "Women"]
    assert [h.id for h in catalog.search("red shirt", where="gender = 'women'", k=12)] == women


def test_filters_by_own_names_and_by_roles(catalog: lookalike.Catalog):
    def ids(expression: str) -> list[str]:
        return sorted(h.id for h in catalog.search("red", where=expression, k=100))

    assert ids("sku = 'p03'") == ids("id = 'p03'") == ["p03"]
    assert ids("name like 'red%'") == ids("title like 'red%'") == ["p00", "p04", "p08"]
    assert ids("price between 15 and 21 and new = false") == ["p01", "p02"]
    assert ids("ean = '007'") == ["p07"]
    assert ids("price > 1000") == []
    with pytest.raises(UsageError, match=r"no column 'colur'; did you mean 'colour'\? columns: .*price"):
        ids("colur = 'Red'")
    with pytest.raises(UsageError, match="price"):
        ids("price < 'cheap'")


def test_facets_count_products_and_leave_out_a_columns_own_conditions(catalog: lookalike.Catalog):
    snapshot = catalog.snapshot()
    facets = {f["column"]: f for f in snapshot.facets(where.parse("colour = 'Red' and gender = 'Men'"))}
    assert facets["gender"]["values"] == [{"value": "Men", "count": 3}]  # all red ones are for men
    assert {v["value"]: v["count"] for v in facets["colour"]["values"]} == {"Red": 3, "Green": 3}
    bins = facets["price"]["bins"]
    assert facets["price"] == {"column": "price", "kind": "range", "min": 10, "max": 54, "bins": bins}
    assert (bins[0]["from"], bins[-1]["to"], sum(b["count"] for b in bins)) == (10, 54, 3)
    assert [f["column"] for f in snapshot.facets()] == ["colour", "gender", "price", "new", "ean"]
    counts = {f["column"]: f for f in snapshot.facets()}
    assert counts["gender"]["values"] == [{"value": "Men", "count": 6}, {"value": "Women", "count": 6}]


def test_like_leaves_the_product_itself_out_and_several_are_a_mean(catalog: lookalike.Catalog):
    assert "p00" not in [h.id for h in catalog.search(like="p00", k=100)]
    hits = catalog.search(like=["p00", "p04"], k=3)
    assert hits[0].id == "p08"  # the third red one
    with pytest.raises(NotFound, match="no product 'nope'"):
        catalog.search(like="nope")


def test_photo_and_words_together_and_not(tmp_path: Path, catalog: lookalike.Catalog):
    photo = tmp_path / "img" / "1.jpg"  # the blue shirt
    assert catalog.search(image=photo)[0].title == "blue shirt"
    both = catalog.search("red", image=photo, weights={"text": 3.0})[0]
    assert both.title.startswith("red")
    without = catalog.search(image=photo, not_text="blue", k=12)
    with_blue = catalog.search(image=photo, k=12)
    rank = {h.id: n for n, h in enumerate(without)}
    assert rank["p05"] > {h.id: n for n, h in enumerate(with_blue)}["p05"]  # the blue dress went down
    assert catalog.search(not_text="red")[-1].title.startswith("red")


def test_crop_searches_a_part(tmp_path: Path, catalog: lookalike.Catalog):
    whole = catalog.search(image=tmp_path / "img" / "8.jpg", k=1)[0]
    assert whole.score == pytest.approx(1, abs=1e-5)
    part = catalog.search(image=tmp_path / "img" / "8.jpg", crop=[0.3, 0.4, 0.7, 0.8], k=1)[0]
    assert part.score < 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to search for"),
        ({"text": "  "}, "nothing to search for"),
        ({"text": "red", "k": 0}, "k is 0; it is a whole number from 1 to 1000"),
        ({"text": "red", "k": 1001}, "k is 1001"),
        ({"text": "x" * 20000}, "20000 characters"),
        ({"text": "red", "lexical": 2}, "lexical is 2"),
        ({"text": "red", "weights": {"words": 1}}, "weights has 'words'"),
        ({"text": "red", "weights": {"text": -1}}, "weights: text is -1"),
        ({"text": "red", "crop": [0, 0, 1, 1]}, "crop without an image"),
        ({"text": "red", "where": "price <"}, "price <"),
        ({"text": "red", "not_text": "red", "weights": {"text": 0.5}}, "cancel each other out"),
    ],
)
def test_queries_that_cannot_be_answered(catalog: lookalike.Catalog, arguments: dict[str, object], message: str):
    with pytest.raises(UsageError) as caught:
        catalog.search(**arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_a_newer_version_is_seen_and_the_old_snapshot_stays_whole(catalog: lookalike.Catalog):
    old = catalog.snapshot()
    catalog.remove("p00")
    assert len(old) == 12
    assert len(catalog.snapshot(refresh=False)) == 12
    assert len(catalog.snapshot()) == 11
    assert old.product("p00") == 0


def test_a_version_that_is_cleaned_up_before_it_is_read_is_passed_over(
    catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    """By a writer whose clock is ahead. Where the latest version itself cannot be read, that is told."""
    other, real, gone = lookalike.open(catalog.store.directory), type(catalog.store).dataset, ["p00", "p01"]
    catalog.snapshot()

    def dataset(store: object, version: int = 0) -> object:
        if gone and store is catalog.store:
            other.remove(gone.pop())
            raise CatalogError("the version that was being read has been cleaned up meanwhile; try again")
        return real(store, version)

    other.remove("p02")
    monkeypatch.setattr(type(catalog.store), "dataset", dataset)
    assert len(catalog.snapshot()) == 9
    other.remove("p03")
    monkeypatch.setattr(type(catalog.store), "dataset", lambda *a: (_ for _ in ()).throw(CatalogError("damaged")))
    with pytest.raises(CatalogError, match="damaged"):
        catalog.snapshot()


def test_an_empty_catalog_answers_nothing(tmp_path: Path, catalog: lookalike.Catalog):
    catalog.remove(*catalog.snapshot().ids)
    assert catalog.search("red") == ()
    assert catalog.snapshot().facets() == []
    assert lookalike.open(tmp_path / "none", encoder="fake").search("red") == ()


def test_vectors_of_another_encoder_are_never_searched(catalog: lookalike.Catalog):
    text = (catalog.store.directory / "catalog.json").read_text()
    (catalog.store.directory / "catalog.json").write_text(text.replace('"fake-1"', '"fake-2"'))
    with pytest.raises(CatalogError, match=r"made by fake-1, its catalog\.json says fake-2"):
        lookalike.open(catalog.store.directory).snapshot()


def test_word_matching_by_hand():
    """BM25 of two one-word hits in three texts: the shorter text is first, the third has none."""
    lexical = Lexical(["puma shoe", "puma shoe for running far", "red bag"])
    scores = lexical.scores("PUMA")
    assert scores[0] == 1
    assert 0 < scores[1] < 1
    assert scores[2] == 0
    length = {2: 1.2 * (1 - 0.75 + 0.75 * 2 / 3), 5: 1.2 * (1 - 0.75 + 0.75 * 5 / 3)}
    assert scores[1] == pytest.approx((1 + length[2]) / (1 + length[5]), rel=1e-5)
    assert not lexical.scores("nothing").any()


def test_lexical_finds_a_code_that_vectors_do_not(catalog: lookalike.Catalog):
    assert catalog.search("p07", lexical=0.9, k=1)[0].id == "p07"


def test_ties_are_ordered_by_id(tmp_path: Path, table: Path):
    photo = table.parent / "img" / "0.jpg"
    catalog = lookalike.open(tmp_path / "ties", encoder="fake")
    catalog.index([Product(i, [photo]) for i in ("b", "a", "d", "c")])
    assert [h.id for h in catalog.search("red", k=3)] == ["a", "b", "c"]


def test_masks_are_kept_and_do_not_mix(catalog: lookalike.Catalog):
    snapshot = catalog.snapshot()
    for _ in range(2):
        for n in range(MASKS + 3):
            mask = snapshot.mask(where.parse(f"price > {n}"))
            assert mask is not None
            assert mask.sum() == sum(p > n for p in (10 + i * 5.5 for i in range(12)))
    assert snapshot.mask(where.parse("new = true")) is snapshot.mask(where.parse("new = true"))
    with pytest.raises(UsageError, match="true/false, not numbers"):
        snapshot.mask(where.parse("new = 1"))
    with pytest.raises(ValueError, match="read-only"):
        snapshot.mask(where.parse("new = true"))[:] = False  # type: ignore[index]
