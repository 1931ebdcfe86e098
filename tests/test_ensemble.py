"""Ensembles: several encoders as one, unfitted and fitted, against plain arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import COLOURS, KINDS, draw, write_csv
from lookalike import encoders, images
from lookalike.encoders.base import Encoder
from lookalike.encoders.baselines import ColourHistogram
from lookalike.encoders.ensemble import Ensemble
from lookalike.encoders.fake import FakeEncoder
from lookalike.errors import InputError, UsageError
from lookalike.evaluation.report import write as write_report
from lookalike.sources import open_source
from lookalike.training import ensemble
from lookalike.training.ensemble import Head, grid

BOTH = "ensemble:fake+colour-histogram"


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("drawn")
    return [draw(root / f"{c}-{k}-{n}.png", c, k, n) for n in range(12) for k in KINDS for c in COLOURS]


@pytest.fixture(autouse=True)
def _allowed(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    """The tests' tables name photos that lie elsewhere."""
    monkeypatch.setenv("LOOKALIKE_PHOTOS", str(files[0].parent))


@pytest.fixture
def shop(files: list[Path], tmp_path: Path) -> Path:
    """144 drawn products; the label that an ensemble is fitted to is the colour."""
    rows = [
        {"id": f"p{n}", "image": f, "colour": f.name.split("-")[0], "kind": f.name.split("-")[1], "name": f.stem}
        for n, f in enumerate(files)
    ]
    return write_csv(tmp_path / "shop.csv", rows)


def fitted(shop: Path, tmp_path: Path, how: str = "", out: str = "out", name: str = BOTH) -> tuple[dict, dict]:
    source = open_source(str(shop))
    return ensemble.main(source, name, ["colour"], tmp_path / out, tmp_path / "work", how, 0, lambda line: None)


def test_unfitted_a_cosine_is_the_mean_of_the_members(files: list[Path]):
    both = encoders.load(BOTH)
    assert isinstance(both, Encoder)
    assert (both.dim, both.reads_text, both.size) == (192, False, (64, 48))
    pixels = np.stack([both.prepare(images.read(f)) for f in files[:6]])
    vectors = both.encode_photos(pixels)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    means = []
    for member in (FakeEncoder(), ColourHistogram()):
        own = member.encode_photos(np.stack([member.prepare(images.read(f)) for f in files[:6]]))
        means.append(own @ own.T)
    assert np.allclose(vectors @ vectors.T, np.mean(means, axis=0), atol=1e-5)
    assert np.allclose(both.encode_photos(pixels[:1]), vectors[:1], atol=1e-6)
    with pytest.raises(UsageError, match=r"photos only; .* --encoder minilm\+ensemble:fake\+colour-histogram"):
        both.encode_texts(["red"])
    assert encoders.load("ensemble:colour-histogram+fake").id != both.id
    outer = Ensemble([both, FakeEncoder()])  # flat pixels within flat pixels
    again = outer.encode_photos(np.stack([outer.prepare(images.read(f)) for f in files[:6]]))
    assert np.allclose(again[:, :192] * 2**0.5, vectors, atol=1e-6)


def test_names_that_are_no_ensemble(tmp_path: Path):
    for name in ("ensemble:fake", "ensemble:", "ensemble:fake+"):
        with pytest.raises(UsageError, match="two members or more"):
            encoders.load(name)

    class Beside(FakeEncoder):
        photo_dim = 32

    with pytest.raises(UsageError, match=r"minilm\+ensemble:A\+B"):
        Ensemble([Beside(), FakeEncoder()])


def test_the_grid_is_the_simplex_equal_weights_first():
    for members in (2, 3, 4, 5, 9):
        points = grid(members)
        assert np.allclose(points.sum(1), 1)
        assert np.allclose(points[0], 1 / members)
        assert (points >= 0).all()
        assert members <= len(points) <= ensemble.POINTS + 1
        assert {tuple(p) for p in np.eye(members)} <= {tuple(p) for p in points.tolist()}  # each member alone


@pytest.mark.parametrize("how", ["concat", "average", "pca"])
def test_heads_are_the_arithmetic_that_they_say_and_onnx_says_the_same(how: str, tmp_path: Path):
    import onnx

    from lookalike.encoders.onnx import session

    rng = np.random.default_rng(0)
    a, b = (unit(rng.normal(size=(7, d))).astype(np.float32) for d in (4, 9))
    chosen = np.array([0, 3, 5, 8])
    if how == "average":
        head = Head(how, (0.25, 0.75), (None, chosen))
        expected = unit(0.25 * a + 0.75 * unit(b[:, chosen]))
    elif how == "concat":
        head = Head(how, (0.25, 0.75), (None, None))
        expected = np.hstack([0.5 * a, 0.75**0.5 * b])
        assert np.allclose(expected @ expected.T, 0.25 * a @ a.T + 0.75 * b @ b.T)
    else:
        mean, components = (rng.normal(size=s).astype(np.float32) for s in ((13,), (13, 4)))
        head = Head(how, (0.5, 0.5), (None, None), mean, components)
        expected = unit((np.hstack([a, b]) / 2**0.5 - mean) @ components)
    assert np.allclose(head.apply([a, b]), expected, atol=1e-5)
    onnx.save(head.to_onnx([4, 9]), tmp_path / "head.onnx")
    got = session(tmp_path / "head.onnx", 1).run(None, {"features": np.hstack([a, b])})[0]
    assert np.allclose(got, expected, atol=1e-5)


