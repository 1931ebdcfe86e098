from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import lookalike
import lookalike.sources
from conftest import COLOURS, draw, write_csv
from lookalike import images, indexing, store
from lookalike.errors import CatalogError, CatalogLocked, EncoderMismatch, InputError, NotFound
from lookalike.types import Product


def counts(report: indexing.Report) -> tuple[int, int, int, int, int]:
    return report.added, report.updated, report.unchanged, report.removed, report.quarantined


def test_sync_adds_then_leaves_then_updates_then_prunes(tmp_path: Path, folder: Path):
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    assert counts(catalog.index(folder)) == (24, 0, 0, 0, 0)
    before = catalog.store.version()
    assert counts(catalog.index(folder)) == (0, 0, 24, 0, 0)
    assert catalog.store.version() == before  # nothing to do writes nothing

    draw(folder / "men" / "bag" / "black-3.jpg", "green", "dress", 7)
    draw(folder / "men" / "bag" / "new.jpg", "green", "bag", 9)
    (folder / "women" / "bag" / "red-0.jpg").unlink()
    assert counts(catalog.index(folder)) == (1, 1, 22, 0, 0)
    assert len(catalog.snapshot()) == 25
    assert counts(catalog.index(folder, prune=True)) == (0, 0, 24, 1, 0)
    with pytest.raises(NotFound):
        catalog.search(like="women/bag/red-0")


def test_a_touched_file_is_unchanged_and_its_new_time_is_kept(tmp_path: Path, folder: Path):
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(folder)
    os.utime(folder / "men" / "bag" / "black-3.jpg", (1, 1))
    assert counts(catalog.index(folder)) == (0, 0, 24, 0, 0)
    before = catalog.store.version()
    catalog.index(folder)
    assert catalog.store.version() == before


def test_changed_attributes_update_without_encoding_again(table: Path, catalog: lookalike.Catalog):
    table.write_text(table.read_text().replace("red shirt", "crimson shirt"))
    encoder = catalog.encoder
    encoder.encode_photos = lambda pixels: pytest.fail("encoded again")  # type: ignore[method-assign]
    vectors = catalog.snapshot().vectors.copy()
    assert counts(catalog.index(table)) == (0, 2, 11, 0, 0)
    assert catalog.product("p00")["title"] == "crimson shirt"
    assert np.array_equal(catalog.snapshot().vectors, vectors)


def test_a_moved_source_is_taken_over_and_other_content_under_an_id_is_refused(
    tmp_path: Path, table: Path, catalog: lookalike.Catalog
):
    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "img").rename(moved / "img")
    table.rename(moved / table.name)
    assert counts(catalog.index(moved / table.name)) == (0, 13, 0, 0, 0)
    draw(tmp_path / "other.jpg", "black", "bag", 5)
    clash = write_csv(tmp_path / "clash.csv", [{"id": "p01", "image": "other.jpg"}, {"id": "x", "image": "other.jpg"}])
    version = catalog.store.version()
    with pytest.raises(InputError, match=r"'p01' \(already from .*moved.*Nothing was changed"):
        catalog.index(clash)
    assert catalog.store.version() == version


