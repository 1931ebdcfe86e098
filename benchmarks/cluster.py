"""Several machines on one: Ray nodes, an S3 server, a node killed half-way, two replicas that follow, and throughput.

    python benchmarks/cluster.py SOURCE [--workers 1,2,3] [--encoder builtin] [--namespaces] [--json FILE]

SOURCE is a folder, a table or a dataset's layout. Each node of the cluster is a tree of processes of its own, bound to one core
(Linux; with ``--namespaces``, as root, in a network namespace of its own); the head gives none. The S3 server is
moto's, on loopback, or whatever AWS_ENDPOINT_URL names (``--bucket`` must exist there). Shown, one after the other:

1. the reference: ``lookalike index SOURCE`` into a local directory, by this machine alone;
2. for each number of workers the same with ``--ray`` into the bucket: seconds, photos/s, CPU by role, the export compared;
3. with three nodes, ``kill -9`` of one whole node half-way, then the export compared; then a node and the driver killed, and
   the same command again;
4. two ``lookalike serve`` on the bucket: do they answer alike, and how soon do both see a commit?

Exit code 1 where an export differs, a row is missing or twice, or a replica does not follow within 5 s. Where there are fewer
cores than workers + driver + server, seconds say little of several machines; CPU seconds per photo do.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
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
from pathlib import Path
from typing import Any

import lookalike
from lookalike.objects import LEASE

BRIDGE, NETWORK = "lkbench0", "10.77.0"
HERTZ = os.sysconf("SC_CLK_TCK")
QUERIES = ("red dress", "navy shirt for men", "black leather bag", "running shoes", "watch")


def tree(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        found.append(queue.pop())
        queue += children.get(found[-1], [])
    return found


class Spent(threading.Thread):
    """CPU seconds of process trees by role, looked at while they run: Ray's ended workers are in nobody's sum."""

    def __init__(self, roles: dict[str, list[int]]):
        super().__init__(daemon=True)
        self.roles, self.over = roles, threading.Event()
        self.seen: dict[str, dict[int, float]] = {role: {} for role in roles}
        self._look()
        self.before = self._sums()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.25):
            self._look()

    def _look(self) -> None:
        for role, roots in self.roles.items():
            for pid in (p for root in roots for p in tree(root)):
                with contextlib.suppress(OSError, IndexError):
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                    self.seen[role][pid] = sum(int(f) for f in fields[11:13]) / HERTZ

    def _sums(self) -> dict[str, float]:
        return {role: sum(times.values()) for role, times in self.seen.items()}

    def end(self) -> dict[str, float]:
        """Seconds by role since the beginning."""
        self.over.set()
        self.join()
        self._look()
        return {role: seconds - self.before[role] for role, seconds in self._sums().items()}


def kill(process: subprocess.Popen[Any]) -> int:
    """Kill -9 of a process and all that descend from it; how many they were."""
    pids = tree(process.pid)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(pids)


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_for(what: Any, seconds: float, told: str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise SystemExit(f"{told}: not within {seconds:.0f} s")
        time.sleep(0.05)


class Namespaces:
    """A bridge, and for each node a namespace with one end of a cable; nothing where they are not asked for."""

    def __init__(self, wanted: bool):
        self.wanted = wanted
        self.names: list[str] = []
        self.host = f"{NETWORK}.1" if wanted else "127.0.0.1"
        if wanted:
            self._ip("link", "add", BRIDGE, "type", "bridge")
            self._ip("addr", "add", f"{self.host}/24", "dev", BRIDGE)
            self._ip("link", "set", BRIDGE, "up")

    @staticmethod
    def _ip(*words: str, inside: str = "") -> None:
        subprocess.run(["ip", *(["-n", inside] if inside else []), *words], check=True)

    def node(self, n: int) -> tuple[list[str], str]:
        """The words before a command that make it run on node n, and that node's address."""
        if not self.wanted:
            return [], f"127.0.0.{10 + n}"  # Ray takes nodes of one address for one machine, the driver's with them
        name, address = f"lkbench-n{n}", f"{NETWORK}.{10 + n}"
        if name not in self.names:
            self._ip("netns", "add", name)
            self.names.append(name)
            self._ip("link", "add", f"lkb{n}", "type", "veth", "peer", "name", "eth0", "netns", name)
            self._ip("link", "set", f"lkb{n}", "master", BRIDGE, "up")
            self._ip("addr", "add", f"{address}/24", "dev", "eth0", inside=name)
            self._ip("link", "set", "eth0", "up", inside=name)
            self._ip("link", "set", "lo", "up", inside=name)
            # By its way out Ray tells a node's own address, and gives up where there is none; nothing is sent there.
            self._ip("route", "add", "default", "via", self.host, inside=name)
        return ["ip", "netns", "exec", name], address

    def close(self) -> None:
        for name in self.names:
            self._ip("netns", "del", name)
        if self.wanted:
            self._ip("link", "del", BRIDGE)