def test_selection_takes_the_columns_that_tell_the_label():
    rng = np.random.default_rng(0)
    labels = np.array(["x", "y"] * 30, object)
    wide = rng.normal(size=(60, 8)).astype(np.float32)
    wide[:, 2] += 5 * (labels == "x")
    wide[:, 6] -= 5 * (labels == "x")
    wide[:, 4] = 1.0  # constant: tells nothing
    narrow = rng.normal(size=(60, 2)).astype(np.float32)
    first, second = ensemble.selected([wide, narrow], labels, np.ones(60, bool))
    assert first is not None
    assert first.tolist() == [2, 6]
    assert second is None


@pytest.mark.parametrize("how", ["", "average", "concat", "pca"])
def test_fitted_written_and_loaded(how: str, shop: Path, files: list[Path], tmp_path: Path):
    report, made = fitted(shop, tmp_path, how)
    assert made["how"].startswith(how)
    rows = report["tables"][0]["rows"]
    assert len(rows) == 6  # two members, four ways
    config = json.loads((tmp_path / "out" / "encoder.json").read_text())
    assert config["training"]["recipe"] == "ensemble"
    encoder = encoders.load(str(tmp_path / "out"))
    assert isinstance(encoder, Ensemble)
    assert encoder.name == str((tmp_path / "out").resolve())
    assert report["encoder"] == encoder.id
    assert encoder.dim == made["dim"] == config["dim"]
    vectors = encoder.encode_photos(np.stack([encoder.prepare(images.read(f)) for f in files]))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    # The figure that was reported, counted slowly from what was written.
    data = ensemble.load(open_source(str(shop)), ["colour"], lambda line: None)
    asked = np.flatnonzero(data.split == 2)
    shares = []
    for n in asked:
        near = [m for m in np.argsort(-(vectors @ vectors[n]), kind="stable") if m != n][:10]
        shares.append(np.mean([data.labels[m] == data.labels[n] for m in near]))
    told = next(v for k, v in rows.items() if k.startswith(made["how"] + " ("))
    assert told["P@10"]["mean"] == pytest.approx(np.mean(shares), abs=0.02)  # equal cosines come in any order
    write_report(report, tmp_path / "report.html")
    assert "Ensemble" in (tmp_path / "report.html").read_text()


def test_splits_keep_products_and_equal_photos_together(tmp_path: Path, files: list[Path]):
    rows = [{"id": f"p{n}", "image": f, "kind": f.name.split("-")[1]} for n, f in enumerate(files)]
    rows += [{"id": f"again{n}", "image": f, "kind": "copy"} for n, f in enumerate(files[:40])]
    data = ensemble.load(open_source(str(write_csv(tmp_path / "t.csv", rows))), ["kind"], lambda line: None)
    split_of = {}
    for digest, split in zip(data.digests, data.split, strict=True):
        assert split_of.setdefault(digest, split) == split
    assert set(data.split) == {0, 1, 2}


def test_features_are_kept_and_an_interrupted_run_goes_on(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ensemble, "CHUNK", 50)
    asked: list[int] = []
    real = ensemble.encode_files

    def counting(member: Encoder, files: list[str]) -> np.ndarray:
        asked.append(len(files))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(member, files)

    monkeypatch.setattr(ensemble, "encode_files", counting)
    with pytest.raises(KeyboardInterrupt):
        fitted(shop, tmp_path)
    assert not (tmp_path / "out").exists()
    asked[:] = [0, 0]
    one = fitted(shop, tmp_path)
    assert sum(asked) == 2 * 144 - 50 + 16  # and the check of what was written
    asked[:] = [0, 0]
    two = fitted(shop, tmp_path, out="again")
    assert sum(asked) == 16
    assert one[0]["tables"] == two[0]["tables"]  # to the last digit
    for file in ("head.onnx",):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_exported_members_are_copied_and_served_without_torch(shop: Path, tmp_path: Path):
    fitted(shop, tmp_path, "pca", name="ensemble:builtin+colour-histogram")
    assert (tmp_path / "out" / "member-1" / "photo.onnx").is_file()
    code = (
        "import sys; sys.modules['torch'] = sys.modules['sklearn'] = sys.modules['onnx'] = None\n"
        "import numpy as np; from lookalike import encoders\n"
        f"e = encoders.load({str(tmp_path / 'out')!r})\n"
        "from PIL import Image\n"
        "print(e.encode_photos(e.prepare(Image.new('RGB', (60, 80), 'red'))[None]).shape, e.id)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.startswith("(1, 86) ensemble-")  # as many components as photos to learn from
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert encoders.load(str(moved)).id in told


def test_what_cannot_be_fitted_is_told(shop: Path, tmp_path: Path):
    source = open_source(str(shop))

    def main(name: str = BOTH, label: str = "colour", how: str = "", out: str = "out") -> None:
        ensemble.main(source, name, [label], tmp_path / out, tmp_path / "work", how, 0, lambda line: None)

    with pytest.raises(UsageError, match=r"--label size: no such column in .* it has "):
        main(label="size")
    with pytest.raises(UsageError, match="--how best: choose average, concat, pca"):
        main(how="best")
    with pytest.raises(UsageError, match="--encoder fake: no ensemble"):
        main("fake")
    with pytest.raises(InputError, match="must differ"):
        main(out="work")
    lines = shop.read_text().splitlines()
    shop.write_text("\n".join(lines[:51]))
    with pytest.raises(InputError, match="50 products with a photo and 4 values of colour; at least 100"):
        ensemble.load(open_source(str(shop)), ["colour"], lambda line: None)
    (tmp_path / "work").mkdir(exist_ok=True)
    (tmp_path / "work" / "features-fake-1.npz").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"features-fake-1\.npz: damaged"):
        main()


def test_a_damaged_ensemble_is_told(shop: Path, tmp_path: Path):
    fitted(shop, tmp_path, "concat")
    (tmp_path / "out" / "head.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"not a whole ensemble .*train it again"):
        encoders.load(str(tmp_path / "out"))
