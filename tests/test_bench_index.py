"""`lookalike bench index`: growth like the real vectors, figures of each kind, and a stopped run that goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import lookalike
from lookalike.cli import app
from lookalike.errors import InputError, UsageError
from lookalike.evaluation import bench_index as bench
from lookalike.evaluation import report as pages
from lookalike.indexes import base
from test_indexes import garments

pytest.importorskip("numkong", reason="pip install 'lookalike[hnsw]'")


def test_grown_vectors_are_as_close_to_each_other_as_the_real_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(base, "BLOCK", 1000)  # grown in several blocks
    real = garments(1500, 32)
    found = np.load(bench.grown(real, 4000, tmp_path / "v.npy"))
    assert found.shape == (4000, 32)
    assert np.array_equal(found[:1500], real)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert len(np.unique(found.round(5), axis=0)) > 3950  # no copies
    before, after = bench.closeness(real), bench.closeness(found)
    for rank in before:
        assert np.allclose(before[rank], after[rank], atol=0.08), rank
    assert [f.name for f in tmp_path.iterdir()] == ["v.npy"]
    few = np.load(bench.grown(real, 100, tmp_path / "few.npy"))
    assert len(few) == 100 and (few[:, None] == real[None]).all(2).any(1).all()


def test_a_zero_vector_and_few_rows_can_be_grown(tmp_path: Path):
    real = garments(30, 64)
    real[3] = 0
    found = np.load(bench.grown(real, 200, tmp_path / "v.npy"))
    assert np.isfinite(found).all()
    lengths = np.linalg.norm(found, axis=1)
    assert (np.isclose(lengths, 1, atol=1e-4) | (lengths < 1e-6)).all()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "QUERIES", 8)


@pytest.mark.usefixtures("small")
def test_every_kind_is_measured_and_a_second_run_goes_on(
    catalog: lookalike.Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot, out = catalog.snapshot(), tmp_path / "out"
    snapshot.vectors = garments(300, catalog.encoder.dim)
    said: list[str] = []
    bench.evaluate(snapshot, catalog.encoder, ["exact", "int8"], [300], out, said.append)
    kinds = ["exact", "int8", "lsh-512", "hnsw", "ivf"]
    with (out / "cells.jsonl").open("a") as file:
        file.write('{"kind": "ivf", "si')  # killed while writing
    said.clear()
    bench.evaluate(snapshot, catalog.encoder, kinds, [300], out, said.append)
    assert not any("int8 over" in line for line in said)
    found = bench.evaluate(snapshot, catalog.encoder, ["exact", "hnsw"], [300, 600], out, said.append)
    assert any("hnsw over 600" in line for line in said)
    cells = {(c["kind"], c["size"]): c for c in map(json.loads, (out / "cells.jsonl").read_text().splitlines())}
    assert cells.keys() == {(kind, 300) for kind in kinds} | {("exact", 600), ("hnsw", 600)}
    for cell in cells.values():
        assert cell["recall"]["photos"] >= 0.9, cell["kind"]
        assert 0 < cell["p50"] <= cell["p95"] <= cell["p99"]
        assert [f["filter"] for f in cell["filters"]][:2] == ["50.0%", "10.0%"]
        assert all(f["recall"] > 0.9 for f in cell["filters"]), cell["kind"]
        assert cell["curve"] and cell["per_second"] > 0 and cell["per_second_at_once"] > 0
    assert cells["hnsw", 600]["disk"] > 0 < cells["hnsw", 600]["memory"]
    assert cells["exact", 600]["recall"]["photos"] == 1
    assert not list(out.glob("index-*-*"))  # only vectors, cells, plot are left
    monkeypatch.setattr(bench, "cell", lambda *_: pytest.fail("measured again"))
    again = bench.evaluate(snapshot, catalog.encoder, ["exact", "hnsw"], [300, 600], out)
    assert again["tables"] == found["tables"]
    assert next(t["name"] for t in found["tables"]) == "300 vectors"
    pages.write(again, tmp_path / "index.html")
    assert "600 vectors under filters" in (tmp_path / "index.html").read_text("utf-8")
    if again.get("pictures"):
        assert (out / "index.png").read_bytes()[:4] == b"\x89PNG"
    snapshot.vectors = garments(300, catalog.encoder.dim, seed=7)
    with pytest.raises(InputError, match="other vectors"):
        bench.evaluate(snapshot, catalog.encoder, kinds, [300], out)


def test_what_cannot_be_measured_is_said(catalog: lookalike.Catalog, tmp_path: Path):
    with pytest.raises(UsageError, match="lsh-itq"):
        bench.evaluate(catalog.snapshot(), catalog.encoder, ["annoy"], [100], tmp_path)
    with pytest.raises(InputError, match=r"photos; an index is measured on 100 and more"):
        bench.evaluate(catalog.snapshot(), catalog.encoder, ["exact"], [100], tmp_path)


def test_memory_is_what_was_taken_meanwhile():
    # In a process of its own: what earlier tests left may be given back meanwhile.
    program = (
        "import time, numpy as np\n"
        "from lookalike.evaluation import bench_index as bench\n"
        "with bench.Memory() as memory:\n"
        "    taken = np.ones(100_000_000, np.uint8)  # more than malloc gives out of what it has\n"
        "    time.sleep(0.2)\n"
        "    del taken\n"
        "print(memory.peak)\n"
    )
    peak = int(subprocess.check_output([sys.executable, "-c", program]))
    assert peak == 0 or 90e6 < peak < 300e6


def test_texts_are_titles_and_words_of_the_columns(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    encode = catalog.encoder.encode_texts
    monkeypatch.setattr(catalog.encoder, "encode_texts", lambda texts: (asked.extend(texts), encode(texts))[1])
    found = bench.text_queries(catalog.snapshot(), catalog.encoder)
    assert found.shape == (len(asked), catalog.encoder.dim)
    titles = set(catalog.snapshot().titles)
    words = [text for text in asked if text not in titles]
    assert titles & set(asked)
    known = {value for values in catalog.snapshot().values.values() for value in values}
    assert words and all(any(value in text for value in known) for text in words)
    monkeypatch.setattr(catalog.encoder, "reads_text", False, raising=False)
    assert not len(bench.text_queries(catalog.snapshot(), catalog.encoder))


@pytest.mark.usefixtures("small")
def test_the_command(catalog: lookalike.Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "K", 1)  # of 13 photos
    asked = [
        "bench",
        "index",
        "--catalog",
        str(catalog.store.directory),
        "--kinds",
        "exact",
        "--out",
        str(tmp_path / "o"),
    ]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    assert "13 vectors" in found.output
    assert "exact" in (tmp_path / "o" / "index.html").read_text("utf-8")
    refused = CliRunner().invoke(app, [*asked, "--sizes", "many"])
    assert isinstance(refused.exception, UsageError)
    assert "whole numbers" in str(refused.exception)
