"""Catalogs on object storage, over a real S3 protocol on loopback."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import lookalike
from conftest import draw
from lookalike import feedback, objects
from lookalike.cli import app
from lookalike.errors import CatalogError, CatalogLocked, InputError, UsageError
from lookalike.server import keys
from lookalike.store import Store

VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server on loopback, and the variables that name it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    # botocore, which moto imports, looks for these, too; nothing here may come from outside.
    before = {name: os.environ.get(name) for name in VARIABLES}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    os.environ.update(zip(VARIABLES, (address, "key", "secret", "us-east-1"), strict=True))
    yield address
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def address(endpoint: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix in a bucket of its own."""
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "cache"))
    bucket = hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket}", method="PUT"))
    return f"s3://{bucket}/shops/one"


def run(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def exported(catalog: str | Path, file: Path) -> bytes:
    run("export", str(file), "--catalog", str(catalog))
    return file.read_bytes()


def test_every_command_works_on_object_storage(address: str, table: Path, tmp_path: Path):
    (tmp_path / "img" / "11.jpg").write_bytes(b"no photo")
    local = tmp_path / "local"
    for catalog in (address, str(local)):
        done = json.loads(run("index", str(table), "--catalog", catalog, "--encoder", "fake", "--json"))
        assert (done["added"], done["quarantined"]) == (12, 1)
    assert exported(address, tmp_path / "a.csv") == exported(local, tmp_path / "b.csv")
    on = ("--catalog", address)
    assert json.loads(run("index", str(table), *on, "--json"))["unchanged"] == 12
    ours, theirs = (
        json.loads(run("search", "red shirt", "--where", "gender = 'Men'", "--catalog", c, "--json"))["hits"]
        for c in (address, str(local))
    )
    assert ours == theirs and ours
    status = json.loads(run("status", *on, "--json"))
    assert (status["catalog"], status["photos"], status["quarantined"]) == (address, 12, 1)
    assert "11.jpg" in run("quarantine", *on)
    assert "0 damaged, 0 changed, 0 missing" in run("verify", *on)
    run("remove", "p01", *on)
    run("compact", *on)
    draw(tmp_path / "img" / "2.jpg", "red", "bag")
    again = json.loads(run("index", str(table), *on, "--json"))
    assert (again["added"], again["updated"]) == (1, 1)
    run("index", str(table), "--catalog", str(local))
    assert exported(address, tmp_path / "a.csv") == exported(local, tmp_path / "b.csv")
    secret = run("keys", "add", "shop", "--scope", "search", *on).split()[0]
    assert keys.Keys(address).find(secret).name == "shop"  # type: ignore[union-attr]
    run("keys", "remove", "shop", *on)
    assert not keys.Keys(address).all()
    assert not Path("s3:").exists() and not list(Path.cwd().glob("s3*"))


def test_another_process_sees_a_commit_and_finds_the_same(address: str, table: Path, folder: Path):
    writer, reader = lookalike.open(address, encoder="fake"), lookalike.open(Path(address), encoder="fake")
    writer.index(table)
    assert len(reader.search("red shirt", k=20)) == 12
    writer.index(folder)
    deadline = time.monotonic() + 5
    while len(reader.search("red shirt", k=50)) != 36:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert writer.search("red", k=36) == reader.search("red", k=36)


def test_two_writers_never_hold_the_lease_and_the_holder_is_named(address: str, table: Path):
    one, other = Store(address), Store(address)
    with one.writing("index"):
        with (
            pytest.raises(CatalogLocked, match=rf"process {os.getpid()} on .* \(index, since") as told,
            other.writing(),
        ):
            pass
        assert "taken over in" in str(told.value)
    with other.writing():
        pass

    # Of many at once, on a fresh prefix, exactly one gets it.
    held, refused = [], []
    ready, over = threading.Barrier(8), threading.Event()

    def compete() -> None:
        store = Store(f"{address}/race")
        ready.wait()
        try:
            with store.writing():
                held.append(1)
                over.wait(20)
        except CatalogLocked:
            refused.append(1)
            if len(refused) == 7:
                over.set()

    threads = [threading.Thread(target=compete) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert (len(held), len(refused)) == (1, 7)


def test_a_killed_writers_lease_lapses_and_its_run_is_gone_on_with(
    address: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = f"""
import time, lookalike
from lookalike import indexing, objects, store
objects.LEASE = 2.0
indexing.BATCH = indexing.COMMIT_ROWS = 4
commit = store.Store.commit
def slow(self, *args, **more):
    commit(self, *args, **more)
    print("committed", flush=True)
    time.sleep(0.5)
store.Store.commit = slow
lookalike.open({address!r}, encoder="fake").index({str(folder)!r})
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert [child.stdout.readline().strip() for _ in range(2)] == ["committed"] * 2
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    left = Store(address).rows(["lk_photo"]).num_rows
    assert 8 <= left < 24
    again = lookalike.open(address, encoder="fake")
    with pytest.raises(CatalogLocked, match=f"process {child.pid} "):
        again.index(folder)
    deadline = time.monotonic() + 15
    while True:
        try:
            report = again.index(folder)
            break
        except CatalogLocked:
            assert time.monotonic() < deadline
            time.sleep(0.3)
    assert (report.added, report.unchanged) == (24 - left, left)
    lookalike.open(tmp_path / "local", encoder="fake").index(folder)
    assert exported(address, tmp_path / "a.csv") == exported(tmp_path / "local", tmp_path / "b.csv")


def test_whoever_lost_the_lease_writes_nothing_more(address: str, table: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objects, "LEASE", 0.5)
    monkeypatch.setattr(objects.Lease, "_keep", lambda self: None)  # as a process that is stopped for a while
    catalog, other = lookalike.open(address, encoder="fake"), Store(address)
    catalog.index(table)
    before = catalog.store.version()
    with catalog.store.writing(), pytest.raises(CatalogError, match="took over"):
        deadline = time.monotonic() + 10
        while True:
            try:
                with other.writing("remove"):
                    assert time.monotonic() < deadline
                    catalog.store.delete(["0" * 24])
            except CatalogLocked:
                time.sleep(0.3)
    assert other.version() == before


def test_what_is_wrong_with_the_storage_is_said(
    address: str, table: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
):
    bucket = address.split("/")[2]
    made = lookalike.open(address, encoder="fake")
    made.index(table)
    with pytest.raises(CatalogError, match="no such bucket; create it"):
        lookalike.open("s3://nowhere-at-all/x")
    with pytest.raises(CatalogError, match=r"not a catalog \(no catalog.json, but other files\)"):
        lookalike.open(f"s3://{bucket}/shops", encoder="fake").index(table)
    assert objects.at(f"s3://{bucket}").entries("shops/") == {"one"}
    with pytest.raises(CatalogError, match="local directory or at s3://"):
        lookalike.open("ftp://host/x")
    with pytest.raises(CatalogError, match="names no bucket"):
        lookalike.open("s3://")
    with pytest.raises(CatalogError, match="no catalog there; make one"):
        CliRunner().invoke(app, ["status", "--catalog", f"s3://{bucket}/none"], catch_exceptions=False)
    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises(CatalogError, match="does not answer; check AWS_ENDPOINT_URL"):
            lookalike.open(address)
        with pytest.raises(CatalogError, match="does not answer"):
            made.store.dataset()
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(CatalogError, match="no credentials; set AWS_ACCESS_KEY_ID"):
            lookalike.open(address)
    assert time.monotonic() - start < 20
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "obstore.store", None)
        with pytest.raises(UsageError, match=r"pip install 'lookalike\[cluster\]'"):
            objects.Remote("s3://another/x")


def test_votes_are_objects_in_their_order(address: str):
    for n, kind in enumerate(("up", "down", "up")):
        feedback.keep(address, feedback.vote(f"p{n}", kind, {"text": "red"}))
    feedback.keep(address, feedback.vote("p1", "none", {"text": "red"}))
    assert [(v.product, v.vote) for v in feedback.read(address)] == [("p0", "up"), ("p2", "up")]


def test_the_server_follows_and_says_what_it_cannot_keep(address: str, table: Path, folder: Path):
    from fastapi.testclient import TestClient

    from lookalike.server.app import create_app

    writer = lookalike.open(address, encoder="fake")
    writer.index(table)
    with TestClient(create_app(lookalike.open(address), "secret"), base_url="http://127.0.0.1") as client:
        client.headers["authorization"] = "Bearer secret"
        first = client.get("/api/search", params={"text": "red", "k": 1}).json()
        assert first["total"] == 12
        photo = client.get(f"/api/photos/{first['hits'][0]['photo']}")
        assert photo.status_code == 200 and photo.headers["content-type"] == "image/jpeg"
        writer.index(folder)
        deadline = time.monotonic() + 5
        while client.get("/api/search", params={"text": "red"}).json()["total"] != 36:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with (folder / "men" / "bag" / "red-0.jpg").open("rb") as file:
            refused = client.put("/api/products/new", files={"photo": file})
        assert refused.status_code == 422 and "object storage" in refused.json()["detail"]
        told = client.put("/api/products/p00", json={"title": "Better", "attributes": {"colour": "Plum"}})
        assert told.status_code == 200 and told.json()["updated"] == 2
        assert client.get("/api/products/p00").json()["title"] == "Better"
        assert client.delete("/api/products/p01").status_code == 204
        assert client.get("/api/products/p01").status_code == 404
        voted = client.post("/api/feedback", json={"product": "p00", "vote": "up", "query": {"text": "red"}})
        assert voted.status_code == 204
    assert [v.product for v in feedback.read(address)] == ["p00"]


def test_storage_that_ignores_conditions_is_refused(address: str, monkeypatch: pytest.MonkeyPatch):
    remote = objects.Remote(address)
    put = objects.Remote._put
    monkeypatch.setattr(objects.Remote, "_put", lambda self, name, text, mode: put(self, name, text, "overwrite"))
    with pytest.raises(CatalogError, match="ignores conditional writes"), remote.lock("writer", "index"):
        pass
    assert remote.under() == []


def test_what_is_derived_lies_in_a_cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str):
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path))
    one, other = Store("s3://a/shop"), Store("s3://b/shop")
    assert one.cache != other.cache and one.cache.is_relative_to(tmp_path) and one.cache.name == "index"
    assert Store("s3://a/shop/").cache == one.cache == Store(Path("s3:/a/shop")).cache
    local = Store(tmp_path / "here")
    assert local.cache == tmp_path / "here" / "index"
    with pytest.raises(InputError):  # nothing was made by looking
        lookalike.open(tmp_path / "here").index(tmp_path / "none.csv")
    assert not (tmp_path / "here").exists()


def test_local_catalogs_need_no_obstore(table: Path, tmp_path: Path):
    code = f"""
import sys
sys.modules["obstore"] = None
import lookalike
made = lookalike.open({str(tmp_path / "c")!r}, encoder="fake")
made.index({str(table)!r})
assert len(made.search("red")) == 12
assert not [m for m in sys.modules if m.startswith(("obstore.", "ray", "boto"))]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
