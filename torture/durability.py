"""kill -9 of everything that writes, at random moments, while somebody searches: is anything lost, or half there?

    python torture/durability.py [--kills 200] [--seed 1] [--json FILE]
    python torture/durability.py --seed 1 --only kill:17      one case again

A *life* is one catalog and eight kills. A child indexes, puts, removes, prunes, compacts, reindexes, encodes again into
another catalog, backs up, uploads and votes in random order, and says of each operation when it begins and when it is
acknowledged. It is killed at a uniformly drawn moment, or before, after, or shortly after a chosen step (of a commit, a
compaction, a rename …). What must be there is known from the operations alone. After each kill the catalog must open, hold
what was acknowledged, of the operation that was not all or nothing (of a sync, each product whole), be clean to ``verify``,
and the same operation must then complete. A reader searches throughout; each answer must have been true at some moment
while it was asked. In some lives two children write, in some the clock jumps (libfaketime where it is installed), in some
the catalog is on an S3 server (moto, on loopback).

Other cases: a power cut (what was not synced is gone), a full disk (a small tmpfs, which only root can mount), a directory that
cannot be written. Exit code 1 where anything broke, 2 where a case could not be tried.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from PIL import Image

import lookalike
from lookalike import backup, feedback, images, indexing, objects, segment, snapshot, store
from lookalike.errors import CatalogError, CatalogLocked, NotFound
from lookalike.server import keys
from lookalike.server.writing import Given, Writer

LIFE = 8
"""Kills of one catalog."""

COLOURS = ("red", "blue", "green", "black", "white", "pink")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

Row = tuple[str, str, str, tuple[tuple[str, Any], ...], str]
"""Path, digest, title, attributes and source of a photo's row."""

Rows = dict[tuple[str, int], Row]


