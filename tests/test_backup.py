"""Backups: whole or not at all, and the same catalog again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import threading
import zipfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import lookalike
from conftest import draw
from lookalike import backup, feedback
from lookalike.cli import app
from lookalike.errors import CatalogError, InputError
from lookalike.server import keys
from lookalike.server.writing import Given, Writer


@pytest.fixture
def shop(catalog: lookalike.Catalog, tmp_path: Path) -> lookalike.Catalog:
    return furnished(catalog, tmp_path)


def furnished(catalog: lookalike.Catalog, tmp_path: Path) -> lookalike.Catalog:
    """A catalog with everything beside the rows: an upload, a download, a key, a vote, an entry of quarantine."""
    photo = draw(tmp_path / "one.jpg", "green", "bag", 2)
    Writer(catalog).put([Given("up", "uploaded bag", {"colour": "Green"}, [photo.read_bytes()])])
    name = catalog.store.directory / "downloads" / "ab" / ("ab" + "0" * 30)
    name.parent.mkdir(parents=True)
    name.write_bytes(photo.read_bytes())
    Path(f"{name}.json").write_text('{"address": "https://shop.example/a.jpg", "fresh_until": 0}')
    (name.parent / "unused").write_bytes(b"no row has it")
    (tmp_path / "bad.jpg").write_text("no photo")
    fetched = lookalike.Product("fetched", [f"{name}#xywh=0,0,40,50"], "a part", {"price": 5})
    catalog.index([fetched, lookalike.Product("bad", [tmp_path / "bad.jpg"])])
    keys.add(catalog.store.directory, "till", "write")
    feedback.keep(catalog.store.directory, feedback.vote("p01", "up", {"text": "red"}))
    with (catalog.store.directory / feedback.FILE).open("a") as file:
        file.write('{"half')
    return catalog


def exported(catalog: lookalike.Catalog, file: Path) -> list[dict[str, object]]:
    catalog.export(file, vectors=True)
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_restored_is_what_was_backed_up(tmp_path: Path, shop: lookalike.Catalog):
    told = shop.backup(tmp_path / "b.zip")
    assert (told["photos"], told["files"], told["missing"], told["version"]) == (15, 2, [], shop.store.version())
    assert told["bytes"] == (tmp_path / "b.zip").stat().st_size
    assert not shop.store.held()
    before, there = exported(shop, tmp_path / "before.jsonl"), shop.store.directory
    there.rename(tmp_path / "gone")
    found = lookalike.restore(tmp_path / "b.zip", tmp_path / "new" / "shop")
    assert found == {"catalog": str(tmp_path / "new/shop"), "photos": 15, "damaged": [], "changed": [], "missing": []}
    made = lookalike.open(tmp_path / "new" / "shop")
    after = exported(made, tmp_path / "after.jsonl")
    moved = [{**row, "image": str(row["image"]).replace(str(there), str(made.store.directory))} for row in before]
    assert after == moved
    assert sum(a["image"] != b["image"] for a, b in zip(before, after, strict=True)) == 2
    assert made.store.manifest() == shop_manifest(tmp_path / "gone")
    assert [(q.item, q.reason) for q in made.quarantine()] == [
        (q.item, q.reason) for q in lookalike.open(tmp_path / "gone").quarantine()
    ]
    assert [k.name for k in keys.read(made.store.directory)] == ["till"]
    assert stat.S_IMODE((made.store.directory / "keys.json").stat().st_mode) == 0o600
    assert [v.product for v in feedback.read(made.store.directory)] == ["p01"]
    assert sorted(p.name for p in (made.store.directory / "downloads" / "ab").iterdir()) == [
        "ab" + "0" * 30,
        f"ab{'0' * 30}.json",
    ]
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["shop"]
    assert made.search("red shirt", k=3) == lookalike.open(tmp_path / "gone").search("red shirt", k=3)
    again = made.index(tmp_path / "products.csv")
    assert (again.unchanged, again.added, again.updated) == (13, 0, 0)


def shop_manifest(directory: Path) -> object:
    return lookalike.open(directory).store.manifest()


def test_a_moved_catalog_backs_its_photos_up_where_they_are_now(tmp_path: Path, shop: lookalike.Catalog):
    shop.store.directory.rename(tmp_path / "moved")
    told = lookalike.open(tmp_path / "moved").backup(tmp_path / "b.zip")
    assert (told["files"], told["missing"]) == (2, [])
    assert lookalike.restore(tmp_path / "b.zip", tmp_path / "back")["missing"] == []


def test_a_catalog_behind_a_link_or_copied_keeps_and_backs_up_its_own_photos(
    tmp_path: Path, catalog: lookalike.Catalog
):
    """Rows name the place where the photo was put, which is there too."""
    (tmp_path / "link").symlink_to(tmp_path)
    photo = draw(tmp_path / "one.jpg", "green", "bag", 2)
    linked = lookalike.open(tmp_path / "link" / "shop.catalog", encoder="fake")
    Writer(linked).put([Given("up", "a bag", {}, [photo.read_bytes()])])
    assert catalog.backup(tmp_path / "b.zip")["files"] == 1
    shutil.copytree(tmp_path / "shop.catalog", tmp_path / "copy")
    writer = Writer(lookalike.open(tmp_path / "copy", encoder="fake"))
    (upload,) = writer.uploads.glob("*/*")
    orphan = upload.with_name("ab" * 32)
    orphan.touch()
    for file in (upload, orphan):
        os.utime(file, (1, 1))
    writer.sweep()
    assert (upload.is_file(), orphan.is_file()) == (True, False)


def test_a_backup_leaves_nothing_that_its_owner_cannot_write(tmp_path: Path, catalog: lookalike.Catalog):
    """Root may make it; a backup has the keys, and is its maker's alone."""
    before = {p for p in catalog.store.directory.rglob("*") if p.is_dir()}
    catalog.backup(tmp_path / "b.zip")
    assert {p for p in catalog.store.directory.rglob("*") if p.is_dir()} == before
    assert (tmp_path / "b.zip").stat().st_mode & 0o077 == 0 or os.name == "nt"


