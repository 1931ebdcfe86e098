"""Metrics by hand and against slow oracles; the KAGL protocol on a catalog small enough to count."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lookalike
from conftest import COLOURS, KINDS, draw, write_csv
from lookalike import encoders
from lookalike.cli import app
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import calibration, everyday, kagl, metrics, protocol, street
from lookalike.evaluation.report import write
from lookalike.sources.street import street_photos

R = np.array([[True, False, True], [False, False, False], [False, True, True]])


def test_metrics_by_hand():
    assert metrics.precision(R, 1).tolist() == [1, 0, 0]
    assert metrics.precision(R, 2).tolist() == [0.5, 0, 0.5]
    assert metrics.recall(R, np.array([4, 1, 2]), 3).tolist() == [0.5, 0, 1]
    assert metrics.reciprocal_rank(R).tolist() == [1, 0, 0.5]
    assert metrics.reciprocal_rank(R, 1).tolist() == [1, 0, 0]


def test_the_interval_holds_the_mean_and_narrows_with_more_queries():
    rng = np.random.default_rng(0)
    few, many = rng.random(50), rng.random(5000)
    for values in (few, many):
        low, high = metrics.interval(values)
        assert low < values.mean() < high
    width = [high - low for low, high in map(metrics.interval, (few, many))]
    assert width[1] < width[0] / 5


def test_ranked_against_a_full_sort():
    rng = np.random.default_rng(1)
    vectors, queries = rng.normal(size=(300, 8)).astype(np.float32), rng.normal(size=(70, 8)).astype(np.float32)
    oracle = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    assert np.array_equal(metrics.ranked(vectors, queries, 10), oracle)


@pytest.fixture
def kaggle(tmp_path: Path) -> lookalike.Catalog:
    """Twelve products in Kaggle's columns: 0, 4 and 8 are red."""
    rows = []
    for n, (kind, colour) in enumerate((k, c) for k in KINDS for c in COLOURS):
        draw(tmp_path / "images" / f"{n}.jpg", colour, kind)
        rows.append(
            {
                "id": n,
                "gender": "Men",
                "articleType": kind,
                "baseColour": colour,
                "productDisplayName": f"{colour} {kind}",
            }
        )
    write_csv(tmp_path / "styles.csv", rows)
    made = lookalike.open(tmp_path / "c", encoder="fake")
    made.index(tmp_path)
    return made


def table_of(report: dict, name: str) -> dict:
    return next(t for t in report["tables"] if t["name"].startswith(name))


def test_kagl_on_a_small_catalog(tmp_path: Path, kaggle: lookalike.Catalog):
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "text-image.json").write_text(json.dumps({"red": {"0": 1, "4": 1, "8": 1}, "blue": {"1": 1}}))
    (truth / "baseColour-image+text.json").write_text(json.dumps({"red": {"0": 1, "4": 1, "8": 1}}))
    snapshot = kaggle.snapshot()
    report = kagl.evaluate(snapshot, kaggle.encoder, truth, [encoders.load("colour-histogram")])
    ranked = {
        q: [snapshot.ids[n] for n in np.argsort(-snapshot.vectors @ kaggle.encoder.encode_texts([q])[0])]
        for q in ("red", "blue")
    }
    text = table_of(report, "text → photo")["rows"]["fake-1"]
    assert text["R@1"]["mean"] == pytest.approx(
        (len({ranked["red"][0]} & {"0", "4", "8"}) / 3 + (ranked["blue"][0] == "1")) / 2, abs=1e-4
    )
    ten = len({"0", "4", "8"} & set(ranked["red"][:10])) / 3 + ("1" in ranked["blue"][:10])
    assert text["R@10"]["mean"] == pytest.approx(ten / 2, abs=1e-4)
    assert table_of(report, "colour")["rows"]["fake-1"]["P@1"]["mean"] == 1
    photos = table_of(report, "photo")
    assert photos["queries"] == 4
    assert set(photos["rows"]) == {"fake-1", "colour-histogram-1"}
    # Of the ten nearest among eleven others: three of four of one's type, at most two of one's colour.
    assert 0.2 <= photos["rows"]["fake-1"]["type P@10"]["mean"] <= 0.3
    assert photos["rows"]["fake-1"]["colour P@10"]["mean"] <= 0.2
    assert all(sum(shares) == pytest.approx(1, abs=0.01) for shares in report["confusion"]["shares"])

    page = tmp_path / "report.html"
    command = ["evaluate", "kagl", "--catalog", str(kaggle.store.directory), "--ground-truth", str(truth)]
    printed = CliRunner().invoke(app, [*command, "--report", str(page)])
    assert printed.exit_code == 0, printed.output
    assert "text → photo (2 queries; mean [95% interval])" in printed.output
    assert f"fake-1: AvgRecall {text['AvgRecall']['mean']:.3f} [" in printed.output
    html = page.read_text()
    assert html.count("<figure") == 2 * 6
    assert "<polyline" in html
    assert not re.search(r"(src|href)=.(?!data:)", html)  # self-contained
    anew = [*command[:3], str(tmp_path / "new"), *command[4:], "--data", str(tmp_path), "--encoder", "colour-histogram"]
    printed = CliRunner().invoke(app, [*anew, "--json"])
    assert printed.exit_code == 0, printed.output
    assert [t["name"] for t in json.loads(printed.stdout)["tables"]] == ["photo → photo, held-out products"]