class Broken(AssertionError):
    """What must not happen happened."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


# What the children do, and what must come of it


def photo(number: int) -> bytes:
    """A small photo; another number, other bytes."""
    chance = random.Random(number)
    image = Image.new("RGB", (20, 24), tuple(chance.randrange(256) for _ in range(3)))
    for _ in range(4):
        image.putpixel((chance.randrange(20), chance.randrange(24)), tuple(chance.randrange(256) for _ in range(3)))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


class Model:
    """What a catalog must hold, as far as one writer is concerned: ids that begin with its letter."""

    def __init__(self, directory: str, place: Path, letter: str):
        self.directory, self.place, self.letter = directory, place, letter
        self.spare = place  # for backups
        self.indexes = ["auto", "exact", "int8", "lsh"] + ["hnsw", "ivf"] * ("://" not in directory)
        self.rows: Rows = {}
        self.other: Rows = {}
        self.table: dict[str, dict[str, Any]] = {}
        self.numbers: dict[str, int] = {}
        self.votes: list[str] = []
        self.keys: list[str] = []
        self.backups: dict[str, Rows] = {}
        self.made = 0

    def copy(self) -> Model:
        twin = Model(self.directory, self.place, self.letter)
        for name in ("rows", "other", "table", "numbers", "backups"):
            setattr(twin, name, dict(getattr(self, name)))
        for name in ("votes", "keys"):
            setattr(twin, name, list(getattr(self, name)))
        twin.made, twin.spare = self.made, self.spare
        return twin

    @property
    def csv(self) -> str:
        return str(self.place / f"{self.letter}.csv")

    def ids(self, kind: str) -> list[str]:
        return sorted({i for i, _ in self.rows if i.startswith(f"{self.letter}{kind}")})

    def _product(self, chance: random.Random, identity: str, photos: int, folder: str) -> dict[str, Any]:
        """A product of so many photos; ``files`` are those to write, with the numbers of what they show."""
        self.made += 1
        colour = chance.choice(COLOURS)
        files = {}
        for n in range(photos):
            path = str(self.place / folder / f"{identity}-{n}.png")
            if path not in self.numbers or chance.random() < 0.4:
                self.made += 1
                self.numbers[path] = self.made * 1000 + ord(self.letter)
            files[path] = self.numbers[path]
        attributes = {"colour": colour, "rev": float(self.made)}
        if self.made > 60 and chance.random() < 0.5:  # a column that comes later
            attributes["fit.to"] = chance.choice(["slim", "wide"])
        paths = [str(self.place / folder / f"{identity}-{n}.png") for n in range(photos)]
        return {
            "id": identity,
            "title": f"{colour} {identity} r{self.made}",
            "attributes": attributes,
            "photos": paths,
            "files": files,
        }

    def draw(self, chance: random.Random, kinds: dict[str, float]) -> dict[str, Any]:
        """The next operation; the model is then what must be there after it."""
        letter = self.letter
        do = chance.choices(list(kinds), list(kinds.values()))[0]
        if do in ("remove",) and not self.ids("p"):
            do = "put"
        if do == "delete" and not self.ids("u"):
            do = "upload"
        if do == "index":
            for _ in range(chance.randint(1, 14)):
                identity = f"{letter}t{chance.randrange(60):02}"
                if identity in self.table and len(self.table) > 3 and chance.random() < 0.25:
                    del self.table[identity]
                else:
                    self.table[identity] = self._product(chance, identity, chance.randint(1, 3), "table")
            operation = {"do": "index", "prune": chance.random() < 0.5, "products": list(self.table.values())}
        elif do == "put":
            chosen = {f"{letter}p{chance.randrange(12):02}" for _ in range(chance.randint(1, 4))}
            operation = {
                "do": "put",
                "products": [self._product(chance, i, chance.randint(1, 3), "put") for i in sorted(chosen)],
            }
        elif do == "upload":
            made = self._product(chance, f"{letter}u{chance.randrange(5)}", chance.randint(1, 2), "sent")
            numbers = [self.numbers[p] for p in made["photos"]]
            operation = {"do": "upload", "products": [made], "numbers": numbers}
        elif do == "remove":
            operation = {
                "do": "remove",
                "ids": chance.sample(self.ids("p"), chance.randint(1, min(3, len(self.ids("p"))))),
            }
        elif do == "delete":
            operation = {"do": "delete", "ids": [chance.choice(self.ids("u"))]}
        elif do == "reindex":
            operation = {"do": "reindex", "kind": chance.choice(self.indexes)}
        elif do == "other":
            operation = {"do": "other", "products": list(self.table.values())}
        elif do == "backup":
            self.made += 1
            operation = {"do": "backup", "file": str(self.spare / f"{letter}{self.made}.zip")}
        elif do == "vote":
            self.made += 1
            operation = {"do": "vote", "product": f"{letter}v{self.made}"}
        elif do == "key":
            self.made += 1
            operation = {"do": "key", "name": f"{letter}k{self.made}"}
        else:
            operation = {"do": do}
        operation |= {"csv": self.csv, "source": letter}
        self.apply(operation)
        return json.loads(json.dumps(operation))

    def apply(self, operation: dict[str, Any]) -> None:
        do = operation["do"]
        if do == "index":
            fresh = self._rows(operation["products"], self.csv)
            if operation["prune"]:
                kept = {k for k, row in self.rows.items() if row[4] != self.csv}
                self.rows = {k: row for k, row in self.rows.items() if k in kept or k in fresh}
            self.rows |= fresh
        elif do == "other":
            fresh = self._rows(operation["products"], self.csv)
            self.other = fresh
        elif do in ("put", "upload"):
            fresh = self._rows(operation["products"], indexing.UPLOADS)
            if do == "upload":
                fresh = {k: (self._uploaded(row[1]), *row[1:]) for k, row in fresh.items()}
            ids = {i for i, _ in fresh}
            self.rows = {k: row for k, row in self.rows.items() if k[0] not in ids} | fresh
        elif do in ("remove", "delete"):
            self.rows = {k: row for k, row in self.rows.items() if k[0] not in operation["ids"]}
        elif do == "backup":
            self.backups = {**self.backups, operation["file"]: self.rows}
        elif do == "vote":
            self.votes = [*self.votes, operation["product"]]
        elif do == "key":
            self.keys = [*self.keys, operation["name"]]

    def _uploaded(self, digest: str) -> str:
        return str(Path(self.directory).absolute() / "uploads" / digest[:2] / digest)

    def _rows(self, products: list[dict[str, Any]], source: str) -> Rows:
        return {
            (p["id"], n): (
                path, images.digest(photo(self.numbers[path])), p["title"], tuple(sorted(p["attributes"].items())), source,
            )
            for p in products for n, path in enumerate(p["photos"])
        }  # fmt: skip


def perform(catalog: lookalike.Catalog, operation: dict[str, Any]) -> None:
    """Do it; done again it comes to the same."""
    for product in operation.get("products", ()):
        if operation["do"] != "upload":
            for path, number in product["files"].items():
                write(Path(path), photo(number))
    do, directory = operation["do"], catalog.store.directory
    if do in ("index", "other"):
        table = Path(operation["csv"])
        out = io.StringIO()
        rows = [
            {"id": p["id"], "title": p["title"], "image": "|".join(p["photos"]), **p["attributes"]}
            for p in operation["products"]
        ]
        writer = csv.DictWriter(out, ["id", "title", "image", "colour", "rev", "fit.to"])
        writer.writeheader()
        writer.writerows(rows)
        write(table, out.getvalue().encode())
        if do == "index":
            catalog.index(table, prune=operation["prune"])
        else:
            lookalike.open(table.with_suffix(".again"), encoder="colour-histogram").index(table, prune=True)
    elif do == "put":
        catalog.put(
            [lookalike.Product(p["id"], p["photos"], p["title"], p["attributes"]) for p in operation["products"]]
        )
    elif do == "upload":
        made = operation["products"][0]
        content = [photo(n) for n in operation["numbers"]]
        Writer(catalog).put([Given(made["id"], made["title"], made["attributes"], content)])
    elif do == "remove":
        here = set(catalog.store.rows(["lk_id"])["lk_id"].to_pylist())
        if wanted := [i for i in operation["ids"] if i in here]:
            catalog.remove(*wanted)
    elif do == "delete":
        for identity in operation["ids"]:
            with contextlib.suppress(NotFound):  # gone already
                Writer(catalog).remove(identity)
    elif do == "compact":
        catalog.compact()
    elif do == "reindex":
        catalog.reindex(operation["kind"])
    elif do == "backup":
        catalog.backup(operation["file"], overwrite=True)
    elif do == "vote":
        feedback.keep(directory, feedback.vote(operation["product"], "up", {"text": "red"}))
    elif do == "key":
        if operation["name"] not in {k.name for k in keys.read(directory)}:
            keys.add(directory, operation["name"], "search")
    else:
        raise ValueError(do)


def write(path: Path, content: bytes) -> None:
    """In place of what was there, as people's own files are written."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


