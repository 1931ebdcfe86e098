"""Metrics by hand and against slow oracles; the KAGL protocol on a catalog small enough to count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lookalike
from conftest import COLOURS, KINDS, draw, write_csv
from lookalike.cli import app
from lookalike.errors import InputError
from lookalike.evaluation import kagl, metrics

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


def test_kagl_on_a_small_catalog(tmp_path: Path, kaggle: lookalike.Catalog):
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "text-image.json").write_text(json.dumps({"red": {"0": 1, "4": 1, "8": 1}, "blue": {"1": 1}}))
    (truth / "baseColour-image+text.json").write_text(json.dumps({"red": {"0": 1, "4": 1, "8": 1}}))
    snapshot = kaggle.snapshot()
    report = kagl.evaluate(snapshot, kaggle.encoder, truth, baseline=True)
    ranked = {
        q: [snapshot.ids[n] for n in np.argsort(-snapshot.vectors @ kaggle.encoder.encode_texts([q])[0])]
        for q in ("red", "blue")
    }
    text = report["tasks"]["text-image"]
    assert text["R@1"]["mean"] == pytest.approx(
        (len({ranked["red"][0]} & {"0", "4", "8"}) / 3 + (ranked["blue"][0] == "1")) / 2, abs=1e-4
    )
    ten = len({"0", "4", "8"} & set(ranked["red"][:10])) / 3 + ("1" in ranked["blue"][:10])
    assert text["R@10"]["mean"] == pytest.approx(ten / 2, abs=1e-4)
    assert report["tasks"]["baseColour-image+text"]["P@1"]["mean"] == 1
    photos = report["photo-photo"]
    assert photos["queries"] == 4
    # Of the ten nearest among eleven others: three of four of one's type, at most two of one's colour.
    assert 0.2 <= photos["type P@10"]["mean"] <= 0.3
    assert photos["colour P@10"]["mean"] <= 0.2
    assert report["photo-photo, colour histogram"]["queries"] == 4
    printed = CliRunner().invoke(
        app, ["evaluate", "kagl", "--catalog", str(kaggle.store.directory), "--ground-truth", str(truth)]
    )
    assert printed.exit_code == 0, printed.output
    assert f"text-image (2 queries): AvgRecall {text['AvgRecall']['mean']:.3f} [" in printed.output


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


def test_colour_histograms_are_unit_and_tell_colours_apart(catalog: lookalike.Catalog):
    histograms = kagl.colour_histograms(catalog.snapshot())
    assert np.allclose(np.linalg.norm(histograms, axis=1), 1, atol=1e-5)
    assert histograms[0] @ histograms[4] > histograms[0] @ histograms[1]  # red and red, red and blue