def test_an_empty_directory_is_filled_and_stays(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch):
    """It may be a mounted volume, a link, or where one is."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    number = (tmp_path / "here").stat().st_ino

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup.restore(whole, tmp_path / "link", progress=stop)
    assert not list((tmp_path / "here").iterdir())
    monkeypatch.chdir(tmp_path / "here")
    assert lookalike.restore(whole, ".")["damaged"] == []
    assert (tmp_path / "link").stat().st_ino == number
    assert not list((tmp_path / "here").glob(".*"))
    with pytest.raises(CatalogError, match="not empty"):
        lookalike.restore(whole, tmp_path / "link")


def test_the_same_version_gives_the_same_bytes_and_no_file_is_replaced_unasked(tmp_path: Path, shop: lookalike.Catalog):
    shop.backup(tmp_path / "a.zip")
    shop.backup(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with pytest.raises(InputError, match=r"b\.zip: is there already; give another name, or --overwrite"):
        shop.backup(tmp_path / "b.zip")
    shop.remove("p03")
    shop.backup(tmp_path / "b.zip", overwrite=True)
    assert (tmp_path / "a.zip").read_bytes() != (tmp_path / "b.zip").read_bytes()


def test_a_writer_and_compaction_meanwhile_change_nothing(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    """All of one version, though the rows that it began with are replaced, merged, and their version's time is up."""
    monkeypatch.setattr("lookalike.store.KEEP_VERSIONS", timedelta(microseconds=1))
    monkeypatch.setattr(backup, "BLOCK", 2)
    before = exported(catalog, tmp_path / "before.jsonl")
    other = lookalike.open(catalog.store.directory)
    draw(tmp_path / "n.jpg", "black", "bag")

    def meanwhile(done: int, total: int) -> None:
        if done in (4, 8):
            other.put([lookalike.Product(f"n{done}", [tmp_path / "n.jpg"], "new")])
            other.remove(f"p{done:02}")
            other.compact()

    catalog.backup(tmp_path / "b.zip", progress=meanwhile)
    lookalike.restore(tmp_path / "b.zip", tmp_path / "back")
    assert exported(lookalike.open(tmp_path / "back"), tmp_path / "after.jsonl") == before
    assert not catalog.store.held()