SETTINGS: dict[str, tuple[tuple[object, str], ...]] = {
    "commit_rows": ((indexing, "COMMIT_ROWS"),),
    "batch": ((indexing, "BATCH"),),
    "compact_at": ((store, "COMPACT_AT"),),
    "smallest": ((store, "SMALLEST"),),
    "many_versions": ((store, "MANY_VERSIONS"),),
    "keep": ((store, "KEEP_VERSIONS"),),
    "saved_from": ((segment, "SAVED_FROM"), (snapshot, "DELTA_FROM")),
    "lease": ((objects, "LEASE"),),
    "block": ((backup, "BLOCK"),),
}


def configure(settings: dict[str, float]) -> None:
    """Everything at a hundredth of its size."""
    for name, value in settings.items():
        for module, attribute in SETTINGS[name]:
            setattr(module, attribute, timedelta(seconds=value) if name == "keep" else value)


# The child


HOOKS: dict[str, tuple[object, str]] = {
    "commit": (store.Store, "commit"),
    "sync": (store.Store, "_make_durable"),
    "delete": (store.Store, "delete"),
    "compact": (store.Store, "compact"),
    "clean": (store.Store, "_clean"),
    "hold": (store.Store, "hold"),
    "create": (store.Store, "create_rows"),
    "quarantine": (store.Store, "write_quarantine"),
    "manifest": (store.Store, "write_manifest"),
    "replace": (objects.Local, "replace"),
    "rename": (Path, "replace"),
    "fsync": (objects, "fsync"),
    "system's fsync": (os, "fsync"),
    "reindex": (segment, "_fill"),
    "seal": (segment, "seal"),
    "sweep": (segment, "_sweep"),
    "uploads": (Writer, "tidy"),
}
"""Steps before or after which a child is killed."""


def hooked(seen: Callable[[str], None]) -> None:
    """Call ``seen("NAME:before")`` and ``seen("NAME:after")`` around each step."""
    for name, (owner, attribute) in HOOKS.items():
        setattr(owner, attribute, around(getattr(owner, attribute), name, seen))


def around(real: Callable[..., Any], name: str, seen: Callable[[str], None]) -> Callable[..., Any]:
    def step(*args: Any, **more: Any) -> Any:
        seen(f"{name}:before")
        out = real(*args, **more)
        seen(f"{name}:after")
        return out

    return step


def child(plan: dict[str, Any]) -> None:
    """Do the operations, say when each begins and is done; die where the plan says so."""
    configure(plan["settings"])
    if "FAKETIME" in os.environ:  # under which clock_nanosleep fails
        time.sleep = lambda seconds: select.select([], [], [], seconds)
    elif plan["clock"]:  # no libfaketime: what Python sees of the clock at least
        real = time.time
        time.time = lambda: real() + plan["clock"]
    disk = Disk(Path(plan["power"][2])) if plan.get("power") else None
    target, count, delay = plan["hook"] or ("", 0, 0.0)
    seen: Counter[str] = Counter()

    def at(step: str) -> None:
        seen[step] += 1
        if step == target and seen[step] == count:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))).start()

    if target:
        hooked(at)
    catalog = lookalike.open(plan["directory"], encoder="fake")
    for n, operation in enumerate(plan["operations"]):
        say("begin", n)
        until = time.monotonic() + 60
        while True:
            try:
                perform(catalog, operation)
                break
            except CatalogLocked:
                say("locked", n)
                if time.monotonic() > until:
                    raise
                time.sleep(0.5 if catalog.store.remote else 0.02)
        say("done", n)
    if disk:
        for n in range(CUTS):
            disk.cut(Path(plan["power"][0]), Path(f"{plan['power'][1]}{n}"), random.Random(n) if n else None)


def say(*words: object) -> None:
    sys.stdout.write(json.dumps([*words, time.monotonic()]) + "\n")
    sys.stdout.flush()


# The reader


def reader(plan: dict[str, Any]) -> None:
    """Search until standard input is closed; write down each answer with the time before and after."""
    configure(plan["settings"])
    chance = random.Random(plan["seed"])
    catalog: lookalike.Catalog | None = None
    known: set[str] = set()
    with Path(plan["answers"]).open("w") as out:
        while not select.select([sys.stdin], [], [], 0)[0]:
            start, answer = time.monotonic(), {}
            try:
                if catalog is None or chance.random() < 0.05:
                    catalog = lookalike.open(plan["directory"], encoder="fake")
                if not catalog.store.exists:
                    time.sleep(0.02)
                    continue
                if known and chance.random() < 0.4:
                    identity = chance.choice(sorted(known))
                    answer["product"] = identity
                    try:
                        found = catalog.product(identity)
                        answer["found"] = [found["title"], found["attributes"], len(found["photos"])]
                    except NotFound:
                        answer["found"] = None
                else:
                    colour = chance.choice(COLOURS)
                    where = chance.choice(["", f"colour = '{colour}'", "rev > 30"]) if known else ""
                    hits = catalog.search(colour, where=where, k=chance.choice([5, 200]))
                    answer["hits"] = [[h.id, h.title, h.attributes] for h in hits]
                    known |= {h.id for h in hits}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            out.write(json.dumps([start, time.monotonic(), answer]) + "\n")
            out.flush()
            time.sleep(0.01)


