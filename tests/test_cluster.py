"""Catalogs on object storage, over a real S3 protocol on loopback; indexing by a Ray cluster of processes here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from typer.testing import CliRunner

import lookalike
from conftest import COLOURS, KINDS, draw, write_csv
from lookalike import cluster, feedback, indexing, objects
from lookalike.cli import app
from lookalike.errors import CatalogError, CatalogLocked, EncoderMismatch, InputError, UsageError
from lookalike.server import keys
from lookalike.sources import open_source
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
    (known := keys.Keys(address)).refresh()
    assert known.find(secret).name == "shop"  # type: ignore[union-attr]
    run("keys", "remove", "shop", *on)
    known.refresh()
    assert not known.all()
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
    assert 7 <= left < 24  # the last product of a commit waits for the next one: more of its photos may come
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


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


class Ray:
    """A head without cores and nodes with one each, as processes of their own."""

    def __init__(self, folder: Path):
        self.log = (folder / "ray.log").open("w")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.temp = tempfile.mkdtemp(prefix="lkray")  # sockets lie there: a short path
        head = ("--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={self.temp}", "--include-dashboard=false")
        self.processes = [self.start(*head)]
        deadline = time.monotonic() + 60
        while not self.answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    @staticmethod
    def answers(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def start(self, *words: str, host: str = "127.0.0.1") -> subprocess.Popen[bytes]:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
        more = [f"--node-ip-address={host}", f"--object-store-memory={80 * 2**20}"]
        ports = ["--min-worker-port=0", "--max-worker-port=0"]
        return subprocess.Popen([*ray, *words, *more, *ports], stdout=self.log, stderr=self.log)

    def node(self) -> subprocess.Popen[bytes]:
        # An address of its own: Ray takes nodes of one address for one machine, the driver's with them.
        host = f"127.0.0.{len(self.processes) + 9}"
        self.processes.append(self.start(f"--address={self.address}", "--num-cpus=1", host=host))
        return self.processes[-1]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        for pid in tree(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                self.kill(process)
        self.log.close()
        shutil.rmtree(self.temp, ignore_errors=True)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ray]:
    """A cluster of this machine: a head and two nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        made = Ray(tmp_path_factory.mktemp("ray"))
        try:
            made.nodes = [made.node(), made.node()]
            deadline = time.monotonic() + 120
            while Path(made.log.name).read_text().count("Ray runtime started") < 3:
                assert time.monotonic() < deadline
                # Ray gives a node 30 s to start, which is short where a machine has much else to do.
                made.nodes = [node if node.poll() is None else made.node() for node in made.nodes]
                time.sleep(0.1)
            yield made
        finally:
            made.close()