def test_bad_photos_are_quarantined_with_file_and_reason_and_the_rest_goes_on(tmp_path: Path, folder: Path):
    (folder / "men" / "bag" / "empty.jpg").write_bytes(b"")
    (folder / "men" / "bag" / "text.jpg").write_text("not a photo")
    whole = (folder / "men" / "bag" / "red-0.jpg").read_bytes()
    (folder / "men" / "bag" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    assert counts(catalog.index(folder)) == (24, 0, 0, 0, 3)
    found = {Path(q.item).name: q.reason for q in catalog.quarantine()}
    assert set(found) == {"empty.jpg", "text.jpg", "half.jpg"}
    assert all(len(reason) > 15 for reason in found.values())
    (folder / "men" / "bag" / "half.jpg").write_bytes(whole)
    assert counts(catalog.index(folder)) == (1, 0, 24, 0, 2)
    assert len(catalog.quarantine()) == 2


def test_a_cell_that_does_not_fit_its_column_is_quarantined_and_never_pruned(table: Path, catalog: lookalike.Catalog):
    table.write_text(table.read_text().replace(",15.5,", ",cheap,"))
    report = catalog.index(table, prune=True)
    assert (report.removed, report.quarantined) == (0, 1)
    assert "price: 'cheap' is not a number" in catalog.quarantine()[0].reason
    assert "price" not in catalog.product("p01")["attributes"]
    assert catalog.product("p01")["title"] == "blue shirt"


def test_parts_of_one_photo_are_products_of_their_own(tmp_path: Path):
    """``photo#xywh=X,Y,W,H``: cropped while indexing, in thumbnails and in photos that are served; changes are seen."""
    from starlette.testclient import TestClient

    from lookalike.server.app import create_app

    def paint(right: str) -> None:
        both = Image.new("RGB", (80, 40), COLOURS["red"])
        both.paste(COLOURS[right], (40, 0, 80, 40))
        both.save(tmp_path / "pair.png")

    paint("blue")
    table = write_csv(
        tmp_path / "t.csv",
        [{"image": f"pair.png#xywh={box}"} for box in ("0,0,40,40", "40,0,40,40", "90,0,5,5", "0,0,4")]
        + [{"image": "missing.png#xywh=0,0,4,4"}],
    )
    made = lookalike.open(tmp_path / "c", encoder="fake")
    report = made.index(table)
    assert (report.added, report.quarantined) == (2, 3)
    told = {q.item.rsplit("/", 1)[-1]: q.reason for q in made.quarantine()}
    assert "lies outside of the photo's 80×40 pixels" in told["pair.png#xywh=90,0,5,5"]
    assert "X,Y,W,H" in told["pair.png#xywh=0,0,4"]
    assert any("missing.png" in reason for reason in told.values())
    red, blue = (made.search(colour)[0] for colour in ("red", "blue"))
    assert (red.id, blue.id) == ("pair#xywh=0,0,40,40", "pair#xywh=40,0,40,40")
    client = TestClient(
        create_app(made, "secret"), base_url="http://127.0.0.1", headers={"authorization": "Bearer secret"}
    )
    pictures = [images.read(client.get(f"/api/photos/{hit.photo}?width=16").content) for hit in (red, blue)]
    for picture, colour in zip(pictures, ("red", "blue"), strict=True):
        assert picture.size == (16, 16)
        assert np.abs(np.asarray(picture).mean((0, 1)) - COLOURS[colour]).max() < 8
    assert client.get(f"/api/products/{quote(blue.id)}").json()["id"] == blue.id
    listed = client.get("/api/quarantine").json()["items"]
    assert [(q["item"], q["picture"]) for q in listed if "lies outside" in q["reason"]] == [
        ("pair.png#xywh=90,0,5,5", True)  # the whole photo can be shown
    ]
    assert made.index(table).unchanged == 2
    assert made.verify() == {"photos": 2, "damaged": [], "changed": [], "missing": []}
    paint("green")
    assert len(made.verify()["changed"]) == 2
    assert made.index(table).updated == 2  # the file was changed: both of its parts are read again
    assert made.search("green")[0].id == blue.id
    (tmp_path / "pair.png").unlink()
    assert len(made.verify()["missing"]) == 2


def test_new_columns_of_a_second_source_are_added(tmp_path: Path, catalog: lookalike.Catalog):
    draw(tmp_path / "z.jpg", "blue", "dress", 2)
    catalog.index(write_csv(tmp_path / "more.csv", [{"id": "z", "image": "z.jpg", "fabric": "silk", "price": 3}]))
    assert catalog.product("z")["attributes"] == {"fabric": "silk", "price": 3}
    assert [h.id for h in catalog.search("blue", where="fabric = 'silk'")] == ["z"]


def test_two_products_that_share_a_photo_are_two_products(tmp_path: Path):
    photo = draw(tmp_path / "a.jpg", "red", "bag")
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index([Product("1", [photo]), Product("2", [photo])])
    assert [h.id for h in catalog.search(image=photo)] == ["1", "2"]


def test_another_encoder_is_refused_and_nothing_changes(tmp_path: Path, catalog: lookalike.Catalog, folder: Path):
    version = catalog.store.version()
    with pytest.raises(EncoderMismatch, match="fake-1, not by builtin"):
        lookalike.open(catalog.store.directory, encoder="builtin").index(folder)
    assert catalog.store.version() == version


def test_only_one_writer_and_the_message_names_it(catalog: lookalike.Catalog, folder: Path):
    other = lookalike.open(catalog.store.directory)
    with catalog.store.writing("test"), pytest.raises(CatalogLocked, match=rf"process {os.getpid()} .*\(test, since"):
        other.index(folder)
    assert counts(other.index(folder))[0] == 24


def test_remove_takes_products_out_and_refuses_unknown_ones(catalog: lookalike.Catalog):
    with pytest.raises(InputError, match="nothing was removed"):
        catalog.remove("p01", "nope")
    assert catalog.remove("p00", "p01") == 3
    assert len(catalog.snapshot()) == 10


def test_verify_finds_changed_and_missing_files(tmp_path: Path, catalog: lookalike.Catalog):
    assert catalog.verify() == {"photos": 13, "damaged": [], "changed": [], "missing": []}
    draw(tmp_path / "img" / "3.jpg", "green", "bag", 8)
    (tmp_path / "img" / "4.jpg").unlink()
    found = catalog.verify()
    assert [Path(p).name for p in found["changed"] + found["missing"]] == ["3.jpg", "4.jpg"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_export_is_the_same_however_the_catalog_came_to_be(tmp_path: Path, table: Path, suffix: str):
    once = lookalike.open(tmp_path / "a", encoder="fake")
    once.index(table)
    twice = lookalike.open(tmp_path / "b", encoder="fake")
    whole = table.read_text()
    table.write_text("\n".join(whole.splitlines()[:5]) + "\n")
    twice.index(table)
    table.write_text(whole)
    twice.index(table)
    twice.compact()
    files = [tmp_path / f"{n}.{suffix}" for n in "ab"]
    assert [c.export(f) for c, f in zip((once, twice), files, strict=True)] == [13, 13]
    assert files[0].read_bytes() == files[1].read_bytes()
    if suffix == "jsonl":
        first = json.loads(files[0].read_text().splitlines()[0])
        assert (first["id"], first["position"], first["price"], first["new"]) == ("p00", 0, 10, True)
        assert len(first["digest"]) == 32


def test_an_interrupted_run_keeps_what_was_encoded(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "BATCH", 4)
    catalog = lookalike.open(tmp_path / "c", encoder="fake")

    def stop(done: int, total: int) -> None:
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        catalog.index(folder, progress=stop)
    assert len(catalog.snapshot().photos) == 8
    assert counts(catalog.index(folder)) == (16, 0, 8, 0, 0)


@pytest.mark.parametrize("name", ["writer.json.part", "catalog.json.part", "keys.json.part", "feedback.jsonl"])
def test_what_a_writer_leaves_that_is_killed_before_there_is_a_catalog_is_no_stranger(
    tmp_path: Path, folder: Path, name: str
):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / name).write_text("{")
    assert lookalike.open(tmp_path / "c", encoder="fake").index(folder).added == 24


def test_a_catalog_that_is_made_while_one_looks_is_no_stranger(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(type(catalog.store), "exists", property(lambda store: False))  # a moment ago there was none
    assert lookalike.open(catalog.store.directory).store.version() == catalog.store.version()


@pytest.mark.parametrize("stopped", [0, 10, 11, 12])
def test_a_product_is_committed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int):
    """In no version, nor after an interruption, does a product have some of its photos as they were, and some as they are."""
    monkeypatch.setattr(indexing, "BATCH", 4)
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 1)
    catalog = lookalike.open(tmp_path / "c", encoder="fake")

    def stop(done: int, total: int) -> None:
        if done == stopped:
            raise KeyboardInterrupt

    products = [product(tmp_path, f"n{n}", *["red"] * n) for n in (3, 7, 1, 5)]
    with contextlib.nullcontext() if not stopped else pytest.raises(KeyboardInterrupt):
        catalog.index(products, progress=stop if stopped else None)
    for version in range(2, catalog.store.version() + 1):
        found = Counter(catalog.store.rows(["lk_id"], version)["lk_id"].to_pylist())
        assert all(count == int(identity[1:]) for identity, count in found.items()), version
    assert len(found) == {0: 4, 10: 1, 11: 1, 12: 3}[stopped]