class Cluster:
    """A head without cores, and nodes with one each."""

    def __init__(self, spaces: Namespaces, workers: int, folder: Path):
        port = free_port(spaces.host)
        self.spaces, self.file = spaces, folder / f"ray-{port}.log"
        self.log = self.file.open("w")
        self.address = f"{spaces.host}:{port}"
        self.temp = tempfile.mkdtemp(prefix="lkray")  # sockets lie there: a short path
        self.head = self._start(
            [], spaces.host, "--head", f"--port={port}", "--num-cpus=0", f"--temp-dir={self.temp}",
            "--include-dashboard=false", "--disable-usage-stats",
        )  # fmt: skip
        self.nodes: list[subprocess.Popen[Any]] = []
        try:
            wait_for(lambda: self._answers(spaces.host, port), 60, "Ray's head")
            self.nodes = [self._node(n) for n in range(workers)]
            wait_for(self._complete, 240, "Ray's nodes")
        except BaseException:
            print(self.file.read_text()[-3000:], file=sys.stderr)
            self.close()
            raise

    def _start(self, inside: list[str], address: str, *words: str) -> subprocess.Popen[Any]:
        command = [*inside, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *words]
        more = [f"--node-ip-address={address}", f"--object-store-memory={100 * 2**20}", "--min-worker-port=0"]
        return subprocess.Popen([*command, *more, "--max-worker-port=0"], stdout=self.log, stderr=self.log)

    def _node(self, n: int) -> subprocess.Popen[Any]:
        inside, address = self.spaces.node(n)
        # A machine of one core: the libraries' threads would else take all there are, and one worker do the work of two.
        inside = ["taskset", "--cpu-list", str(n % (os.cpu_count() or 1)), *inside]
        return self._start(inside, address, f"--address={self.address}", "--num-cpus=1")

    def _complete(self) -> bool:
        """Whether all nodes are there; one that gave up, as Ray's do where a machine has much else to do, starts again."""
        for n, process in enumerate(self.nodes):
            if process.poll() is not None:
                self.nodes[n] = self._node(n)
        return self.file.read_text().count("Ray runtime started") == 1 + len(self.nodes)

    @staticmethod
    def _answers(host: str, port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((host, port)) == 0

    def close(self) -> None:
        for process in (*self.nodes, self.head):
            if process.poll() is None:
                kill(process)
        self.log.close()
        shutil.rmtree(self.temp, ignore_errors=True)


@contextlib.contextmanager
def storage(host: str, bucket: str, folder: Path) -> Iterator[subprocess.Popen[Any] | None]:
    """The variables of an S3 server; moto's, unless one is named already."""
    if os.environ.get("AWS_ENDPOINT_URL"):
        yield None
        return
    port = free_port(host)
    code = f"from moto.server import main; main(['-H', '{host}', '-p', '{port}'])"
    with (folder / "s3.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
        address = f"http://{host}:{port}"
        os.environ.update(
            AWS_ENDPOINT_URL=address, AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", AWS_REGION="us-east-1"
        )
        wait_for(lambda: Cluster._answers(host, port), 60, "the S3 server")
        urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT"))
        try:
            yield server
        finally:
            kill(server)


class Bench:
    """The parts of the demonstration, over one source."""

    def __init__(self, options: argparse.Namespace, spaces: Namespaces, folder: Path, server: Any):
        self.options, self.spaces, self.folder, self.server = options, spaces, folder, server
        self.bucket = f"s3://{options.bucket}"
        self.fine = True

    def command(self, catalog: str, *words: str) -> list[str]:
        index = [sys.executable, "-m", "lookalike", "index", *self.options.source, "--encoder", self.options.encoder]
        return [*index, "--catalog", catalog, "--json", *words]

    def export(self, catalog: str) -> bytes:
        file = self.folder / "export.csv"
        lookalike.open(catalog).export(file)
        return file.read_bytes()

    def same(self, catalog: str) -> dict[str, Any]:
        """Whether the export is the reference's, and no row is missing or there twice."""
        keys = lookalike.open(catalog).store.rows(["lk_photo"])["lk_photo"].to_pylist()
        found = {
            "rows": len(keys),
            "twice": len(keys) - len(set(keys)),
            "same": self.export(catalog) == self.whole,
        }
        self.fine = self.fine and found["same"] and not found["twice"]
        return found

    def reference(self) -> dict[str, Any]:
        before, wall = os.times(), time.monotonic()
        done = subprocess.run(self.command(str(self.folder / "single")), capture_output=True, text=True, check=True)
        took, after = time.monotonic() - wall, os.times()
        report = json.loads(done.stdout)
        self.photos = report["added"]
        self.whole = self.export(str(self.folder / "single"))
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        return {**report, "wall": took, "cpu": spent, "photos_per_second": report["added"] / report["seconds"]}

    def throughput(self, workers: int) -> dict[str, Any]:
        cluster = Cluster(self.spaces, workers, self.folder)
        try:
            catalog = f"{self.bucket}/workers-{workers}"
            roles = {"workers": [n.pid for n in cluster.nodes], "ray": [cluster.head.pid]}
            roles |= {"storage": [self.server.pid]} if self.server else {}
            spent, wall, meter = os.times(), time.monotonic(), Spent(roles)
            done = subprocess.run(
                self.command(catalog, "--ray", cluster.address), capture_output=True, text=True, check=True
            )
            took, after = time.monotonic() - wall, os.times()
            seconds = meter.end()
            seconds["driver"] = (
                after.children_user + after.children_system - spent.children_user - spent.children_system
            )
            report = json.loads(done.stdout)
            again = subprocess.run(
                self.command(catalog, "--ray", cluster.address), capture_output=True, text=True, check=True
            )
            return {
                "workers": workers, **report, "wall": took, "cpu": seconds, **self.same(catalog),
                "photos_per_second": report["added"] / report["seconds"], "again": json.loads(again.stdout),
            }  # fmt: skip
        finally:
            cluster.close()

    def killed(self) -> dict[str, Any]:
        """A node, then the driver, killed half-way; the next run goes on."""
        catalog = f"{self.bucket}/killed"
        cluster = Cluster(self.spaces, 3, self.folder)
        try:
            store = lookalike.open(catalog).store
            run = subprocess.Popen(self.command(catalog, "--ray", cluster.address), stdout=subprocess.PIPE, text=True)
            count = self.reached(store, 0.3, run)
            processes = kill(cluster.nodes[1])
            driver = self.reached(store, 0.6, run)
            kill(run)
            left = store.dataset().count_rows()
            start = time.monotonic()
            while True:  # until the killed driver's lease has lapsed
                done = subprocess.run(self.command(catalog, "--ray", cluster.address), capture_output=True, text=True)
                if done.returncode != 4 or time.monotonic() - start > 3 * LEASE:
                    break
                time.sleep(1)
            if done.returncode:
                raise SystemExit(f"the run after the killed one ended with {done.returncode}: {done.stderr}")
            return {
                "node_killed_at": count, "processes_killed": processes, "driver_killed_at": driver, "left": left,
                "to_the_end": json.loads(done.stdout), "waited_and_ran": time.monotonic() - start, **self.same(catalog),
            }  # fmt: skip
        finally:
            cluster.close()

    def node_killed(self) -> dict[str, Any]:
        """A node killed half-way, and the same run goes to its end."""
        catalog = f"{self.bucket}/node-killed"
        cluster = Cluster(self.spaces, 3, self.folder)
        try:
            store = lookalike.open(catalog).store
            run = subprocess.Popen(
                self.command(catalog, "--ray", cluster.address),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            count = self.reached(store, 0.4, run)
            processes = kill(cluster.nodes[0])
            out, err = run.communicate()
            assert run.returncode == 0, err
            return {"node_killed_at": count, "processes_killed": processes, **json.loads(out), **self.same(catalog)}
        finally:
            cluster.close()

    def reached(self, store: Any, share: float, run: subprocess.Popen[Any]) -> int:
        """Waits until so many photos are committed."""
        while True:
            count = store.dataset().count_rows() if store.exists else 0
            if count >= share * self.photos:
                return int(count)
            if run.poll() is not None:
                raise SystemExit(
                    f"the run ended ({run.returncode}) before {share:.0%} of its photos were there: {count}"
                )
            time.sleep(0.1)

    def replicas(self) -> dict[str, Any]:
        """Two servers on one catalog: the same answers, and a commit seen by both."""
        catalog = f"{self.bucket}/node-killed"
        ports = [free_port("127.0.0.1") for _ in range(2)]
        serve = [sys.executable, "-m", "lookalike", "serve", "--catalog", catalog, "--port"]
        with (self.folder / "serve.log").open("w") as log:
            servers = [subprocess.Popen([*serve, str(p)], stdout=log, stderr=log) for p in ports]
            try:
                for port in ports:
                    wait_for(lambda port=port: self._ready(port), 120, "a replica")
                answers = [
                    [self._ask(p, f"/api/search?text={q.replace(' ', '+')}&k=50") for q in QUERIES] for p in ports
                ]
                for asked in answers:
                    for answer in asked:
                        del answer["took_ms"]
                alike = answers[0] == answers[1] and all(a["hits"] for a in answers[0])
                opened = lookalike.open(catalog)
                total = answers[0][0]["total"]
                gone = answers[0][0]["hits"][0]["id"]
                seen = []
                for change, wanted in (
                    (lambda: opened.remove(gone), total - 1),
                    (lambda: self._put_back(catalog), total),
                ):
                    change()
                    start = time.monotonic()
                    late = {}
                    while len(late) < 2 and time.monotonic() - start < 30:
                        for port in ports:
                            if port not in late and self._ask(port, "/api/search?text=red")["total"] == wanted:
                                late[port] = time.monotonic() - start
                        time.sleep(0.05)
                    seen.append([late.get(p, float("inf")) for p in ports])
                slowest = max(s for times in seen for s in times)
                self.fine = self.fine and alike and slowest <= 5
                return {"alike": alike, "queries": len(QUERIES), "seconds_until_seen": seen, "slowest": slowest}
            finally:
                for server in servers:
                    server.send_signal(signal.SIGINT)
                for server in servers:
                    server.wait()

    def _put_back(self, catalog: str) -> None:
        subprocess.run(self.command(catalog), check=True, capture_output=True)

    @staticmethod
    def _ask(port: int, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    @classmethod
    def _ready(cls, port: int) -> bool:
        with contextlib.suppress(OSError):
            return cls._ask(port, "/readyz")["status"] == "ok"
        return False


def table(found: dict[str, Any]) -> None:
    """The figures as Markdown."""
    whole = found["reference"]
    photos = whole["added"]
    per = 1000 / photos  # CPU milliseconds per photo
    print(f"\n{photos} photos, encoder {found['encoder']}, {found['cores']} cores, storage: {found['storage']}\n")
    print("| | seconds | photos/s | CPU ms a photo: workers | driver | storage | Ray's head | export |")
    print("|---|---|---|---|---|---|---|---|")
    alone = f"{whole['cpu'] * per:.2f} (all)"
    print(
        f"| this machine alone, local | {whole['seconds']:.1f} | {whole['photos_per_second']:.0f} | {alone} | | | | |"
    )
    for row in found["throughput"]:
        spent = {role: f"{seconds * per:.2f}" for role, seconds in row["cpu"].items()}
        same = "the same" if row["same"] else "DIFFERENT"
        print(
            f"| {row['workers']} worker{'s' * (row['workers'] > 1)} | {row['seconds']:.1f} | {row['photos_per_second']:.0f} "
            f"| {spent['workers']} | {spent['driver']} | {spent.get('storage', '')} | {spent['ray']} | {same} |"
        )
    for name in ("node_killed", "killed"):
        if name in found:
            print(f"\n{name}: {json.dumps(found[name])}")
    if "replicas" in found:
        print(f"\nreplicas: {json.dumps(found['replicas'])}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--workers", default="1,2,3")
    parser.add_argument("--encoder", default="builtin")
    parser.add_argument("--bucket", default="bench")
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--only", default="throughput,node_killed,killed,replicas", help="parts, separated by commas")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    parts = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LOOKALIKE_CACHE"] = str(folder / "cache")
        spaces = Namespaces(options.namespaces)
        try:
            with storage(spaces.host, options.bucket, folder) as server:
                bench = Bench(options, spaces, folder, server)
                found: dict[str, Any] = {
                    "encoder": options.encoder, "cores": os.cpu_count(), "namespaces": options.namespaces,
                    "storage": "moto" if server else os.environ["AWS_ENDPOINT_URL"], "reference": bench.reference(),
                    "throughput": [],
                }  # fmt: skip
                if "throughput" in parts:
                    for workers in map(int, options.workers.split(",")):
                        found["throughput"].append(bench.throughput(workers))
                        print(json.dumps(found["throughput"][-1]), file=sys.stderr)
                for part in ("node_killed", "killed", "replicas"):
                    if part in parts:
                        found[part] = getattr(bench, part)()
                        print(part, json.dumps(found[part]), file=sys.stderr)
        finally:
            spaces.close()
    table(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0 if bench.fine else 1


if __name__ == "__main__":
    sys.exit(main())