class History:
    """What each product was, from when on at the earliest, and until when at the latest."""

    def __init__(self) -> None:
        self.states: dict[str, list[list[Any]]] = defaultdict(lambda: [[None, float("-inf"), float("inf")]])

    def change(self, before: Rows, after: Rows, begin: float, end: float) -> None:
        """Between these moments the products became what they are ``after``, each at some moment of its own."""
        old, new = by_product(before), by_product(after)
        for identity in old.keys() | new.keys():
            if old.get(identity) != new.get(identity):
                self.states[identity][-1][2] = end
                self.states[identity].append([summary(new.get(identity)), begin, float("inf")])

    def allows(self, identity: str, state: Any, start: float, end: float, whole: bool) -> bool:
        return any(
            begin <= end and over >= start and (known == state if whole else known is not None and known[:2] == state)
            for known, begin, over in self.states[identity]
        )


def by_product(rows: Rows) -> dict[str, dict[int, Row]]:
    out: dict[str, dict[int, Row]] = defaultdict(dict)
    for (identity, position), row in rows.items():
        out[identity][position] = row
    return dict(out)


def summary(rows: dict[int, Row] | None) -> Any:
    """What a reader sees of a product."""
    if not rows:
        return None
    first = rows[min(rows)]
    return [first[2], {name: snapshot.number(value) for name, value in first[3]}, len(rows)]


def check_answers(file: Path, history: History, keep: float, slack: float) -> int:
    """Each answer was true at some moment while it was asked. Returns their number."""
    count = 0
    for line in file.read_text().splitlines():
        start, end, answer = json.loads(line)
        count += 1
        if "error" in answer:
            gone = "has been cleaned up meanwhile" in answer["error"] and end - start > keep
            expect(gone, f"reader: {answer['error']}")
        if "product" in answer:
            found = history.allows(answer["product"], answer["found"], start - slack, end, True)
            expect(
                found, f"reader: {answer} was never so between {start} and {end}: {history.states[answer['product']]}"
            )
        for identity, title, attributes in answer.get("hits", ()):
            found = history.allows(identity, [title, attributes], start - slack, end, False)
            expect(found, f"reader: hit {identity}, {title}, {attributes} was never so between {start} and {end}: "
                   f"{history.states[identity]}")  # fmt: skip
    return count


# One life


KINDS = {"index": 6, "put": 4, "remove": 2, "upload": 2, "delete": 1, "compact": 1.5, "reindex": 2, "other": 1, "backup": 1,
         "vote": 1, "key": 0.5}  # fmt: skip