def test_an_upload_that_vanishes_meanwhile_is_told(tmp_path: Path, shop: lookalike.Catalog):
    def meanwhile(done: int, total: int) -> None:
        if done == total == 15:
            Writer(shop).remove("up")

    told = shop.backup(tmp_path / "b.zip", progress=meanwhile)
    assert told["files"] == 1
    assert len(told["missing"]) == 1
    assert "uploads" in lookalike.restore(tmp_path / "b.zip", tmp_path / "back")["missing"][0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_backup_or_restore_leaves_nothing(tmp_path: Path, shop: lookalike.Catalog, error: BaseException):
    def stop(done: int, total: int) -> None:
        raise error

    kind = KeyboardInterrupt if error is KeyboardInterrupt else InputError
    shop.backup(tmp_path / "whole.zip")
    here = sorted(tmp_path.iterdir())
    with pytest.raises(kind):
        shop.backup(tmp_path / "b.zip", progress=stop)
    assert not shop.store.held()
    with pytest.raises((kind, CatalogError)):
        backup.restore(tmp_path / "whole.zip", tmp_path / "back", progress=stop)
    assert sorted(tmp_path.iterdir()) == here


def test_a_backup_that_was_killed_holds_its_version_for_a_day(catalog: lookalike.Catalog):
    catalog.store.hold(1, "backup-1000000000-abcd0123")
    catalog.store.hold(1, "backup-9999999999-abcd0123")
    catalog.compact()
    assert len(catalog.store.held()) == 2  # what this object holds it goes on holding
    lookalike.open(catalog.store.directory).compact()
    assert lookalike.open(catalog.store.directory).store.held() == ["backup-9999999999-abcd0123"]


def test_photos_elsewhere_are_found_where_they_are_now(
    tmp_path: Path, catalog: lookalike.Catalog, monkeypatch: pytest.MonkeyPatch
):
    catalog.backup(tmp_path / "b.zip")
    (tmp_path / "img").rename(tmp_path / "pictures")
    runner = CliRunner()
    arguments = ["restore", str(tmp_path / "b.zip"), "--catalog"]
    lost = runner.invoke(app, [*arguments, str(tmp_path / "lost"), "--json"])
    assert len(json.loads(lost.stdout)["missing"]) == 13
    moved = f"{tmp_path / 'img'}={tmp_path / 'pictures'}"
    found = runner.invoke(app, [*arguments, str(tmp_path / "found"), "--photos", moved, "--json"])
    assert json.loads(found.stdout)["missing"] == []
    monkeypatch.chdir(tmp_path)
    for old, new, lost in ((f"{tmp_path}/img/", "pictures", 0), ("/", "/", 13), (f"{tmp_path}/im", "pictures", 13)):
        shutil.rmtree(tmp_path / "found")
        told = lookalike.restore(tmp_path / "b.zip", tmp_path / "found", photos={old: new})
        assert len(told["missing"]) == lost, old
    assert "write it as OLD=NEW" in str(
        runner.invoke(app, [*arguments, str(tmp_path / "x"), "--photos", "a"]).exception
    )


def test_commands(tmp_path: Path, shop: lookalike.Catalog):
    runner, file = CliRunner(), tmp_path / "b.zip"
    told = runner.invoke(app, ["backup", str(file), "--catalog", str(shop.store.directory)])
    assert f"15 photos' rows and 2 files of the catalog's own photos in {file}" in told.output
    assert (
        json.loads(
            runner.invoke(
                app, ["backup", str(file), "--overwrite", "--json", "--catalog", str(shop.store.directory)]
            ).stdout
        )["photos"]
        == 15
    )
    refused = runner.invoke(app, ["restore", str(file), "--catalog", str(shop.store.directory)])
    assert isinstance(refused.exception, CatalogError)
    assert "not empty; restore to a directory that is new or empty" in str(refused.exception)
    (tmp_path / "back").mkdir()
    found = runner.invoke(app, ["restore", str(file), "--catalog", str(tmp_path / "back")])
    assert "15 photos checked: 0 damaged, 0 changed, 0 missing" in found.output


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of two products."""
    place = tmp_path_factory.mktemp("backup")
    furnished(lookalike.open(place / "shop", encoder="fake"), place).backup(place / "b.zip")
    return place / "b.zip"


def edited(change: Callable[[dict[str, object], dict[str, bytes]], None]) -> Callable[[Path], None]:
    """A backup whose contents and members are changed, sizes and digests as they then are."""

    def edit(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        contents = json.loads(members.pop("backup.json"))
        change(contents, members)
        for name, content in members.items():
            contents["members"].setdefault(name, {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()})
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in {**members, "backup.json": json.dumps(contents).encode()}.items():
                archive.writestr(name, content)

    return edit


def rezipped(compression: int) -> Callable[[Path], None]:
    def edit(file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return edit


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = content.index(b"uploads/") + 200  # within the photo
    content[at] ^= 1
    file.write_bytes(content)


def twice(file: Path) -> None:
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("rows.arrow", b"")


def other_rows(contents: dict[str, object], members: dict[str, bytes]) -> None:
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, pa.schema([("lk_id", pa.string())])):
        pass
    members["rows.arrow"] = out.getvalue().to_pybytes()
    contents["members"].pop("rows.arrow")  # type: ignore[attr-defined]


def named(name: str) -> Callable[[Path], None]:
    return edited(lambda contents, members: members.update({name: b"x"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_bytes(b"no zip"), "no backup of lookalike, or not whole"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "no backup of lookalike, or not whole"),
        (lambda file: file.unlink(), "no such file"),
        (rezipped(zipfile.ZIP_DEFLATED), "backup.json is larger than any|is packed"),
        (flipped, r"Bad CRC-32|its SHA-256 is another"),
        (twice, "its members are not those that it lists"),
        (edited(lambda c, m: c.update(format=2)), "a backup of format 2, this version reads up to 1; upgrade lookalike"),
        (edited(lambda c, m: c["catalog"].update(format=9)), "a catalog of format 9, this version reads up to 1"),
        (edited(lambda c, m: c["catalog"].pop("encoder")), r"damaged \(backup.json: .*encoder"),
        (edited(lambda c, m: c.pop("places")), "damaged .*places"),
        (edited(lambda c, m: c.pop("format")), "damaged .*format"),
        (edited(lambda c, m: c.update(rows=3)), "2 rows, not 3"),
        (edited(lambda c, m: m.pop("keys.json")), "its members are not those that it lists"),
        (edited(lambda c, m: c["members"]["keys.json"].update(sha256="0" * 64)), "keys.json is not what was backed up"),
        (edited(lambda c, m: c["members"]["keys.json"].update(size=3)), r"keys.json has \d+ bytes, not 3"),
        (edited(other_rows), "the column lk_photo is not what catalog.json says"),
        (edited(lambda c, m: c["catalog"].update(dim=32)), "the column lk_vector is not what catalog.json says"),
        (edited(lambda c, m: c["catalog"]["kinds"].update(price="text")), "the column price is not what"),
        (named("../evil"), "a member '../evil', which no backup has"),
        (named("/etc/evil"), "a member '/etc/evil'"),
        (named("uploads/../../evil"), "a member 'uploads/../../evil'"),
        (named("uploads/.hidden"), "a member 'uploads/.hidden'"),
        (named("uploads/a\\..\\b"), "a member "),
        (named("catalog.json"), "a member 'catalog.json'"),
    ],
)  # fmt: skip
def test_what_is_no_backup_makes_no_catalog(tmp_path: Path, whole: Path, change: Callable[[Path], None], message: str):
    shutil.copy(whole, tmp_path / "b.zip")
    change(tmp_path / "b.zip")
    here = sorted(p for p in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        lookalike.restore(tmp_path / "b.zip", tmp_path / "back")
    assert sorted(p for p in tmp_path.rglob("*")) == here


def test_two_restores_at_once_make_one_catalog(tmp_path: Path, whole: Path):
    errors: list[BaseException] = []

    def restore() -> None:
        try:
            lookalike.restore(whole, tmp_path / "back")
        except CatalogError as error:
            errors.append(error)

    threads = [threading.Thread(target=restore) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert len(lookalike.open(tmp_path / "back").snapshot()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["back"]