def test_a_killed_run_leaves_a_catalog_that_a_second_run_completes(tmp_path: Path):
    """kill -9 at five moments; at the end the content is that of an undisturbed run."""
    for n in range(400):
        draw(tmp_path / "photos" / f"{n:03}.jpg", list(COLOURS)[n % 4], "dress", n % 20)
    slow = (
        "import sys, time, lookalike\n"
        "from lookalike import indexing\n"
        "indexing.COMMIT_ROWS = 16\n"
        "lookalike.open(sys.argv[1], encoder='fake').index(sys.argv[2], "
        "progress=lambda d, t: (print(d, flush=True), time.sleep(.002)))"
    )
    target = tmp_path / "killed"
    for moment in (1, 60, 130, 200, 270):
        process = subprocess.Popen(
            [sys.executable, "-c", slow, str(target), str(tmp_path / "photos")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout
        for line in process.stdout:
            if int(line) >= moment:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert lookalike.open(target).verify()["damaged"] == []
    catalog = lookalike.open(target)
    catalog.index(tmp_path / "photos")
    whole = lookalike.open(tmp_path / "whole", encoder="fake")
    whole.index(tmp_path / "photos")
    for made, name in ((catalog, "a.csv"), (whole, "b.csv")):
        assert made.export(tmp_path / name) == 400
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_a_full_disk_is_told_and_changes_nothing(
    tmp_path: Path, catalog: lookalike.Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import lance

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("LanceError(IO): No space left on device (os error 28)")

    catalog.export(tmp_path / "before.csv")
    with monkeypatch.context() as patch, pytest.raises(CatalogError, match=r"disk is full.*run again"):
        patch.setattr(lance, "write_dataset", full)
        catalog.index(folder)
    catalog.export(tmp_path / "after.csv")
    assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()
    assert counts(catalog.index(folder)) == (24, 0, 0, 0, 0)


def test_commits_are_synced_before_they_are_acknowledged(
    catalog: lookalike.Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every file that a commit leaves behind, and its folders, are handed to fsync; manifests last."""
    synced: list[str] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell which file a descriptor is")
    known = {p for p in catalog.store.photos.rglob("*") if p.is_file()}
    monkeypatch.setattr(os, "fsync", record)
    catalog.index(folder)
    new = {str(p.resolve()) for p in catalog.store.photos.rglob("*") if p.is_file()} - {str(p.resolve()) for p in known}
    assert new
    assert new <= set(synced)
    assert str(catalog.store.photos / "_versions") in synced
    files = [s for s in synced if s.endswith((".lance", ".manifest"))]
    assert files.index(next(f for f in files if f.endswith(".manifest"))) > files.index(
        next(f for f in files if f.endswith(".lance"))
    )


def test_many_small_commits_are_compacted_by_themselves(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 1)
    monkeypatch.setattr(indexing, "BATCH", 1)
    monkeypatch.setattr("lookalike.store.COMPACT_AT", 8)
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(folder)
    assert len(catalog.store.dataset().get_fragments()) < 8
    assert len(catalog.snapshot()) == 24


def test_speed_is_bounded_by_reading_ahead(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Decoding goes on while the encoder works."""
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    encoder = catalog.encoder
    prepare, encode = encoder.prepare, encoder.encode_photos
    monkeypatch.setattr(indexing, "BATCH", 4)
    prepared: list[object] = []
    meanwhile: list[int] = []

    def slow(pixels: object) -> object:
        before = len(prepared)
        time.sleep(0.1)
        meanwhile.append(len(prepared) - before)
        return encode(pixels)

    encoder.prepare = lambda image: (time.sleep(0.02), prepared.append(image), prepare(image))[2]  # type: ignore[method-assign]
    encoder.encode_photos = slow  # type: ignore[method-assign]
    indexing.index(catalog.store, encoder, "fake", lookalike.sources.open_source(folder), workers=1)
    assert len(prepared) == 24
    assert sum(n > 0 for n in meanwhile) >= 3  # of six batches


def test_columns_may_have_any_printable_name(tmp_path: Path):
    for name in "ab":
        draw(tmp_path / f"{name}.jpg", "red", "bag", ord(name) % 9)
    sheet = tmp_path / "odd.csv"
    sheet.write_text(",image,price.usd,x/y %,größe,\n0,a.jpg,3,p,S,\n1,b.jpg,5,q,M,\n")
    catalog = lookalike.open(tmp_path / "a:b", encoder="fake")  # and a directory may, too
    assert counts(catalog.index(sheet)) == (2, 0, 0, 0, 0)
    sheet.write_text(sheet.read_text().replace("3,p", "4,p"))
    assert counts(catalog.index(sheet)) == (0, 1, 1, 0, 0)
    assert counts(catalog.index(sheet)) == (0, 0, 2, 0, 0)
    assert catalog.product("a")["attributes"] == {"column_1": 0, "price.usd": 4, "x/y %": "p", "größe": "S"}
    assert [h.id for h in catalog.search("red", where='"price.usd" > 4 and "x/y %" = \'q\'')] == ["b"]
    with pytest.raises(InputError, match=r"attribute 'a\\nb' is empty, begins with lk_ or has"):
        catalog.index([Product("x", [tmp_path / "a.jpg"], attributes={"a\nb": 1})])


def test_photos_that_trade_places_keep_their_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The vectors of known content are read before a commit of the same run replaces them."""
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 1)
    red, blue = draw(tmp_path / "p" / "1.jpg", "red", "bag"), draw(tmp_path / "p" / "2.jpg", "blue", "dress")
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(tmp_path / "p")
    before = catalog.snapshot().vectors.copy()
    red.rename(tmp_path / "x")
    blue.rename(red)
    (tmp_path / "x").rename(blue)
    assert counts(catalog.index(tmp_path / "p")) == (0, 2, 0, 0, 0)
    assert np.array_equal(catalog.snapshot().vectors, before[::-1])
    assert catalog.verify()["changed"] == []


def test_prune_spares_what_is_named_but_cannot_be_read(
    tmp_path: Path, table: Path, catalog: lookalike.Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "img" / "0b.jpg").unlink()
    (tmp_path / "img" / "3.jpg").unlink()
    table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith("p05")))
    report = catalog.index(table, prune=True)
    assert (report.removed, report.quarantined) == (1, 2)  # p05 left the table; p00 and p03 lost a photo

    photos = lookalike.open(tmp_path / "c", encoder="fake")
    photos.index(folder)
    (folder / "women" / "dress" / "red-0.jpg").unlink()
    real = os.scandir

    def refuse(path: object = ".") -> object:
        if str(path).endswith("men/bag"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        report = photos.index(folder, prune=True)
    assert (report.removed, report.quarantined) == (1, 2)  # men/bag and women/bag
    assert {q.reason for q in photos.quarantine()} == {"the folder cannot be read (Permission denied)"}
    assert len(photos.snapshot()) == 23


def test_names_that_are_no_unicode_are_quarantined(tmp_path: Path, folder: Path):
    odd = os.fsencode(folder / "men" / "bag") + b"/caf\xe9.jpg"
    try:
        Path(os.fsdecode(odd)).write_bytes((folder / "men" / "bag" / "red-0.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8")
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    assert counts(catalog.index(folder)) == (24, 0, 0, 0, 1)
    assert catalog.quarantine()[0].item.endswith("men/bag/caf\\udce9.jpg")
    found = catalog.index([Product("x", [folder / "men" / "bag" / "red-0.jpg"], "bad \ud800", {"note": "\ud800"})])
    assert (found.added, found.quarantined) == (1, 2)
    assert catalog.product("x")["title"] == ""


def test_numbers_in_a_text_column_keep_their_look(tmp_path: Path):
    photo = draw(tmp_path / "a.jpg", "red", "bag")
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(
        [Product("1", [photo], attributes={"size": "M", "new": True, "stock": np.int64(3), "kg": float("nan")})]
    )
    catalog.index([Product("2", photo, attributes={"size": 38.0, "new": "false", "stock": np.float32(0.5)})])  # type: ignore[arg-type]
    assert catalog.product("1")["attributes"] == {"size": "M", "new": True, "stock": 3}
    assert catalog.product("2")["attributes"] == {"size": "38", "new": False, "stock": 0.5}


def test_a_catalog_in_anothers_place_is_seen(tmp_path: Path, catalog: lookalike.Catalog, folder: Path):
    assert len(catalog.snapshot()) == 12
    other = lookalike.open(tmp_path / "other", encoder="fake")
    other.index(folder)
    while other.store.version() < catalog.store.version():
        other.compact()
    catalog.store.directory.rename(tmp_path / "old")
    other.store.directory.rename(catalog.store.directory)
    assert len(catalog.snapshot()) == 24


def product(tmp_path: Path, identity: str, *colours: str, **attributes: object) -> lookalike.Product:
    photos = [draw(tmp_path / "put" / f"{identity}-{n}-{c}.jpg", c, "dress", n) for n, c in enumerate(colours)]
    return lookalike.Product(identity, photos, f"{identity} dress", attributes)


def rows(catalog: lookalike.Catalog, identity: str) -> list[tuple[int, str, str]]:
    table = catalog.store.rows(["lk_id", "lk_position", "lk_path", "lk_source"]).to_pylist()
    found = [r for r in table if r["lk_id"] == identity]
    return sorted((r["lk_position"], Path(r["lk_path"]).name, Path(r["lk_source"]).name) for r in found)


def test_put_adds_and_replaces_whole_products_in_one_commit(tmp_path: Path, catalog: lookalike.Catalog):
    version = catalog.store.version()
    new, old = product(tmp_path, "n1", "red", "blue", price=5), product(tmp_path, "p00", "black", colour="Black")
    report = catalog.put([new, old])
    assert (report.added, report.updated, report.removed, report.quarantined) == (2, 1, 1, 0)  # p00 had two photos
    assert catalog.store.version() == version + 1
    assert [name for _, name, _ in rows(catalog, "n1")] == ["n1-0-red.jpg", "n1-1-blue.jpg"]
    assert catalog.product("p00") == {
        "id": "p00", "title": "p00 dress", "photos": [indexing.photo_key("p00", 0)], "attributes": {"colour": "Black"},
    }  # fmt: skip
    again = catalog.put([new, old])
    assert (again.unchanged, again.added, again.updated, again.removed) == (3, 0, 0, 0)
    assert catalog.verify()["damaged"] == []


def test_what_was_put_follows_the_source_that_names_it(tmp_path: Path, table: Path, catalog: lookalike.Catalog):
    catalog.put([product(tmp_path, "p01", "green", "red"), product(tmp_path, "mine", "red")])
    assert [s for _, _, s in rows(catalog, "p01")] == ["products.csv"] * 2  # it stays the table's
    catalog.index(table, prune=True)
    assert rows(catalog, "p01") == [(0, "1.jpg", "products.csv")]
    assert rows(catalog, "mine") == [(0, "mine-0-red.jpg", "uploads")]
    # and a product that came one by one first, with other photos
    draw(tmp_path / "later" / "mine.jpg", "blue", "bag")
    catalog.put([product(tmp_path, "mine", "red", "green")])
    report = catalog.index(tmp_path / "later")
    assert rows(catalog, "mine") == [(0, "mine.jpg", "later")]
    assert (report.updated, report.removed) == (1, 1)


def test_a_bad_photo_is_told_and_a_product_of_bad_ones_stays_as_it_was(tmp_path: Path, catalog: lookalike.Catalog):
    (tmp_path / "bad.jpg").write_bytes(b"not a photo")
    good = product(tmp_path, "n1", "red")
    mixed = replace(good, photos=[*good.photos, tmp_path / "bad.jpg"])
    lost = lookalike.Product("p02", [tmp_path / "bad.jpg"], "lost", {})
    before = catalog.product("p02")
    report = catalog.put([mixed, lost])
    assert (report.added, report.updated, report.quarantined) == (1, 0, 2)
    assert {q.item for q in report.problems} == {"upload, id n1, photo 2", "upload, id p02, photo 1"}
    assert catalog.product("p02") == before
    assert [q.item for q in catalog.quarantine() if q.source == "uploads"] == [q.item for q in report.problems]
    catalog.put([good])  # mended
    assert [q.item for q in catalog.quarantine()] == ["upload, id p02, photo 1"]


def test_a_put_that_fails_in_the_middle_changes_nothing(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    before = catalog.store.version()
    many = [product(tmp_path, f"n{n}", "red", "blue", "green") for n in range(15)]  # more than one call of the encoder
    calls = []

    def failing(self: object, pixels: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return real(self, pixels)

    real = type(catalog.encoder).encode_photos
    monkeypatch.setattr(type(catalog.encoder), "encode_photos", failing)
    with pytest.raises(MemoryError):
        catalog.put(many)
    assert catalog.store.version() == before


def test_work_can_be_done_elsewhere_in_any_blocks(tmp_path: Path, folder: Path):
    """Work and its photos are pickled, encoded apart from the catalog, and committed: the content is that of ``index``."""
    (folder / "men" / "bag" / "text.jpg").write_text("not a photo")
    here = lookalike.open(tmp_path / "here", encoder="fake")
    here.index(folder)
    there = lookalike.open(tmp_path / "there", encoder="fake")
    source = lookalike.sources.open_source(folder)
    with there.store.writing():
        plan = indexing.Plan(there.store, there.encoder, "fake", source)
        work, todo = pickle.loads(pickle.dumps((plan.work, plan.todo)))
        for block in (todo[:1], todo[20:], todo[1:20], []):
            rows, refused = work.rows(there.encoder, block)
            plan.count(rows, refused)
            plan.commit(rows)
        plan.finish()
        plan.close()
    assert counts(plan.report) == (24, 0, 0, 0, 1)
    files = [tmp_path / f"{n}.parquet" for n in "ab"]
    for catalog, file in zip((here, there), files, strict=True):
        assert catalog.export(file, vectors=True) == 24
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [q.reason for q in there.quarantine()] == [q.reason for q in here.quarantine()]
    with pytest.raises(EncoderMismatch, match="planned for the encoder fake-1"):
        work.rows(lookalike.encoders.load("builtin"), todo)


def test_places_are_those_of_a_version_whatever_was_removed_and_merged(
    tmp_path: Path, catalog: lookalike.Catalog, folder: Path
):
    store = catalog.store
    catalog.remove("p03", "p07")
    catalog.index(folder)
    version = store.version()
    rows = store.rows(version=version)
    catalog.remove("p01")
    catalog.compact()
    blocks = list(store.scan(["lk_id", "lk_vector"], version, block=5))
    assert max(map(len, blocks)) <= 5
    assert pa.Table.from_batches(blocks).equals(rows.select(["lk_id", "lk_vector"]))
    places = [30, 2, 11, 2]
    assert store.take(places, ["lk_vector", "lk_photo"], version).equals(
        rows.select(["lk_vector", "lk_photo"]).take(places)
    )


def test_a_few_products_read_their_own_rows_alone(
    tmp_path: Path, catalog: lookalike.Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of other rows of a catalog nothing but the ids is looked at: 1,000 photos cost the same wherever they go."""
    catalog.index(folder)
    real, taken = type(catalog.store).take, []
    monkeypatch.setattr(type(catalog.store), "rows", lambda *a, **k: pytest.fail("read everything"))
    monkeypatch.setattr(
        type(catalog.store), "take", lambda s, places, *a: (taken.extend(places), real(s, places, *a))[1]
    )
    catalog.put([product(tmp_path, "p00", "black"), product(tmp_path, "new", "red")])
    assert len(taken) == 2  # p00 had two photos
    assert not catalog.store.dataset().tags.list()  # no version is held for it
    catalog.index([product(tmp_path, "more", "blue"), product(tmp_path, "new", "red")])
    assert len(taken) == 4  # its row, and its vector, which is kept
    catalog.remove("p05")
    assert len(taken) == 5


def test_vectors_of_known_content_outlive_commits_and_compactions(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """What a run read from is kept until its end, and no longer, though nothing else would keep it."""
    monkeypatch.setattr(indexing, "COMMIT_ROWS", 1)
    monkeypatch.setattr(indexing, "BATCH", 2)
    monkeypatch.setattr("lookalike.store.COMPACT_AT", 2)
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(microseconds=1))
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    catalog.index(folder)
    vectors = {r["lk_digest"]: r["lk_vector"] for r in catalog.store.rows(["lk_digest", "lk_vector"]).to_pylist()}
    catalog.store.hold(catalog.store.version())  # as a killed run leaves it
    with catalog.store.writing():
        catalog.store.commit(catalog.store.rows().slice(0, 1), replaces=True)
    folder.rename(tmp_path / "moved")
    catalog.encoder.encode_photos = lambda pixels: pytest.fail("encoded again")  # type: ignore[method-assign]
    source = lookalike.sources.open_source(tmp_path / "moved")
    source.key = str(folder)
    for shift, found in enumerate(source.products):  # every product has another's photo now
        source.products[shift] = replace(found, photos=[sorted((tmp_path / "moved").rglob("*.jpg"))[shift - 1]])
    report = catalog.index(source)
    assert report.updated + report.unchanged == 24 and report.updated > 12
    rows = catalog.store.rows(["lk_digest", "lk_vector"]).to_pylist()
    assert {r["lk_digest"] for r in rows} == set(vectors)
    assert all(r["lk_vector"] == vectors[r["lk_digest"]] for r in rows)
    assert not catalog.store.dataset().tags.list()


@pytest.mark.parametrize("at_once", [1, 7, 30])
def test_commits_cost_the_same_however_large_a_catalog_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
):
    """Compaction rewrites a row once per size, and few fragments remain."""
    monkeypatch.setattr("lookalike.store.COMPACT_AT", 4)
    monkeypatch.setattr("lookalike.store.SMALLEST", 8)
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(microseconds=1))
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    draw(tmp_path / "photos" / "0.jpg", "red", "bag")
    catalog.index(tmp_path / "photos")
    row = catalog.store.rows()
    rewritten, total = 0, 1
    while total < 300:
        numbers = [f"{n:05}" for n in range(total, total + at_once)]
        rows = row.take([0] * at_once).set_column(0, row.schema.field(0), pa.array(numbers))
        with catalog.store.writing():
            catalog.store.commit(rows, replaces=False)
            before = {f.fragment_id for f in catalog.store.dataset().get_fragments()}
            if catalog.store.compact():
                after = [f for f in catalog.store.dataset().get_fragments() if f.fragment_id not in before]
                rewritten += sum(f.metadata.num_rows for f in after)
        total += at_once
        assert len(catalog.store.dataset().get_fragments()) < 4 * 5
    assert (
        rewritten <= 5 * total
    )  # sizes up to 8, 32, 128, 512: merging all of them each time would be 20 times as much
    kept = sorted(catalog.store.rows(["lk_photo"])["lk_photo"].to_pylist())[:-1]  # the last is the photo's own
    assert kept == [f"{n:05}" for n in range(1, total)]


def test_a_catalog_without_versions_is_not_filled_again(catalog: lookalike.Catalog, table: Path):
    """Not to be read is not to be empty: all rows would be put in a second time."""
    for file in (catalog.store.photos / "_versions").iterdir():
        file.unlink()
    with pytest.raises(CatalogError, match=r"photos\.lance has no version; the catalog is damaged"):
        catalog.index(table)


def test_rows_that_cannot_be_read_for_a_moment_are_not_discarded(
    catalog: lookalike.Catalog, table: Path, monkeypatch: pytest.MonkeyPatch
):
    import lance

    (catalog.store.directory / "catalog.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(lance, "dataset", lambda *a, **k: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        with pytest.raises(CatalogError, match=r"photos\.lance is here but catalog\.json is gone"):
            lookalike.open(catalog.store.directory, encoder="fake").index(table)
    assert lance.dataset(str(catalog.store.photos)).count_rows() == 13


def test_quarantine_is_kept_where_a_version_cannot_be_let_go(
    catalog: lookalike.Catalog, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "img" / "3.jpg").write_bytes(b"no photo")
    monkeypatch.setattr(type(catalog.store), "release", lambda *a: (_ for _ in ()).throw(CatalogError("no answer")))
    with pytest.raises(CatalogError, match="no answer"):
        catalog.index(table)
    assert len(catalog.quarantine()) == 1


def test_what_a_killed_run_held_goes_with_the_next_compaction(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(microseconds=1))
    catalog.store.hold(1)  # as by a run that was killed: another object's
    other = lookalike.open(catalog.store.directory)
    other.store.hold(2, "theirs")
    other.compact()
    assert other.store.held() == ["theirs"]
    catalog.compact()  # what this object holds it goes on holding
    catalog.store.hold(catalog.store.version())
    catalog.compact()
    assert sorted(catalog.store.held()) == ["indexing", "theirs"]


def test_deletions_alone_are_compacted_and_their_versions_dropped(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    catalog.remove(*(f"p{n:02}" for n in range(5)))  # six photos of 13
    (fragment,) = catalog.store.dataset().get_fragments()
    assert (fragment.metadata.num_rows, fragment.metadata.num_deletions) == (7, 6)
    catalog.remove("p05")
    (fragment,) = catalog.store.dataset().get_fragments()
    assert (fragment.metadata.num_rows, fragment.metadata.num_deletions) == (6, 0)
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(microseconds=1))
    monkeypatch.setattr("lookalike.store.COMPACT_AT", 2)
    monkeypatch.setattr("lookalike.store.MANY_VERSIONS", 3)
    time.sleep(0.6)  # versions of one moment are kept together
    for n in (6, 7):
        catalog.remove(f"p{n:02}")
    assert len(catalog.store.dataset().versions()) <= 3


def test_small_fragments_between_large_ones_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "COMPACT_AT", 4)
    monkeypatch.setattr(store, "SMALLEST", 8)  # sizes up to 8, 32, 128
    assert store._due([200, 1] * 20) is None
    assert store._due([200, 1, 1, 1, 1, 200]) == 8
    assert store._due([9, 1, 9, 1, 9, 1, 9, 1]) == 32
    assert store._due([9, 1, 1, 1]) is None


def test_a_file_that_is_not_the_one_that_was_planned_makes_no_row(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """It may be another machine's, or have changed since: it is told, and due in the next run."""
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    photo, real = folder / "men" / "bag" / "red-0.jpg", indexing.Plan.__init__

    def slow(self: indexing.Plan, *args: object, **more: object) -> None:
        real(self, *args, **more)
        draw(photo, "green", "dress", 5)

    with monkeypatch.context() as patch:
        patch.setattr(indexing.Plan, "__init__", slow)
        assert counts(catalog.index(folder)) == (23, 0, 0, 0, 1)
    assert "not the file that was planned" in catalog.quarantine()[0].reason
    assert counts(catalog.index(folder)) == (1, 0, 23, 0, 0)
    assert not catalog.quarantine()


def test_a_commit_that_began_ends_however_often_one_interrupts():
    """The write lock is let go right after ``close``: nothing may be written then."""
    began, may_end, ended = threading.Event(), threading.Event(), []
    plan = SimpleNamespace(commit=lambda rows: (began.set(), may_end.wait(10), ended.append(len(rows))))
    commits = indexing._Commits(plan)  # type: ignore[arg-type]
    commits.add(pa.table({"lk_photo": ["a"], "lk_id": ["a"]}))

    def impatient() -> None:
        began.wait(10)
        for _ in range(3):
            time.sleep(0.2)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        time.sleep(0.2)
        may_end.set()

    thread = threading.Thread(target=impatient)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell started beside itself ignores it
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            commits.close(True)
        assert ended == [1]
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_full_disk_leaves_the_index_that_was_there(catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch):
    from lookalike import segment

    monkeypatch.setattr(segment, "_made", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CatalogError, match="disk is full; the index that was there is as it was") as told:
        catalog.reindex()
    assert "batch" not in str(told.value)


def test_a_plan_for_another_encoder_is_refused(catalog: lookalike.Catalog, folder: Path):
    encoder, source = lookalike.encoders.load("builtin"), lookalike.sources.open_source(folder)
    with catalog.store.writing(), pytest.raises(EncoderMismatch, match="made by fake"):
        indexing.Plan(catalog.store, encoder, "builtin", source)