def index(source: Path, catalog: str | Path, *more: str, encoder: str = "fake") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lookalike", "index", str(source), "--catalog", str(catalog)]
    return subprocess.Popen(
        [*command, "--encoder", encoder, "--json", *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate()
    assert process.returncode == code, err
    return err if code else out


def test_a_cluster_makes_the_catalog_that_one_machine_makes(address: str, ray: Ray, tmp_path: Path):
    """Two nodes, photos that cannot be used, several columns; then changes of every kind; then one of a node's death."""
    photos, rows = tmp_path / "img", []
    for n in range(40):
        draw(photos / f"{n}.jpg", list(COLOURS)[n % 4], KINDS[n % 3], n // 12)
    for n in range(1200):  # long enough to be killed in the middle
        rows.append({"sku": f"p{n:04}", "name": f"name {n}", "image": f"img/{n % 40}.jpg", "price": n, "a.b": f"x{n}"})
    (photos / "broken.jpg").write_bytes(b"no photo")
    rows.append({"sku": "q", "name": "broken", "image": "img/broken.jpg", "price": 1, "a.b": "y"})
    table, local = write_csv(tmp_path / "products.csv", rows), tmp_path / "local"
    on_cluster = index(table, address, "--ray", ray.address, encoder="builtin")
    store, deadline = Store(address), time.monotonic() + 60
    while (left := store.dataset().count_rows() if store.exists else 0) < 100:
        assert on_cluster.poll() is None, on_cluster.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert left < 1200
    ray.kill(ray.nodes[0])
    done = json.loads(ended(on_cluster))
    assert (done["added"], done["quarantined"]) == (1200, 1)
    ended(index(table, local, encoder="builtin"))
    assert exported(address, tmp_path / "a.csv") == exported(local, tmp_path / "b.csv")
    ours, theirs = (lookalike.open(c).search("red dress", k=20) for c in (address, local))
    assert [h.id for h in ours] == [h.id for h in theirs]

    draw(photos / "0.jpg", "black", "bag", 5)  # 30 products' photo
    del rows[1]
    rows[5]["name"] = "another name"
    rows.append({"sku": "new", "name": "new", "image": "img/1.jpg", "price": 1, "a.b": "z", "more": "column"})
    write_csv(table, rows)
    reports = [
        json.loads(ended(index(table, c, "--prune", *more, encoder="builtin")))
        for c, more in ((address, ("--ray", ray.address)), (local, ()))
    ]
    for report in reports:
        del report["seconds"]
    assert reports[0] == reports[1] and reports[0]["updated"] == 31 and reports[0]["removed"] == 1
    assert exported(address, tmp_path / "a.csv") == exported(local, tmp_path / "b.csv")
    run("verify", "--catalog", address)


def test_a_cluster_that_is_not_there_is_said(folder: Path, tmp_path: Path):
    said = ended(index(folder, tmp_path / "c", "--ray", "127.0.0.1:1"), 2)
    assert "--ray 127.0.0.1:1: no Ray cluster answers there" in said and "Traceback" not in said
    assert not (tmp_path / "c").exists()


def test_a_machine_that_sees_other_things_is_named(folder: Path, tmp_path: Path):
    """What a worker tells, and what becomes of it here; the worker is called as Ray calls it."""
    catalog = lookalike.open(tmp_path / "c", encoder="fake")
    source = open_source(str(folder))
    with catalog.store.writing():
        plan = indexing.Plan(catalog.store, catalog.encoder, "fake", source)
    (chunk,) = cluster._chunks(plan, 100)

    def asked(directory: Path, work: indexing.Work) -> dict[str, Any]:
        told = cluster._Worker(str(directory), work, plan.known.version, {})({"chunk": chunk})
        assert told["host"] == socket.gethostname()
        return told

    gone = folder / "men" / "bag" / "red-0.jpg"
    content = gone.read_bytes()
    gone.unlink()
    told = asked(tmp_path / "c", plan.work)
    assert told["rows"] == 23 and json.loads(told["unseen"]) == [str(gone)]
    cluster._check(told)  # gone here, too: quarantine says so
    assert "red-0.jpg" in json.loads(told["refused"])[0][0]
    gone.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot read .*red-0.jpg, which is here: every machine must have"):
        cluster._check(told)
    with pytest.raises(EncoderMismatch, match=r"on .*planned for the encoder other"):
        cluster._check(asked(tmp_path / "c", replace(plan.work, encoder_id="other")))
    with pytest.raises(CatalogError, match="not there; use an address"):
        cluster._check(asked(tmp_path / "elsewhere", plan.work))
    assert catalog.store.dataset().count_rows() == 0  # what was written by nobody's leave is in no version


def test_a_machine_with_another_catalog_under_the_same_name_is_refused(folder: Path, tmp_path: Path):
    here, there = (lookalike.open(tmp_path / d / "c", encoder="fake") for d in ("here", "there"))
    for catalog in (here, there):
        catalog.index(folder / "men")
    with here.store.writing():
        plan = indexing.Plan(here.store, here.encoder, "fake", open_source(str(folder)), False)
        (chunk,) = cluster._chunks(plan, 100)
        told = cluster._Worker(str(there.store.directory), plan.work, plan.known.version, {})({"chunk": chunk})
        mark = here.store.mark(plan.known.version)
        for catalog, wrong in ((here, False), (there, True)):
            worker = cluster._Worker(str(catalog.store.directory), plan.work, plan.known.version, {}, mark)
            assert ("another catalog than" in str(worker.wrong)) is wrong
        commits = cluster._Fragments(plan)
        commits.add({**told, "host": "worker-7"})
        with pytest.raises(InputError, match=r"worker-7 writes to another directory or bucket of the name .*here"):
            commits.close()
        plan.close()
    assert here.store.rows(["lk_photo"]).num_rows == 12
    assert here.index(folder).added == 24  # by folder, they have other ids


def test_fragments_that_are_not_in_the_bucket_are_refused(address: str, table: Path):
    catalog = lookalike.open(address, encoder="fake")
    catalog.index(table)
    rows = catalog.store.rows().slice(0, 1)
    (written,) = catalog.store.write(rows)
    with catalog.store.writing():
        with pytest.raises(InputError, match="worker-7 writes to another"):
            catalog.store.append({written.replace(".lance", "x.lance"): "worker-7"})
        catalog.store.append({written: "worker-7"})
    assert catalog.store.dataset().count_rows() == 14


def test_addresses_that_name_no_prefix_or_tell_a_secret_are_refused(endpoint: str):
    for name in ("s3://b/a#x", "s3://b/a?x=y", "s3://b/a?"):
        with pytest.raises(CatalogError, match=r"has no [?] and no #"):
            lookalike.open(name)
    with pytest.raises(CatalogError, match=r"s3://…@bucket: credentials do not belong") as told:
        lookalike.open("s3://ID:hush@bucket/x")
    assert "hush" not in str(told.value)


def test_keys_are_looked_at_beside_the_event_loop(address: str, monkeypatch: pytest.MonkeyPatch):
    secret, known = keys.add(address, "shop", "search"), keys.Keys(address)
    real = objects.Remote.stamp
    monkeypatch.setattr(objects.Remote, "stamp", lambda *a: (time.sleep(1), real(*a))[1])

    async def both() -> float:
        look = asyncio.create_task(known.follow())
        worst = 0.0
        while not look.done():
            since = time.monotonic()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - since)
        return worst

    assert asyncio.run(both()) < 0.7
    assert known.find(secret)
    monkeypatch.setattr(objects.Remote, "stamp", lambda *a: pytest.fail("looked again at once"))
    asyncio.run(known.follow())


def test_keys_outlive_an_outage_but_not_damage(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    secret, known, late = keys.add(address, "shop", "search"), keys.Keys(address), keys.Keys(address)
    known.refresh()
    for name in ("stamp", "read"):
        with monkeypatch.context() as patch:
            patch.setattr(objects.Remote, name, lambda *a: (_ for _ in ()).throw(CatalogError("no answer")))
            known._seen = (1, 1) if name == "read" else known._seen  # as if the file had changed
            known.refresh()
            late.refresh()
        assert known.find(secret) and known
        assert late and not late.find(secret)  # what was never read is not open to all
    assert caplog.text.count("no answer") == 2
    late.refresh()
    assert late.find(secret)
    objects.at(address).replace("keys.json", "{")
    known.refresh()
    assert known and not known.all()


def test_a_worker_takes_a_providers_variables_whole(monkeypatch: pytest.MonkeyPatch):
    for name in [n for n in os.environ if n.startswith(objects.FAMILIES)]:
        monkeypatch.delenv(name)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "GOOGLE_BUCKET"):
        monkeypatch.setenv(name, "the worker's")
    monkeypatch.setenv("AWS_REGION", "")  # so that what is set below is taken back
    cluster._take_over({"AWS_ACCESS_KEY_ID": "the driver's", "AWS_REGION": "x"})
    assert {n: v for n, v in os.environ.items() if n.startswith(objects.FAMILIES)} == {
        "AWS_ACCESS_KEY_ID": "the driver's", "AWS_REGION": "x", "GOOGLE_BUCKET": "the worker's"
    }  # fmt: skip


def test_a_conditional_put_whose_answer_was_lost_is_ours(address: str, monkeypatch: pytest.MonkeyPatch):
    """The library tries again by itself, and is told that there is something already: its own first try."""
    remote, put, lost = objects.Remote(address), objects.Remote._put, []

    def twice(self: objects.Remote, name: str, text: str, mode: Any) -> str:
        if mode != "overwrite" and name not in lost:
            lost.append(name)
            put(self, name, text, mode)
        return put(self, name, text, mode)

    monkeypatch.setattr(objects.Remote, "_put", twice)
    with remote.lock("writer", "index") as lock:
        lock.check()
        with pytest.raises(objects.Busy), remote.lock("writer", "another"):
            pass
    lost.clear()
    with remote.lock("writer", "index"):  # taken over from one that let go
        pass
    assert "writer.json" in lost


def test_small_things_of_addresses(address: str, monkeypatch: pytest.MonkeyPatch):
    assert str(objects.at(PureWindowsPath("s3://bucket/a/b"))) == "s3://bucket/a/b"
    assert "timed out" not in objects.explained("file s3://b/timeouts/photos.lance: bad magic", "s3://b/timeouts")
    assert not objects.explained("Object at location timeouts/photos.lance/x: bad magic", "s3://b/timeouts")
    assert "does not answer" in objects.explained("s3://b/timeouts: request or response timeout", "s3://b/timeouts")
    before = objects.at("s3://bucket/a")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "another")
    assert objects.at("s3://bucket/a") is not before
    for name in ("LOOKALIKE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert objects.cache("s3://bucket/a").is_relative_to(tempfile.gettempdir())


def test_a_lease_that_was_removed_by_hand_is_said_to_be_gone(address: str, table: Path):
    catalog = lookalike.open(address, encoder="fake")
    catalog.index(table)
    with catalog.store.writing(), pytest.raises(CatalogError, match=r"writer\.json is gone"):
        objects.at(address).delete(["writer.json"])
        catalog.store.delete(["0" * 24])