class Life:
    """A catalog, its writers' models, and what kills it."""

    def __init__(self, place: Path, seed: int, number: int, remote: str = ""):
        self.chance = random.Random(f"{seed}/{number}")
        self.place = place
        self.directory = remote or str(place / "shop.catalog")
        chance = self.chance
        self.settings = {
            "commit_rows": chance.choice([1, 8, 24]), "batch": chance.choice([3, 8]), "compact_at": chance.choice([3, 6]),
            "smallest": chance.choice([8, 40]), "many_versions": chance.choice([4, 30]), "keep": chance.choice([2.0, 600.0]),
            "saved_from": chance.choice([20, 60, 100_000]), "lease": 1.5, "block": 7,
        }  # fmt: skip
        self.kinds = dict(KINDS)
        if remote:
            self.kinds = {k: w for k, w in KINDS.items() if k not in ("upload", "delete", "other", "key")}
        letters = "ab" if chance.random() < 0.3 else "a"
        self.models = {letter: Model(self.directory, place, letter) for letter in letters}
        self.waiting: dict[str, list[tuple[dict[str, Any], Model]]] = {letter: [] for letter in letters}
        self.clocks = chance.random() < 0.35
        self.took: dict[str, float] = defaultdict(lambda: 0.3)
        self.history = History()
        self.figures: Counter[str] = Counter()

    def run(self, kills: int) -> None:
        """Kill so often, and look what is there each time."""
        answers = self.place / "answers"
        plan = {
            "directory": self.directory,
            "settings": self.settings,
            "answers": str(answers),
            "seed": self.chance.random(),
        }
        watching = start("--reader", plan, self.place / "reader.json", stdin=subprocess.PIPE)
        try:
            for _ in range(kills):
                self.kill()
                self.check()
            expect(watching.poll() is None, f"the reader ended: {watching.poll()}")
        finally:
            watching.communicate(b"end")
        slack = 2 * store.STAMP_SECONDS if self.directory.startswith("s3:") else 0.0
        self.figures["answers"] += check_answers(answers, self.history, self.settings["keep"], slack)

    def kill(self) -> None:
        """Start a child for each writer, and kill the first one, or all."""
        chance, children = self.chance, {}
        hook = None
        if chance.random() < 0.5:
            name, when = chance.choice(sorted(HOOKS)), chance.choice(["before", "after"])
            hook = [f"{name}:{when}", chance.choice([1, 1, 2, 3, 5, 9]), chance.choice([0, 0, chance.uniform(0, 0.03)])]
        for letter, model in self.models.items():
            while len(self.waiting[letter]) < 6:
                last = self.waiting[letter][-1][1] if self.waiting[letter] else model
                after = last.copy()
                operation = after.draw(chance, {"index": 1.0} if not last.rows else self.kinds)
                self.waiting[letter].append((operation, after))
            clock = chance.choice([-86400 * 3, -3600, 7200, 86400 * 9]) if self.clocks and chance.random() < 0.6 else 0
            mine = letter == "a" or chance.random() < 0.5
            plan = {"directory": self.directory, "settings": self.settings, "operations": [o for o, _ in self.waiting[letter]],
                    "hook": hook if mine else None, "clock": clock}  # fmt: skip
            children[letter] = start("--child", plan, self.place / f"child-{letter}.json", clock)
            self.figures["clock set" if clock else "clock true"] += 1
        moment = None if hook else (chance.randrange(6), chance.uniform(0, 1.3))
        logs = {letter: [] for letter in children}
        readers = [
            threading.Thread(target=self._follow, args=(c, logs[letter], letter, moment if letter == "a" else None))
            for letter, c in children.items()
        ]
        for thread in readers:
            thread.start()
        for thread in readers:
            thread.join()
        for letter, process in children.items():
            code = process.wait()
            said = process.stderr.read().decode()
            process.stdout.close()
            process.stderr.close()
            expect(code in (0, -signal.SIGKILL), f"writer {letter} ended with {code}: {said[-2000:]}")
            self.figures["kills" if code else "ended before the kill"] += 1
            if code:
                self.figures["kills aimed" if hook else "kills at random"] += 1
            self._acknowledged(letter, logs[letter], bool(code))

    def _follow(self, process: Any, log: list[list[Any]], letter: str, moment: tuple[int, float] | None) -> None:
        """Read what a child says; kill it at its moment."""
        for line in process.stdout:
            if not line.endswith(b"\n"):
                continue
            word, n, when = json.loads(line)
            log.append([word, n, when])
            if word == "locked":
                self.figures["CatalogLocked"] += 1
            if moment and word == "begin" and n == moment[0]:
                usual = self.took[self.waiting[letter][n][0]["do"]]
                timer = threading.Timer(moment[1] * usual, process.kill)
                timer.daemon = True
                timer.start()

    def _acknowledged(self, letter: str, log: list[list[Any]], killed: bool) -> None:
        """Take what is done into the model and the history; what had begun stays waiting, and first."""
        begun: dict[int, float] = {}
        done = 0
        for word, n, when in log:
            if word == "begin":
                begun[n] = when
            elif word == "done":
                operation, after = self.waiting[letter][n]
                self.took[operation["do"]] = 0.7 * self.took[operation["do"]] + 0.3 * (when - begun[n])
                self.history.change(self.models[letter].rows, after.rows, begun[n], when)
                self.models[letter] = after
                done = n + 1
                self.figures["operations acknowledged"] += 1
        self.waiting[letter] = self.waiting[letter][done:]
        self.pending = getattr(self, "pending", {})
        self.pending[letter] = begun.get(done)
        if killed and done in begun:
            self.figures[f"killed in {self.waiting[letter][0][0]['do']}"] += 1

    def check(self) -> None:
        """What was acknowledged is there, and of what was not, all or nothing; then the rest is done, and all is right."""
        catalog = lookalike.open(self.directory, encoder="fake")
        if catalog.store.exists:
            sound(catalog)
            rows = content(catalog.store)
            for letter, model in self.models.items():
                self._one(letter, model, rows)
        for letter, model in self.models.items():
            if self.pending[letter] is None:
                continue
            operation, after = self.waiting[letter].pop(0)
            begin = self.pending[letter]
            configure(self.settings)
            patiently(lambda operation=operation: perform(lookalike.open(self.directory, encoder="fake"), operation))
            self.history.change(model.rows, after.rows, begin, time.monotonic())
            self.models[letter] = after
            self.figures["operations run again"] += 1
        catalog = lookalike.open(self.directory, encoder="fake")
        if not catalog.store.exists:
            expect(all(not m.rows for m in self.models.values()), "the catalog is gone")
            return
        found = sound(catalog)
        expect(not found["missing"] and not found["changed"], f"verify: {found}")
        self._whole(catalog)

    def _one(self, letter: str, model: Model, rows: Rows) -> None:
        """Right after the kill: this writer's part of the catalog."""
        mine = {k: row for k, row in rows.items() if k[0].startswith(letter)}
        if self.pending[letter] is None:
            differ(mine, model.rows, f"after the kill, nothing pending: {letter}")
            return
        operation, after = self.waiting[letter][0]
        if operation["do"] != "index":
            if mine != model.rows:
                differ(mine, after.rows, f"killed in {operation['do']}: neither as before nor as after")
            return
        found, states = by_product(mine), [by_product(s) for s in (model.rows, after.rows)]
        for identity in set(found).union(*states):
            expect(
                any(found.get(identity) == state.get(identity) for state in states),
                f"killed in index: {identity} is half written: {found.get(identity)}, "
                f"of {[state.get(identity) for state in states]}",
            )

    def _whole(self, catalog: lookalike.Catalog) -> None:
        """All that is acknowledged, and nothing else."""
        rows = content(catalog.store)
        differ(rows, {k: r for m in self.models.values() for k, r in m.rows.items()}, "after running again")
        exported = self.place / "export.jsonl"
        catalog.export(exported)
        lines = [json.loads(line) for line in exported.read_text().splitlines()]
        told = [
            (r["id"], r["position"], r["image"], r["digest"], r["title"], r.get("colour"), r.get("rev")) for r in lines
        ]
        expect(told == sorted((*key, *row[:3], dict(row[3])["colour"], snapshot.number(dict(row[3])["rev"]))
                              for key, row in rows.items()), "the export is not what the model says")  # fmt: skip
        votes = Counter(v.product for v in feedback.read(catalog.store.directory))
        expect(votes == Counter(v for m in self.models.values() for v in m.votes), f"votes: {votes}")
        if not catalog.store.remote:
            made = {k.name for k in keys.read(catalog.store.directory)}
            expect(made == {k for m in self.models.values() for k in m.keys}, f"keys: {made}")
        for letter, model in self.models.items():
            if model.other:
                again = lookalike.open(Path(model.csv).with_suffix(".again"))
                sound(again)
                differ(content(again.store), model.other, "encoded again")
            for file, was in model.backups.items():
                back = self.place / "back.catalog"
                lookalike.restore(file, back)
                there, here = str(Path(self.directory).absolute()), str(back.absolute())
                expected = {
                    k: (row[0].replace(there + "/uploads/", here + "/uploads/"), *row[1:]) for k, row in was.items()
                }
                restored = {k: r for k, r in content(lookalike.open(back).store).items() if k[0].startswith(letter)}
                differ(restored, expected, f"restored from {file}")
                shutil.rmtree(back)
                self.figures["backups restored"] += 1
            model.backups = {}
            for _, after in self.waiting[letter]:
                after.backups = {f: r for f, r in after.backups.items() if not Path(f).exists()}
        litter(catalog)


