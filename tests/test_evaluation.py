"""Metrics by hand and against slow oracles; the KAGL protocol on a catalog small enough to count."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lookalike
from conftest import COLOURS, KINDS, draw, write_csv
from lookalike import encoders
from lookalike.cli import app
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import bench_encode, calibration, compare, everyday, inshop, kagl, metrics, protocol, street
from lookalike.evaluation import catalog as leave
from lookalike.evaluation.report import write
from lookalike.sources.street import street_photos

R = np.array([[True, False, True], [False, False, False], [False, True, True]])


def test_metrics_by_hand():
    assert metrics.precision(R, 1).tolist() == [1, 0, 0]
    assert metrics.precision(R, 2).tolist() == [0.5, 0, 0.5]
    assert metrics.recall(R, np.array([4, 1, 2]), 3).tolist() == [0.5, 0, 1]
    assert metrics.reciprocal_rank(R).tolist() == [1, 0, 0.5]
    assert metrics.reciprocal_rank(R, 1).tolist() == [1, 0, 0]


def slow(order: list[int], relevant: set[int], k: int) -> dict[str, float]:
    """The definitions, a loop each."""
    first = [hit in relevant for hit in order[:k]]
    r = len(relevant)
    precisions = [sum(hit in relevant for hit in order[: n + 1]) / (n + 1) for n in range(r)]
    return {
        "precision": sum(first) / k,
        "recall": sum(first) / r,
        "found": float(any(first)),
        "reciprocal rank": next((1 / n for n, hit in enumerate(first, 1) if hit), 0.0),
        "R-precision": sum(hit in relevant for hit in order[:r]) / r,
        "AP@R": sum(p for p, hit in zip(precisions, order, strict=False) if hit in relevant) / r,
    }


@pytest.mark.usefixtures("torchvision_operators")
def test_metrics_against_a_slow_oracle_and_torchmetrics():
    torch = pytest.importorskip("torch", reason="needs torch (extra torch)")
    library = pytest.importorskip("torchmetrics.functional.retrieval", reason="needs torchmetrics (extra train)")
    rng = np.random.default_rng(3)
    ranks = 30
    for share in (0.05, 0.3, 0.9):
        relevant = rng.random((40, ranks)) < share
        relevant[:, -1] |= ~relevant.any(1)  # each query has something to find
        counts = relevant.sum(1)
        scores = rng.integers(0, 6, (40, ranks)).astype(np.float32)  # many are equal
        order = np.argsort(-scores, axis=1, kind="stable")
        hits = np.take_along_axis(relevant, order, 1)
        for k in (1, 3, 10, ranks):
            ours = {
                "precision": metrics.precision(hits, k), "recall": metrics.recall(hits, counts, k),
                "found": metrics.found(hits, k), "reciprocal rank": metrics.reciprocal_rank(hits, k),
                "R-precision": metrics.r_precision(hits, counts), "AP@R": metrics.average_precision_at_r(hits, counts),
            }  # fmt: skip
            for q in range(40):
                oracle = slow(order[q].tolist(), set(np.flatnonzero(relevant[q]).tolist()), k)
                assert {name: values[q] for name, values in ours.items()} == pytest.approx(oracle)
                # The library orders equal scores as it likes: it gets ours, as scores that differ.
                given = torch.arange(ranks, 0, -1, dtype=torch.float32), torch.from_numpy(hits[q])
                theirs = {
                    "precision": library.retrieval_precision(*given, top_k=k),
                    "recall": library.retrieval_recall(*given, top_k=k),
                    "found": library.retrieval_hit_rate(*given, top_k=k),
                    "reciprocal rank": library.retrieval_reciprocal_rank(*given, top_k=k),
                    "R-precision": library.retrieval_r_precision(*given),
                }
                for name, value in theirs.items():
                    assert ours[name][q] == pytest.approx(float(value)), name


def shelf_of(labels: list[str], photos: list[int] | None = None, digests: list[str] | None = None) -> leave.Shelf:
    """Products with such labels and so many photos (one by default)."""
    photos = photos or [1] * len(labels)
    total = sum(photos)
    first = np.cumsum([0, *photos[:-1]])
    names = [f"{n}.jpg" for n in range(total)]
    return leave.Shelf(names, digests or names, first, {"kind": np.array(labels, object)}, [""] * len(labels))


def unit(rng: np.random.Generator, count: int, dim: int = 4) -> np.ndarray:
    vectors = rng.integers(-2, 3, (count, dim)).astype(np.float32) + np.float32(0.01)  # few directions: many are equal
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


@pytest.mark.usefixtures("torchvision_operators")
def test_leave_one_out_against_pytorch_metric_learning():
    torch = pytest.importorskip("torch", reason="needs torch (extra torch)")
    calculator = pytest.importorskip(
        "pytorch_metric_learning.utils.accuracy_calculator", reason="needs pytorch-metric-learning (extra train)"
    )
    rng = np.random.default_rng(5)
    vectors = unit(rng, 120)
    labels = rng.integers(0, 7, 120)

    def nearest(query, k, reference, ref_includes_query):  # type: ignore[no-untyped-def]
        scores = query.numpy() @ reference.numpy().T
        np.fill_diagonal(scores, -9)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k].copy()
        return torch.from_numpy(-np.take_along_axis(scores, order, 1)), torch.from_numpy(order)

    include = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    library = calculator.AccuracyCalculator(include=include, k="max_bin_count", knn_func=nearest)
    theirs = library.get_accuracy(torch.from_numpy(vectors), torch.from_numpy(labels), ref_includes_query=True)
    found = leave.leave_one_out(vectors, shelf_of([f"k{n}" for n in labels]), np.arange(120))
    ours = {name: values.mean() for name, values in found.figures["kind"].items()}
    assert ours["P@1"] == pytest.approx(theirs["precision_at_1"])
    assert ours["R-precision"] == pytest.approx(theirs["r_precision"])
    assert ours["MAP@R"] == pytest.approx(theirs["mean_average_precision_at_r"])


def test_leave_one_out_of_products_with_several_photos_against_a_slow_oracle():
    rng = np.random.default_rng(6)
    labels = [*rng.choice(["a", "b", ""], 30), "alone"]
    photos = [1 + n % 3 for n in range(31)]
    digests = [f"d{n // 2 if n < 20 else n}" for n in range(sum(photos))]  # some photos are the same bytes
    shelf = shelf_of(labels, photos, digests)
    vectors = unit(rng, len(digests))
    found = leave.leave_one_out(vectors, shelf, np.arange(31), batch=7)
    owner = np.repeat(np.arange(31), photos)
    asked, seen = [], {name: [] for name in leave.FIGURES}
    for q in range(31):
        row = shelf.first[q]
        best: dict[int, float] = {}
        for n in range(len(digests)):
            if owner[n] != q and digests[n] != digests[row]:
                best[owner[n]] = max(best.get(owner[n], -9), float(vectors[row] @ vectors[n]))
        order = sorted(best, key=lambda p: (-best[p], p))
        assert [best[p] for p in found.nearest[q] if p in best] == pytest.approx([best[p] for p in order[:10]])
        relevant = {p for p in best if labels[p] == labels[q]}
        if labels[q] and relevant:
            asked.append(q)
            order = [int(p) for p in found.nearest[q]] + [p for p in order if p not in found.nearest[q]]
            ten = slow(order, relevant, 10)
            seen["P@10"].append(ten["precision"])
            seen["P@1"].append(slow(order, relevant, 1)["precision"])
    assert np.flatnonzero(found.asked["kind"]).tolist() == asked
    assert 30 not in asked  # nothing else is like it
    for name in ("P@1", "P@10"):
        assert found.figures["kind"][name] == pytest.approx(seen[name])


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_catalog_is_measured_by_category_colour_and_both(tmp_path: Path, kaggle: lookalike.Catalog, cache: Path):
    snapshot = kaggle.snapshot()
    histogram = encoders.load("colour-histogram")
    report = leave.evaluate(snapshot, kaggle.encoder, beside=[histogram])
    names = [t["name"] for t in report["tables"]]
    assert names == [
        "same category (articleType)", "same colour (baseColour)", "same category + colour (articleType + baseColour)",
    ]  # fmt: skip
    assert [t["queries"] for t in report["tables"]] == [12, 12, 0]  # each kind is there once in each colour
    kind = report["tables"][0]["rows"]
    assert set(kind) == {kaggle.encoder.id, histogram.id}
    near = [int(np.argsort(-(snapshot.vectors @ v - 9 * np.eye(12)[n]))[0]) for n, v in enumerate(snapshot.vectors)]
    kinds = snapshot.attributes["articleType"].to_pylist()
    assert kind[kaggle.encoder.id]["P@1"]["mean"] == pytest.approx(
        np.mean([kinds[n] == kinds[m] for n, m in enumerate(near)]), abs=1e-4
    )
    assert len(list(cache.rglob("*.npy"))) == 1
    again = leave.evaluate(snapshot, kaggle.encoder, beside=[histogram])
    assert again["tables"] == report["tables"]
    next(cache.rglob("*.npy")).write_bytes(b"damaged")
    assert leave.evaluate(snapshot, kaggle.encoder, beside=[histogram])["tables"] == report["tables"]

    ids = tmp_path / "ids.txt"
    ids.write_text("0\n4\n\n4\n")
    command = ["evaluate", "catalog", "--catalog", str(kaggle.store.directory), "--by", "colour,gender", "--json"]
    printed = CliRunner().invoke(app, [*command, "--queries", str(ids), "--report", str(tmp_path / "r.html")])
    assert printed.exit_code == 0, printed.output
    made = json.loads(printed.stdout)
    assert [t["name"] for t in made["tables"]] == ["same colour", "same gender", "same colour + gender"]
    assert [t["queries"] for t in made["tables"]] == [2, 2, 2]
    html = (tmp_path / "r.html").read_text()
    assert html.count("<figure") == 2 * 7
    few = CliRunner().invoke(app, [*command, "--sample", "5", "--seed", "3"])
    assert [t["queries"] for t in json.loads(few.stdout)["tables"]] == [5, 5, 5]
    assert "5 of them asked for (by chance, seed 3)" in json.loads(few.stdout)["note"]
    ids.write_text("0\nnowhere\n")
    refused = CliRunner().invoke(app, [*command, "--queries", str(ids)])
    assert isinstance(refused.exception, InputError)
    assert "ids.txt: there is no product 'nowhere'" in str(refused.exception)
    refused = CliRunner().invoke(app, [*command[:-2], "color2"])
    assert isinstance(refused.exception, UsageError)
    assert "baseColour" in str(refused.exception)


def test_a_catalog_without_known_columns_says_what_it_has(tmp_path: Path):
    for n in range(3):
        draw(tmp_path / "p" / f"{n}.jpg", "red", "bag", n)
    plain = lookalike.open(tmp_path / "c", encoder="fake")
    plain.index(tmp_path / "p")
    with pytest.raises(UsageError, match=r"say by what: --by COLUMN\. It has none"):
        leave.evaluate(plain.snapshot(), plain.encoder)


def test_in_shop_finds_items_in_the_gallery(tmp_path: Path):
    from test_datasets import in_shop

    root = in_shop(tmp_path / "data")
    report = inshop.evaluate(encoders.load("fake"), root, [encoders.load("colour-histogram")])
    (table,) = report["tables"]
    assert table["queries"] == 2
    assert set(table["rows"]) == {"fake-1", "colour-histogram-1"}
    assert table["rows"]["fake-1"]["Recall@1"] == {"mean": 1.0, "low": 1.0, "high": 1.0}  # an item is of one colour
    assert "2 queries of 2 items against 3 photos of the gallery, cut to their boxes" in report["note"]
    write(report, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text().count("<figure") == 2 * (1 + 3)  # each query, and the gallery's photos

    # Of the green item's photos the gallery's is broken, and the blue one's box lies elsewhere: both are told.
    next((root / "img").rglob("01_4_full.jpg")).write_bytes(b"broken")
    boxes = root / "Anno" / "list_bbox_inshop.txt"
    boxes.write_text(re.sub(r"(01_2_side.jpg\s+\d 1) .*", r"\1 500 500 600 600", boxes.read_text()))
    command = ["evaluate", "in-shop", "--data", str(root), "--encoder", "fake", "--json"]
    made = json.loads(CliRunner().invoke(app, command).stdout)
    assert made["tables"][0]["queries"] == 1
    assert "against 1 photos of the gallery" in made["note"]
    assert "Left out: 1 queries whose item is not in the gallery, 2 photos that cannot be read" in made["note"]
    whole = json.loads(CliRunner().invoke(app, [*command, "--no-crop"]).stdout)
    assert "2 photos of the gallery, whole" in whole["note"]
    for file in (root / "img").rglob("01_*"):
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match="no query whose item is in the gallery"):
        inshop.evaluate(encoders.load("fake"), root)


def test_encoders_are_compared_in_one_table_and_two_plots(
    tmp_path: Path, kaggle: lookalike.Catalog, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    from shutil import copytree

    monkeypatch.setattr(compare, "SECONDS", 0.0)
    trained = tmp_path / "my encoder"
    copytree(encoders.load("builtin").directory, trained)  # type: ignore[attr-defined]
    about = json.loads((trained / "encoder.json").read_text())
    (trained / "encoder.json").write_text(json.dumps({**about, "training": {"recipe": "adapt", "seconds": 600}}))
    command = ["evaluate", "compare", "fake", "colour-histogram", str(trained)]
    on = ["--catalog", str(kaggle.store.directory), "--label", "colour"]
    printed = CliRunner().invoke(app, [*command, *on, "--report", str(tmp_path / "r.html"), "--json"])
    assert printed.exit_code == 0, printed.output
    report = json.loads(printed.stdout)
    (table,) = report["tables"]
    assert table["queries"] == 12
    assert set(table["rows"]) == {"fake", "colour-histogram", "my encoder"}
    fake, mine = table["rows"]["fake"], table["rows"]["my encoder"]
    own = leave.evaluate(kaggle.snapshot(), kaggle.encoder, ["colour"])["tables"][0]["rows"]["fake-1"]
    assert {f: fake[f] for f in ("P@1", "P@10", "MAP@R")} == {f: own[f] for f in ("P@1", "P@10", "MAP@R")}
    assert (mine["training time"]["shown"], mine["dimensions"]["shown"]) == ("10 min", "256")
    assert mine["on disk"]["mean"] == sum(f.stat().st_size for f in trained.iterdir() if f.suffix != ".md")
    assert (fake["training time"], fake["on disk"]) == ({"mean": None, "shown": "–"},) * 2
    assert all(row["photos/s"]["mean"] > 0 for row in table["rows"].values())
    speed, training = report["plots"]
    assert [p["name"] for p in speed["points"]] == ["fake", "colour-histogram", "my encoder"]
    assert [(p["name"], p["x"]) for p in training["points"]] == [("my encoder", 600)]
    html = (tmp_path / "r.html").read_text()
    assert html.count("<circle") == 4
    assert "10 min" in html
    assert not re.search(r"\b(nan|inf)\b", html)

    next((tmp_path / "images").glob("3.jpg")).write_bytes(b"broken")
    on = ["--data", str(tmp_path), "--label", "baseColour,gender", "--products", "11"]
    monkeypatch.setattr(compare, "PHOTOS", 3)
    printed = CliRunner().invoke(app, ["evaluate", "compare", "fake", *on])
    assert printed.exit_code == 0, printed.output
    assert "baseColour + gender P@10 0." in printed.output
    assert "photos/s" in printed.output
    (tmp_path / "ids.txt").write_text("2\n0\n4\n8\n")
    named = ["--queries", str(tmp_path / "ids.txt"), "--label", "baseColour", "--json"]
    for where in (["--data", str(tmp_path)], ["--catalog", str(kaggle.store.directory)]):
        made = json.loads(CliRunner().invoke(app, ["evaluate", "compare", "fake", *where, *named]).stdout)
        assert made["tables"][0]["queries"] == 3  # 0, 4 and 8 are red, nothing else is as green as 2
    refused = CliRunner().invoke(app, ["evaluate", "compare", "fake", "--data", str(tmp_path), "--label", "fit"])
    assert isinstance(refused.exception, UsageError)
    assert "no column 'fit'" in str(refused.exception)


def test_two_photos_are_compared_by_any_encoder(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    red, blue = (str(draw(tmp_path / f"{c}.jpg", c, "bag")) for c in ("red", "blue"))
    runner = CliRunner()
    same = json.loads(runner.invoke(app, ["compare", red, red, "--json"]).stdout)  # no catalog here: builtin
    assert same["encoder"].startswith("builtin-")
    assert (same["cosine"], same["alike"]) == (pytest.approx(1, abs=1e-5), 100)
    assert same["distance"] == pytest.approx(0, abs=2e-3)
    by_catalog = ["--catalog", str(catalog.store.directory)]
    other = json.loads(runner.invoke(app, ["compare", red, blue, "--json", *by_catalog]).stdout)
    assert other["encoder"] == "fake-1"
    assert "alike" not in other
    assert other["distance"] ** 2 == pytest.approx(2 - 2 * other["cosine"], abs=1e-5)
    printed = runner.invoke(
        app, ["compare", red, f"{red}#xywh=0,0,30,40", "--encoder", "colour-histogram", *by_catalog]
    )
    assert "by colour-histogram-1" in printed.output
    refused = runner.invoke(app, ["compare", red, "nowhere.jpg"])
    assert isinstance(refused.exception, InputError)


def test_what_encoders_cost_is_measured_once(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """In a process of its own each; a run that was stopped goes on; other photos are measured anew."""
    (folder / "men" / "bag" / "text.jpg").write_text("not a photo")
    out = tmp_path / "out"

    def rows_of(*more: str) -> dict[str, dict[str, dict[str, float]]]:
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["tables"][0]["rows"]

    command = ["bench", "encode", "fake", "colour-histogram", "--data", str(folder), "--out", str(out), "--json"]
    rows = rows_of()
    assert list(rows) == ["fake", "colour-histogram"]
    for row, dim in zip(rows.values(), (64, 128), strict=True):
        assert row["dimensions"]["mean"] == dim
        assert row["photos/s"]["mean"] > 0 and row["ms a photo"]["mean"] > 0
    assert rows["fake"]["ms a text"]["mean"] > 0 and rows["colour-histogram"]["ms a text"]["mean"] is None
    assert rows["fake"]["memory"]["mean"] is None or 20e6 < rows["fake"]["memory"]["mean"] < 1e9

    cells = out / "cells.jsonl"
    lines = cells.read_text().splitlines(True)
    cells.write_text(lines[0] + lines[1][:40])  # killed while it wrote the second
    measured: list[str] = []
    real = bench_encode.measure
    monkeypatch.setattr(bench_encode, "ProcessPoolExecutor", lambda *a: ThreadPoolExecutor(1))
    monkeypatch.setattr(bench_encode, "SECONDS", 0.01)
    monkeypatch.setattr(bench_encode, "measure", lambda name, *rest: (measured.append(name), real(name, *rest))[1])
    again = rows_of()
    assert measured == ["colour-histogram"] and again["fake"] == rows["fake"]
    assert rows_of() == again and measured == ["colour-histogram"]
    rows_of("--photos", "5")
    assert measured == ["colour-histogram", "fake", "colour-histogram"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("not a photo")
    with pytest.raises(InputError, match="none of the photos can be read"):
        bench_encode.evaluate(["fake"], [str(tmp_path / "bad" / "a.jpg")], [], out)
