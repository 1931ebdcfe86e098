"""What a search adds to plain cosines, on drawn catalogs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import lookalike
from conftest import draw, write_csv
from lookalike import feedback, insights
from lookalike.errors import CatalogError, InputError, UsageError
from lookalike.indexes.lexical import Lexical, words_of
from lookalike.search import _Parts
from lookalike.types import Query

ALL = {"where": "", "k": 12}


def ids(hits) -> list[str]:
    return [h.id for h in hits]


@pytest.fixture
def twins(tmp_path: Path) -> lookalike.Catalog:
    """Red shirts, the very same photo three times under two names and a little darker once, and a blue one."""
    rows = []
    for n, (colour, shade) in enumerate([("red", 0), ("red", 0), ("red", 0), ("red", 3), ("blue", 0)]):
        draw(tmp_path / f"{n}.jpg", colour, "shirt", shade)
        rows.append({"id": f"t{n}", "title": f"{colour} shirt", "image": f"{n}.jpg", "colour": colour, "price": 50 - n})
    made = lookalike.open(tmp_path / "twins", encoder="fake")
    made.index(write_csv(tmp_path / "twins.csv", rows))
    return made


def test_pages_fit_together_whatever_shapes_the_order(catalog: lookalike.Catalog):
    for shaped in (
        {},
        {"fold": True},
        {"diversity": 0.5},
        {"fold": True, "diversity": 0.3},
        {"sort": "-price"},
        {"colour": "#c81e28"},
    ):
        whole = ids(catalog.search("red", k=12, **shaped))
        pages = [ids(catalog.search("red", k=5, offset=o, **shaped)) for o in (0, 5, 10)]
        assert [i for page in pages for i in page] == whole, shaped
        assert len(set(whole)) == len(whole)
    assert [catalog.answer(Query(text="red", k=5, offset=o)).more for o in (0, 5, 7, 10)] == [True, True, False, False]
    with pytest.raises(UsageError, match="offset is 9999"):
        catalog.search("red", k=12, offset=9999)


def test_near_duplicates_are_folded_and_none_is_lost(twins: lookalike.Catalog):
    assert ids(twins.search("red", k=5)) == ["t0", "t1", "t2", "t3", "t4"]
    folded = twins.search("red", k=5, fold=True)
    assert ids(folded)[0] == "t0"
    assert {"t1", "t2"} <= {f["id"] for f in folded[0].folded}
    assert sorted([h.id for h in folded] + [f["id"] for h in folded for f in h.folded]) == [
        "t0",
        "t1",
        "t2",
        "t3",
        "t4",
    ]
    assert len(twins.search("red", k=5, fold=True, pure=True)) == 5  # the plain order folds nothing


def test_duplicates_are_grouped(twins: lookalike.Catalog):
    groups = twins.duplicates(0.99999)
    assert [[p["id"] for p in g["products"]] for g in groups] == [["t0", "t1", "t2"]]
    assert groups[0]["score"] == pytest.approx(1)
    assert twins.duplicates(0.99999, where="price < 50") and not twins.duplicates(0.99999, where="price < 49")
    with pytest.raises(UsageError, match=r"0\.9 to 1"):
        twins.duplicates(0.3)
    seen = []
    twins.duplicates(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)


def test_many_duplicates_over_several_blocks_are_all_found(monkeypatch: pytest.MonkeyPatch, twins: lookalike.Catalog):
    whole = twins.duplicates(0.95)
    monkeypatch.setattr(insights, "BLOCK", 2)
    assert twins.duplicates(0.95) == whole


def test_diversity_keeps_hits_apart(twins: lookalike.Catalog):
    assert ids(twins.search("red", k=2)) == ["t0", "t1"]
    assert ids(twins.search("red", k=2, diversity=0.9)) == ["t0", "t4"]


def test_hits_are_ordered_by_a_column(catalog: lookalike.Catalog):
    prices = [h.attributes["price"] for h in catalog.search("red", k=12, sort="price")]
    assert prices == sorted(prices) and len(prices) == 12
    assert [h.attributes["price"] for h in catalog.search("red", k=12, sort="-price")] == prices[::-1]
    with pytest.raises(UsageError, match="no column 'prize'; did you mean 'price'"):
        catalog.search("red", sort="prize")


def test_a_colour_alone_and_beside_words(catalog: lookalike.Catalog):
    assert {h.attributes["colour"] for h in catalog.search(colour="#2850be", k=3)} == {"Blue"}
    assert catalog.search(colour="#2850be", k=1)[0].score > 0.9
    mixed = catalog.search("green", colour="#2850be", k=12)
    plain = catalog.search("green", k=12)
    first = lambda hits: next(n for n, h in enumerate(hits) if h.attributes["colour"] == "Blue")  # noqa: E731
    assert first(mixed) < first(plain)
    assert {h.id: h.score for h in mixed} == {h.id: h.score for h in plain}  # the score stays the cosine
    assert catalog.search("green", colour="#2850be", k=12, weights={"colour": 0}) == plain
    assert mixed[0].colours and mixed[0].colours[0].startswith("#")


def test_votes_move_the_answer_at_once(catalog: lookalike.Catalog):
    before = ids(catalog.search("shirt", k=12))
    up = ids(catalog.search("shirt", k=12, up="p10"))
    assert up.index("p10") < before.index("p10")
    down = ids(catalog.search("shirt", k=12, down=before[0]))
    assert down.index(before[0]) > 0
    assert set(up) == set(down) == set(before)  # nothing is left out
    assert ids(catalog.search("shirt", k=12, up="p10", pure=True)) == before


def test_words_beside_a_photo_are_heard(tmp_path: Path, catalog: lookalike.Catalog):
    """Equal weights pull equally: each part sorts the catalog as strongly as the other."""
    photo = tmp_path / "img" / "1.jpg"  # a blue shirt
    snapshot, encoder = catalog.snapshot(), catalog.encoder
    parts = _Parts(snapshot, encoder, Query(image=photo, text="red"), [], [])
    (_, seen), (_, said) = parts.wanted
    wanted = seen / snapshot.spread(seen) + said / snapshot.spread(said)
    assert np.allclose(parts.vector(), wanted / np.linalg.norm(wanted), atol=1e-5)
    assert snapshot.spread(seen) == pytest.approx((snapshot.vectors @ seen).std(), rel=1e-4)
    pure = _Parts(snapshot, encoder, Query(image=photo, text="red", pure=True), [], []).vector()
    plain = seen + encoder.encode_texts(["red"])[0]
    assert np.allclose(pure, plain / np.linalg.norm(plain), atol=1e-5)
    assert ids(catalog.search("red", image=photo, k=4, weights={"text": 0})) == ids(catalog.search(image=photo, k=4))
    only = ids(catalog.search("red", image=photo, k=4, weights={"photo": 0}))
    assert {catalog.product(i)["attributes"]["colour"] for i in only[:3]} == {"Red"}


def test_what_words_change_is_taken_from_the_other_values(catalog: lookalike.Catalog):
    snapshot, encoder = catalog.snapshot(), catalog.encoder
    vector = encoder.encode_texts(["in red"])[0]
    parts = _Parts(snapshot, encoder, Query(text="in red", like=["p01"]), [1], [])
    others = encoder.encode_texts([f"in {c.lower()}" for c in snapshot.values["colour"] if c != "Red"]).mean(0)
    wanted = (vector - others) / np.linalg.norm(vector - others)
    assert np.allclose(parts.wanted[-1][1], wanted, atol=1e-5)
    unnamed = _Parts(snapshot, encoder, Query(text="in mauve", like=["p01"]), [1], [])
    assert np.allclose(unnamed.wanted[-1][1], encoder.encode_texts(["in mauve"])[0])


def test_the_longest_name_in_a_text_wins(tmp_path: Path):
    rows = [{"image": "a.jpg", "id": "1", "colour": "Navy Blue"}, {"image": "b.jpg", "id": "2", "colour": "Blue"},
            {"image": "c.jpg", "id": "3", "colour": "Red"}]  # fmt: skip
    for row in rows:
        draw(tmp_path / row["image"], "blue", "shirt")
    made = lookalike.open(tmp_path / "c", encoder="fake")
    made.index(write_csv(tmp_path / "c.csv", rows))
    assert made.snapshot().mentions("a navy-blue shirt") == {}
    assert made.snapshot().mentions("a Navy Blue shirt") == {"colour": ("Navy Blue", 1, 2)}
    assert made.snapshot().mentions("blues") == {"colour": ("Blue", 0, 1)}


def test_why_a_hit_is_alike_is_told_in_words(tmp_path: Path, catalog: lookalike.Catalog):
    def told(hit) -> dict[str, tuple[object, object, bool]]:
        return {r.column: (r.asked, r.has, r.agrees) for r in hit.why}

    liked = catalog.search(like="p00", k=11)
    for hit in liked:
        has = hit.attributes
        assert told(hit)["colour"] == ("Red", has["colour"], has["colour"] == "Red")
        assert told(hit)["gender"] == ("Men", has["gender"], has["gender"] == "Men")
    assert told(catalog.search("something blue", k=1)[0])["colour"][0] == "Blue"
    both = catalog.search("but in green", image=tmp_path / "img" / "0.jpg", k=1)[0]
    assert told(both)["colour"][0] == "Green"  # the words come before the photo
    assert catalog.search("red", pure=True, k=1)[0].why == []


def test_patterns_are_read_from_titles():
    assert insights.pattern_of("Blue Striped Shirt") == "striped"
    assert insights.pattern_of("Nike shoe") is None
    assert insights.pattern_of("Checks casual shirt") == "checked"


def test_tags_are_votes_of_the_nearest(tmp_path: Path, catalog: lookalike.Catalog):
    found = catalog.tag(tmp_path / "img" / "0.jpg")
    colour = next(t for t in found["tags"] if t["column"] == "colour")
    assert colour["role"] == "colour" and colour["values"][0]["value"] == "Red"
    for tag in found["tags"]:
        shares = [v["confidence"] for v in tag["values"]]
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1.005
    assert found["box"] and found["colours"][0]["share"] > 0.5
    empty = lookalike.open(tmp_path / "none", encoder="fake").tag(tmp_path / "img" / "0.jpg")
    assert empty["tags"] == [] and empty["colours"]


def test_slips_in_names_are_mended_for_word_matching(catalog: lookalike.Catalog):
    answer = catalog.answer(Query(text="shrit", lexical=0.5))
    assert answer.corrected == {"shrit": "shirt"}
    assert "shirt" in answer.hits[0].title
    assert catalog.answer(Query(text="shrit")).corrected == {}  # no word matching, nothing mended
    assert catalog.answer(Query(text="shirts", lexical=0.5)).corrected == {}


def test_a_typed_id_finds_its_product_first(catalog: lookalike.Catalog):
    for wanted in ("p00", "p07", "p11"):
        assert ids(catalog.search(wanted, k=3, lexical=0.3))[0] == wanted


@pytest.mark.parametrize(
    ("slip", "word"),
    [("nkie", "nike"), ("nikee", "nike"), ("nik", None), ("nice", "nike"), ("puma", None), ("xyzzy", None)],
)
def test_one_slip_is_mended_and_more_are_not(slip: str, word: str | None):
    assert Lexical(["Nike shoes", "Nike shirts", "Puma shoe", "Puma shoes", "Bata"]).correct(slip) == word
    assert Lexical(["Nike", "Puma", "Puma"]).correct("nkie") is None  # known from one text alone


def test_words_are_compared_in_the_singular_and_without_hyphens():
    assert words_of("T-shirts for Babies, 3 dresses") == ("tshirt", "for", "baby", "3", "dress")


def test_a_catalog_from_before_colours_gets_them_at_the_next_index(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
):
    from lookalike import indexing, store

    old = store.schema

    def before(dim: int):
        return old(dim).remove(old(dim).get_field_index("lk_colours"))

    with monkeypatch.context() as patch:
        patch.setattr(store, "schema", before)
        patch.setattr(indexing, "schema", before)
        made = lookalike.open(tmp_path / "old", encoder="fake")
        made.index(table)
    assert "lk_colours" not in made.store.columns()
    assert made.search("red", k=1)[0].colours == []
    with pytest.raises(UsageError, match="run index again"):
        made.search(colour="#ff0000")
    report = made.index(table)
    assert (report.added, report.unchanged) == (0, 13)
    assert made.search(colour="#c81e28", k=1)[0].attributes["colour"] == "Red"
    assert made.index(table).unchanged == 13 and made.verify()["damaged"] == []


def test_votes_are_kept_without_who_and_what_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    query = {"text": "red", "like": "p01", "image": "AAAA", "where": "price < 5", "ip": "10.0.0.1"}
    feedback.keep(tmp_path, feedback.vote("p00", "up", query))
    feedback.keep(tmp_path, feedback.vote("p02", "down", {}))
    feedback.keep(tmp_path, feedback.vote("p03", "up", {"text": "x"}))
    feedback.keep(tmp_path, feedback.vote("p03", "none", {"text": "x"}))
    line = (tmp_path / "feedback.jsonl").read_text().splitlines()[0]
    assert "AAAA" not in line and "10.0.0.1" not in line
    assert json.loads(line)["time"] % 60 == 0
    kept = feedback.read(tmp_path)
    assert [(v.product, v.vote, v.text, v.photo) for v in kept] == [
        ("p00", "up", "red", True),
        ("p02", "down", "", False),
    ]
    with (tmp_path / "feedback.jsonl").open("a") as file:
        file.write('{"product": "half')  # a server that died while writing
    assert feedback.read(tmp_path) == kept
    later = feedback.vote("p04", "up", {})
    feedback.keep(tmp_path, later)
    assert feedback.read(tmp_path) == [*kept, later]
    with (tmp_path / "feedback.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match="line 7"):
        feedback.read(tmp_path)
    assert feedback.read(tmp_path / "none") == []
    monkeypatch.setenv("LOOKALIKE_FEEDBACK", "off")
    assert not feedback.wanted()


@pytest.mark.parametrize("text", ["\ud800" * 9_999, "\ud800" * 1_000_000, "x" * 1_000_000])
def test_messages_about_huge_texts_stay_short(twins: lookalike.Catalog, text: str):
    for query in (Query(text=text), Query(text="red", not_text=[text]), Query(like=[text])):
        with pytest.raises(UsageError) as caught:
            twins.answer(query)
        assert len(str(caught.value)) < 600


def test_a_vote_that_the_disk_has_no_room_for_is_told_and_leaves_nothing(tmp_path: Path):
    resource = pytest.importorskip("resource")
    feedback.keep(tmp_path, feedback.vote("p00", "up", {}))
    before = (tmp_path / "feedback.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))  # the system then writes these ten alone
    try:
        with pytest.raises(CatalogError, match=r"feedback\.jsonl: the vote cannot be kept \(No space"):
            feedback.keep(tmp_path, feedback.vote("p01", "up", {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "feedback.jsonl").read_bytes() == before