def differ(found: Rows, wanted: Rows, where: str) -> None:
    if found != wanted:
        told = [
            f"{key}: {found.get(key)} instead of {wanted.get(key)}"
            for key in sorted(found.keys() | wanted.keys()) if found.get(key) != wanted.get(key)
        ]  # fmt: skip
        raise Broken(f"{where}: {len(told)} rows differ: {told[:3]}")


def content(of: store.Store) -> Rows:
    """All rows of the latest version; none twice."""
    ours = {"lk_photo", "lk_id", "lk_position", "lk_path", "lk_digest", "lk_title", "lk_source"}
    names = [c for c in of.columns() if not c.startswith("lk_") or c in ours]
    out: Rows = {}
    for row in of.rows(names).to_pylist():
        key = row["lk_id"], row["lk_position"]
        expect(key not in out, f"{key} stands twice")
        expect(row["lk_photo"] == indexing.photo_key(*key), f"{key} has another's key")
        attributes = tuple(sorted((n, v) for n, v in row.items() if not n.startswith("lk_") and v is not None))
        out[key] = row["lk_path"], row["lk_digest"], row["lk_title"], attributes, row["lk_source"]
    return out


def sound(catalog: lookalike.Catalog) -> dict[str, Any]:
    """It opens, verifies, and a snapshot (also one that stands on derived files) shows what the rows say."""
    found = catalog.verify()
    expect(not found["damaged"], f"verify: {found['damaged']}")
    rows = by_product(content(catalog.store))
    whole, latest = catalog.whole(), catalog.snapshot()
    for shown in (latest, whole):
        ids = [shown.ids[n] for n in shown.positions]
        expect(ids == sorted(rows), f"the snapshot shows {set(ids) ^ set(rows)} otherwise")
        for identity, photos in rows.items():
            n = shown.product(identity)
            first = photos[min(photos)]
            expect(
                (shown.titles[n], shown.attributes_of([n])[0])
                == (first[2], {name: snapshot.number(value) for name, value in first[3]}),
                f"the snapshot shows {identity} otherwise",
            )
            expect(
                [shown.digests[r] for r in shown.rows(n)] == [photos[p][1] for p in sorted(photos)],
                f"photos of {identity}",
            )
    for identity in rows:
        one, other = (shown.vectors[list(shown.rows(shown.product(identity)))] for shown in (latest, whole))
        expect((one == other).all(), f"vectors of {identity} are not those of the catalog")
    catalog.status()
    return found


OURS = {"catalog.json", "photos.lance", "quarantine.json", "uploads", "keys.json", "feedback.jsonl", "index", "writer.lock",
        "keys.lock", "keys-writer.lock"}  # fmt: skip


def litter(catalog: lookalike.Catalog) -> None:
    """What killed writers left is bounded: it is replaced or swept."""
    if catalog.store.remote:
        return
    here = {p.name for p in Path(catalog.store.directory).iterdir()}
    left = (
        here
        - OURS
        - {f"{name}.part" for name in OURS}
        - {"writer.json", "keys-writer.json", "writer.json.part", "keys-writer.json.part"}
    )
    expect(not left, f"files that nobody knows: {left}")
    if catalog.store.cache.is_dir():
        generations = [p for p in catalog.store.cache.iterdir() if p.is_dir()]
        expect(len(generations) <= 12, f"{len(generations)} generations of derived files")