def test_kagl_on_what_it_is_not_for(tmp_path: Path, kaggle: lookalike.Catalog, catalog: lookalike.Catalog):
    truth = tmp_path / "truth"
    truth.mkdir()
    with pytest.raises(InputError, match=r"no text-image\.json"):
        kagl.evaluate(kaggle.snapshot(), kaggle.encoder, truth)
    (truth / "text-image.json").write_text(json.dumps({"red": {"nowhere": 1}}))
    with pytest.raises(InputError, match="index the whole data set first"):
        kagl.evaluate(kaggle.snapshot(), kaggle.encoder, truth)
    with pytest.raises(InputError, match="no column articleType"):
        kagl.evaluate(catalog.snapshot(), catalog.encoder, truth)


def test_everyday_words_on_a_small_catalog(tmp_path: Path, kaggle: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    asked = [
        {"query": "red", "want": {"baseColour": ["red"]}, "english": "general", "kind": "word", "half": "open"},
        {"query": "blue", "want": {"baseColour": ["blue"], "articleType": ["bag"]}, "english": "british", "kind": "word",
         "half": "open"},
        {"query": "green", "want": {"baseColour": ["green"]}, "english": "general", "kind": "word", "half": "unseen"},
    ]  # fmt: skip
    monkeypatch.setattr(everyday, "LIST", tmp_path / "list.json")
    everyday.LIST.write_text(json.dumps(asked))
    report = everyday.evaluate(kaggle.snapshot(), kaggle.encoder)
    assert {t["name"]: t["queries"] for t in report["tables"]} == {"all": 2, "word": 2, "british": 1, "general": 1}
    # Ten of twelve products are found: all three red ones, and the one blue bag.
    assert table_of(report, "general")["rows"]["fake-1"]["P@10"]["mean"] == pytest.approx(0.3)
    assert table_of(report, "british")["rows"]["fake-1"]["P@10"]["mean"] == pytest.approx(0.1)
    assert [q["query"] for q in everyday.queries("unseen")] == ["green"]
    with pytest.raises(UsageError, match="choose open, unseen or all"):
        everyday.queries("some")


def test_the_list_of_everyday_words_is_what_it_says(data: Path):
    """Each query's own word stands in no title, and each wish can be granted."""
    import csv
    import io
    import zipfile

    with zipfile.ZipFile(data / "fashion-product-images-small.zip") as archive:
        name = next(n for n in archive.namelist() if n.endswith("styles.csv"))
        products = list(csv.DictReader(io.StringIO(archive.read(name).decode())))
    words = {w for p in products for w in re.findall(r"[a-z0-9'-]+", p["productDisplayName"].lower())}
    asked = everyday.queries("all")
    assert len(asked) >= 150
    assert len({q["query"] for q in asked}) == len(asked)
    for q in asked:
        granted = sum(all(p[c] in values for c, values in q["want"].items()) for p in products)
        assert granted >= 20, q
        if q["kind"] != "description":
            assert q["word"] not in words, q


def test_photos_by_people_are_measured_on_some_senders_only(tmp_path: Path):
    lines = ["image,sender_id,label,kids"]
    for n in range(80):
        draw(tmp_path / "images" / f"s{n}.jpg", list(COLOURS)[n // 4 % 4], "dress", n % 4)
        lines.append(f"s{n},{n // 4},{('T-Shirt', 'Dress', 'Hat', 'Skirt')[n // 4 % 4]},False")
    (tmp_path / "images.csv").write_text("\n".join(lines) + "\n")
    files, _, test = street_photos(tmp_path)
    report = street.evaluate(encoders.load("fake"), tmp_path, [encoders.load("colour-histogram")])
    photos = table_of(report, "photo")
    assert photos["queries"] == test.sum() < len(files)
    # Each kind is of one colour here, which both see.
    assert all(row["same kind P@10"]["mean"] > 0.5 for row in photos["rows"].values())
    zero_shot = table_of(report, "kind by words")["rows"]
    assert set(zero_shot) == {"fake-1", "always the largest kind"}
    printed = CliRunner().invoke(app, ["evaluate", "street", "--data", str(tmp_path), "--encoder", "fake"])
    assert printed.exit_code == 0, printed.output
    assert "same kind P@10" in printed.output
    page = tmp_path / "street.html"
    write(report, page)
    assert page.read_text().split('class="confusion"')[1].count("<tr>") == 1 + len(report["confusion"]["rows"]) < 10
    with pytest.raises(InputError, match=r"no images\.csv here"):
        street.evaluate(encoders.load("fake"), tmp_path / "images")


def test_colour_histograms_are_unit_and_tell_colours_apart(catalog: lookalike.Catalog):
    histogram = encoders.load("colour-histogram")
    vectors = protocol.encode_files(histogram, catalog.snapshot().paths)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[5] > vectors[0] @ vectors[2]  # red and red, red and blue (the first has two photos)
    with pytest.raises(UsageError, match="reads photos only"):
        histogram.encode_texts(["red"])


def test_mobilenet_features_from_a_tflite_file(data: Path, catalog: lookalike.Catalog, tmp_path: Path):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert (extra train)")
    mobilenet = encoders.load(str(data / "weights" / "mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"))
    assert (mobilenet.dim, mobilenet.size) == (1024, (224, 224))
    vectors = protocol.encode_files(mobilenet, catalog.snapshot().paths[:6])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[5]  # two red shirts, and a red dress


def test_a_tflite_file_that_is_none_is_told(tmp_path: Path):
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert (extra train)")
    (tmp_path / "x.tflite").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"x\.tflite: cannot be run"):
        encoders.load(str(tmp_path / "x.tflite"))


def test_a_rising_curve_pools_what_falls():
    cosines = np.array([0.1, 0.2, 0.3, 0.4])
    assert calibration.rising(cosines, np.array([0.0, 0.5, 0.25, 1.0]), 4) == [(0.1, 0.0), (0.25, 37.5), (0.4, 100.0)]
    rng = np.random.default_rng(0)
    cosines = rng.random(2000)
    curve = calibration.rising(cosines, (rng.random(2000) < cosines).astype(float))
    assert [y for _, y in curve] == sorted(y for _, y in curve)
    assert all(abs(100 * x - y) < 20 for x, y in curve)


def test_pairs_against_a_slow_oracle():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = rng.choice(["a", "b", ""], (40, 3)).astype(object)
    own = np.arange(40)
    cosines, agreement = calibration.pairs(vectors, vectors, known, known, own)
    possible: dict[float, set[float]] = {}  # of a pair both ways round: what is missing differs
    for q in range(40):
        said = [i for i in range(3) if known[q, i]]
        for n in range(40):
            if n != q and said:
                share = sum(known[n, i] == known[q, i] for i in said) / len(said)
                possible.setdefault(round(float(vectors[q] @ vectors[n]), 4), set()).add(share)
    assert len(cosines) > 700
    assert all(a in possible[round(c, 4)] for c, a in zip(cosines, agreement, strict=True))
    assert len(set(agreement)) > 2
    assert np.allclose(
        calibration.best(vectors, vectors, own), (vectors @ vectors.T - 3 * np.eye(40)).max(1), atol=1e-5
    )


def test_a_calibrated_encoder_says_how_alike_and_when_nothing_is(tmp_path: Path, kaggle: lookalike.Catalog):
    encoder = kaggle.encoder
    snapshot = kaggle.snapshot()
    attributes = np.array(
        [snapshot.attributes[c].to_pylist() for c in ("articleType", "baseColour", "gender")], object
    ).T
    scale = calibration.fit(snapshot.vectors, attributes, encoder)
    encoder.calibration = scale  # type: ignore[attr-defined]
    assert scale.alike("photo", 1.0) == 100
    assert scale.alike("mixed", 1.0) is None
    same = kaggle.answer(lookalike.Query(image=snapshot.paths[0]))
    assert (same.hits[0].alike, same.no_good_match) == (100, False)
    assert [h.alike for h in same.hits] == sorted((h.alike for h in same.hits), reverse=True)  # type: ignore[type-var]
    assert same.hits[0].to_json()["alike"] == 100
    assert kaggle.answer(lookalike.Query(text="red", like=("1",))).hits[0].alike is None
    assert kaggle.answer(lookalike.Query(like=("1", "2"))).hits[0].alike is None
    assert kaggle.answer(lookalike.Query(like=("1",))).hits[0].alike is not None
    far = calibration.Calibration(scale.curves, {"text": 0.99, "photo": 1.1})
    encoder.calibration = far  # type: ignore[attr-defined]
    assert kaggle.answer(lookalike.Query(text="zebra")).no_good_match
    assert not kaggle.answer(lookalike.Query(text="red dress", lexical=0.3)).no_good_match  # a title says so
    assert kaggle.answer(lookalike.Query(text="wild zebra dress", lexical=0.3)).no_good_match  # one word of three
    blue = lookalike.Query(text="red dress", lexical=0.3, where="baseColour = 'blue'")
    assert kaggle.answer(blue).no_good_match  # what says so is filtered out
    assert not kaggle.answer(lookalike.Query(text="zebra", not_text=("red",))).no_good_match

    (tmp_path / "text-image.json").write_text(json.dumps({"red": {str(n): 1 for n in range(12)}}))
    encoder.calibration = scale  # type: ignore[attr-defined]
    report = calibration.evaluate(snapshot, encoder, kagl.held_out(tmp_path))
    photo = table_of(report, "photo queries")["rows"]["fake-1"]
    assert 0 <= photo["calibration error"]["mean"] < 0.2  # on what it was fitted to
    assert photo["told that nothing is like it"]["mean"] < 0.2
    with pytest.raises(UsageError, match="not calibrated"):
        calibration.evaluate(snapshot, encoders.load("fake"), ["0"])
    with pytest.raises(InputError, match=r"no text-image\.json"):
        kagl.held_out(tmp_path / "images")


def test_curves_of_a_report_keep_to_their_axis(tmp_path: Path):
    curves = [
        {"name": "photo", "figure": "share", "points": [[15, 0.1], [25, 0.2], [95, 0.9]]},
        {"name": "text", "figure": "share", "points": [[25, 0.2], [35, 0.3], [95, 0.9]]},
    ]
    write({"title": "T", "encoder": "e", "tables": [], "curves": curves}, tmp_path / "r.html")
    first, second = re.findall(r'points="([^"]*)"', (tmp_path / "r.html").read_text())
    assert first.split()[1:2] == second.split()[:1]  # 25 is at one place
    assert first.split()[-1] == second.split()[-1]
    with pytest.raises(InputError, match="the report cannot be written"):
        write({"title": "T", "encoder": "e", "tables": []}, tmp_path / "nowhere" / "r.html")


def test_neighbours_leave_out_the_row_itself_among_equals():
    vectors = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    found = metrics.neighbours(vectors, np.array([0, 1, 2]), 2)
    assert [sorted(f) for f in found.tolist()] == [[1, 2], [0, 2], [0, 1]]


def test_data_is_not_measured_within_somebodys_own_catalog(tmp_path: Path, catalog: lookalike.Catalog, folder: Path):
    command = ["evaluate", "everyday", "--data", str(folder), "--catalog", str(catalog.store.directory)]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UsageError)
    assert "measure in a catalog of its own" in str(done.exception)