def patiently(work: Callable[[], None]) -> None:
    """A lease of a child that was killed must lapse first."""
    until = time.monotonic() + 60
    while True:
        try:
            return work()
        except CatalogLocked:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def start(role: str, plan: dict[str, Any], file: Path, clock: int = 0, **more: Any) -> Any:
    """A process of this program, with its plan in a file."""
    file.write_text(json.dumps(plan))
    environment = dict(os.environ)
    if clock and FAKETIME.is_file():
        environment |= {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{clock:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    command = [sys.executable, __file__, role, str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **more)


# A power cut


CUTS = 6
"""What may be left after one power cut, that is looked at."""


class Disk:
    """What of a folder would be there after a power cut.

    At worst contents as they were synced, and names as they were when their folders were. Or all names, since a journal has
    them, and of what was not synced some contents, while others end in zeros: the disk writes in any order.
    """

    def __init__(self, kept: Path):
        self.kept = kept
        self.kept.mkdir()
        self.files: dict[int, Path] = {}
        self.folders: dict[int, dict[str, tuple[int, bool, int]]] = {}
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            self.synced(descriptor)

        os.fsync = fsync

    def synced(self, descriptor: int) -> None:
        """A file's content, or a folder's names, are on the disk."""
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        status = os.fstat(descriptor)
        if path.is_dir():
            self.folders[status.st_ino] = self.names(path)
        elif not str(path).endswith(" (deleted)"):
            if status.st_ino not in self.files:  # a second name, so that no other file gets its number
                os.link(path, self.kept / f"{status.st_ino}.name")
            self.files[status.st_ino] = self.kept / str(status.st_ino)
            shutil.copyfile(path, self.files[status.st_ino])

    def names(self, folder: Path) -> dict[str, tuple[int, bool, int]]:
        with os.scandir(folder) as entries:
            return {e.name: (e.inode(), e.is_dir(), e.stat().st_size) for e in entries}

    def cut(self, folder: Path, target: Path, journal: random.Random | None) -> None:
        """What is left of a folder; with a ``journal``, which draws what else was written, all names are."""
        target.mkdir()
        found = self.names(folder) if journal else self.folders.get(folder.stat().st_ino, {})
        for name, (number, is_folder, size) in found.items():
            if is_folder and (journal or (folder / name).is_dir()):
                self.cut(folder / name, target / name, journal)
            elif number in self.files:
                shutil.copyfile(self.files[number], target / name)
            elif not is_folder:
                path = folder / name
                there = path.read_bytes() if journal and path.is_file() else b""
                if journal and journal.random() < 0.1:
                    there = there[: journal.randrange(size + 1)]
                (target / name).write_bytes(there.ljust(size, b"\0"))


def power(place: Path, seed: int, number: int) -> Counter[str]:
    """Operations until the power is cut, right after one is acknowledged; then what was acknowledged is there."""
    if not Path("/proc/self/fd").is_dir():
        raise Untried("no /proc, by which what is synced is seen")
    world = place / "world"
    world.mkdir()
    life = Life(world, seed, number)
    life.models = {"a": life.models["a"]}
    model, operations, chance = life.models["a"], [], life.chance
    for n in range(chance.randint(1, 10)):
        operations.append(model.draw(chance, {"index": 1.0} if not n else life.kinds))
    plan = {"directory": life.directory, "settings": life.settings, "operations": operations, "hook": None, "clock": 0,
            "power": [str(world), str(place / "left"), str(place / "kept")]}  # fmt: skip
    process = start("--child", plan, place / "plan.json")
    _, errors = process.communicate()
    expect(process.returncode == 0, f"ended with {process.returncode}: {errors.decode()[-2000:]}")
    configure(life.settings)
    for n in range(CUTS):
        survived(place / f"left{n}", model)
    return Counter({"power cuts": CUTS, "operations before them": len(operations)})


def survived(place: Path, model: Model) -> None:
    """All of the model is in what a power cut left."""
    left = place / "shop.catalog"
    expect(left.is_dir(), "the catalog's directory was not synced")
    catalog = lookalike.open(left, encoder="fake")
    expect(catalog.store.exists, "there is no catalog.json")
    sound(catalog)
    differ(content(catalog.store), model.rows, "after the power cut")
    votes = Counter(v.product for v in feedback.read(left))
    expect(votes == Counter(model.votes), f"votes after the power cut: {votes}, not {model.votes}")
    expect({k.name for k in keys.read(left)} == set(model.keys), "keys after the power cut")
    for row in model.rows.values():
        if "/uploads/" in row[0]:
            file = left / "uploads" / row[0].rpartition("/uploads/")[2]
            expect(file.is_file() and images.digest(file.read_bytes()) == row[1], f"an upload is gone: {file}")
    for file in model.backups:
        lookalike.restore(place / Path(file).name, place / "back")
        shutil.rmtree(place / "back")


# A full disk, and one that is read alone


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[Path]:
    """A tmpfs of so many bytes. Raises OSError where it cannot be mounted."""
    disk = place / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if done.returncode:
        raise Untried(f"no tmpfs: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


class Untried(Exception):
    """A case that this machine does not allow."""


def full(place: Path, seed: int, number: int) -> Counter[str]:
    """An operation on a disk with little room: done, or told and nothing changed; with room again it is done."""
    figures: Counter[str] = Counter()
    with small_disk(place, 6 * 2**20) as disk:
        life = Life(disk, seed, number)
        life.models = {"a": life.models["a"]}
        model = life.models["a"]
        model.place = place  # photos and tables lie elsewhere
        model.directory = life.directory
        chance, filler = life.chance, disk / "filler"
        configure(life.settings)
        kinds = {**KINDS, "other": 0, "key": 0.5, "backup": 3}
        for n in range(8):
            filler.unlink(missing_ok=True)
            after = model.copy()
            after.spare = chance.choice([disk, place])
            operation = after.draw(chance, {"index": 1.0} if not model.rows else kinds)
            room = shutil.disk_usage(disk).free
            leave = chance.choice([0, chance.randrange(5_000), chance.randrange(60_000), chance.randrange(400_000)])
            if n:
                filler.write_bytes(bytes(max(0, room - leave)))
            plan = {
                "directory": life.directory,
                "settings": life.settings,
                "operations": [operation],
                "hook": None,
                "clock": 0,
            }
            process = start("--child", plan, place / "plan.json")
            _, errors = process.communicate()
            last = errors.decode().strip().split("\n")[-1]
            filler.unlink(missing_ok=True)
            if process.returncode:
                typed = ("lookalike.errors.CatalogError", "lookalike.errors.InputError")
                expect(
                    last.startswith(typed),
                    f"{operation['do']} on a full disk ended with {process.returncode}: {errors.decode()[-1500:]}",
                )
                told = "full" in last or "No space" in last
                expect(told, f"{operation['do']} on a full disk does not say so: {last}")
                figures["told"] += 1
            else:
                figures["had room"] += 1
            life.waiting["a"], life.pending = [(operation, after)], {"a": 0.0 if process.returncode else None}
            if not process.returncode:
                life.models["a"] = after
            life.check()
            model = life.models["a"]
            figures["operations on a full disk"] += 1
    return figures


def read_only(place: Path, seed: int, number: int) -> Counter[str]:
    """A directory that cannot be written answers and is backed up, and says so where something is to be written."""
    with small_disk(place, 16 * 2**20) as disk:
        life = Life(disk, seed, number)
        model = life.models["a"]
        model.place, chance = place, life.chance
        configure(life.settings)
        catalog = lookalike.open(life.directory, encoder="fake")
        for n in range(6):
            perform(catalog, model.draw(chance, {"index": 1.0} if not n else {**KINDS, "other": 0, "backup": 0}))
        shutil.copytree(life.directory, place / "rows")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        try:
            told = 0
            sound(lookalike.open(life.directory, encoder="fake"))
            expect(lookalike.open(life.directory).search("red"), "no hits")
            lookalike.open(life.directory).backup(place / "b.zip")
            for do in KINDS:
                if do in ("backup", "other"):
                    continue
                operation = model.copy().draw(chance, {do: 1.0})
                try:
                    perform(lookalike.open(life.directory, encoder="fake"), operation)
                except CatalogError as error:
                    expect("annot be written" in str(error) or "annot be kept" in str(error), f"{do}: {error}")
                    told += 1
                else:
                    raise Broken(f"{do} on a read-only directory: no error")
            sound(lookalike.open(life.directory, encoder="fake"))
        finally:
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        perform(catalog, model.draw(chance, {"index": 1.0}))
        differ(content(catalog.store), model.rows, "writable again")
    return Counter({"read-only: told": told})


def kill(place: Path, seed: int, number: int, kills: int = LIFE) -> Counter[str]:
    life = Life(place, seed, number)
    try:
        life.run(kills)
    except Exception as error:
        error.figures = life.figures  # type: ignore[attr-defined]
        raise
    return life.figures


def s3(place: Path, seed: int, number: int) -> Counter[str]:
    """As ``kill``, on a server of S3."""
    import logging
    import urllib.request

    try:
        from moto.server import ThreadedMotoServer
    except ImportError as error:
        raise Untried(f"no moto: {error}") from error
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
                       "AWS_REGION": "us-east-1", "LOOKALIKE_CACHE": str(place / "cache")}  # fmt: skip
        urllib.request.urlopen(urllib.request.Request(f"{address}/bucket{number}", method="PUT"))
        life = Life(place, seed, number, f"s3://bucket{number}/shop")
        life.run(4)
        return Counter({f"s3: {name}": value for name, value in life.figures.items()})
    finally:
        server.stop()


CASES: dict[str, Callable[[Path, int, int], Counter[str]]] = {
    "kill": kill,
    "s3": s3,
    "power": power,
    "full": full,
    "readonly": read_only,
}


def main() -> int:
    if sys.argv[1:2] in (["--child"], ["--reader"]):
        role = child if sys.argv[1] == "--child" else reader
        role(json.loads(Path(sys.argv[2]).read_text()))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="how many at least; lives of eight")
    parser.add_argument("--s3", type=int, default=4, help="lives of four kills on an S3 server")
    parser.add_argument("--power", type=int, default=40, help="power cuts")
    parser.add_argument("--full", type=int, default=10, help="full disks, eight operations each")
    parser.add_argument("--readonly", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", metavar="CASE:N", help="this one, for example kill:17; its folder is kept")
    parser.add_argument("--keep", action="store_true", help="keep the folders of what broke")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    wanted = {
        "kill": 10_000,
        "s3": options.s3,
        "power": options.power,
        "full": options.full,
        "readonly": options.readonly,
    }
    if options.only:
        case, _, number = options.only.partition(":")
        todo = iter([(case, int(number))])
    else:
        todo = (
            (case, n) for case, count in wanted.items() for n in range(count if case != "kill" or options.kills else 0)
        )
    figures: Counter[str] = Counter()
    broken, untried = [], []
    began = time.monotonic()
    for case, number in todo:
        if case == "kill" and not options.only and figures["kills"] >= options.kills:
            continue
        place = Path(tempfile.mkdtemp(prefix=f"durability-{case}-{number}-"))
        try:
            figures += CASES[case](place, options.seed, number)
        except Untried as error:
            untried.append(f"{case}:{number}: {error}")
        except Exception as error:
            figures += getattr(error, "figures", Counter())
            broken.append(f"{case}:{number}: {type(error).__name__}: {error}")
            print(f"BROKEN {broken[-1]}", flush=True)
            if not isinstance(error, Broken):
                import traceback

                traceback.print_exc()
        if options.only or (options.keep and broken and broken[-1].startswith(f"{case}:{number}:")):
            print(f"kept: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
        print(
            f"{case}:{number} {time.monotonic() - began:.0f} s, kills {figures['kills']}, broken {len(broken)}",
            flush=True,
        )
    result = {"seed": options.seed, "seconds": round(time.monotonic() - began), "figures": dict(sorted(figures.items())),
              "broken": broken, "untried": untried, "faketime": FAKETIME.is_file()}  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    return 1 if broken else 2 if untried else 0


if __name__ == "__main__":
    sys.exit(main())
