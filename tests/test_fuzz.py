"""The small version of torture/fuzz.py, and that it would see what it looks for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lookalike import images
from lookalike.errors import ImageTruncated

SCRIPT = Path(__file__).parents[1] / "torture" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def work(fuzz: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made = fuzz.Work(fuzz.Bases([], [], 7), 7)
    monkeypatch.setenv("LOOKALIKE_PHOTOS", str(made.folder))
    yield made
    made.close()


def test_random_cases_are_used_or_refused_by_name(fuzz: Any, work: Any):
    first = len(fuzz.CLASSICS)
    results = [work.run(n) for n in range(first, first + 100)]
    assert [r for r in results if r["failure"]] == []
    classes = {r["class"].split()[0] for r in results}
    assert {"photo", "table"} <= classes
    outcomes = {r["outcome"] for r in results if r["class"].startswith("photo")}
    assert {"read", "ImageTruncated", "NotAnImage"} <= outcomes


def test_a_case_is_made_from_its_number_alone(fuzz: Any):
    photos = [fuzz.corrupted(fuzz.random_after_kind(3, n), fuzz.Bases([], [], 3)) for n in (5, 6, 5)]
    assert photos[0] == photos[2] != photos[1]


@pytest.mark.parametrize(
    "name", ["png_of_65535_by_1", "png_bomb_65535_square", "zero_bytes", "csv_paths", "xml_entities"]
)
def test_classics(fuzz: Any, work: Any, name: str):
    number = [n for n, _ in fuzz.CLASSICS].index(name)
    assert work.run(number)["failure"] == ""


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (ValueError("odd"), "ValueError: odd"),
        (ImageTruncated("is broken; mend it"), "does not name bad.jpg"),
        (ImageTruncated("bad.jpg: is broken"), "says no mend"),
        (ImageTruncated("bad.jpg: \x1b[31m; mend it"), "a message of"),
    ],
)
def test_what_is_wrong_is_seen(
    fuzz: Any, work: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, seen: str
):  # fmt: skip
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(images, "read", broken)
    number = [n for n, _ in fuzz.CLASSICS].index("one_byte")
    assert seen in work.run(number)["failure"]


def test_what_takes_too_much_is_seen(fuzz: Any, work: Any, monkeypatch: pytest.MonkeyPatch):
    number = [n for n, _ in fuzz.CLASSICS].index("png_of_65535_by_1")
    monkeypatch.setattr(fuzz, "SECONDS", -1)
    assert "s of CPU time" in work.run(number)["failure"]
    monkeypatch.setattr(fuzz, "SECONDS", 10)
    monkeypatch.setattr(fuzz, "MEGABYTES", -1)
    assert " MB" in work.run(number)["failure"]


def mortal(pipe: Any, *_: object) -> None:
    """In the place of a worker: dies at 1, hangs at 2."""
    while (number := pipe.recv()) is not None:
        if number == 1:
            os.abort()
        while number == 2:
            pass
        pipe.send({"case": number, "failure": ""})


def test_a_crash_and_a_hang_are_seen_and_the_rest_is_run(fuzz: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fuzz.Worker, "target", staticmethod(mortal))
    one = fuzz.Worker([], [], 1)
    assert "exit code -6" in one.run(1)["failure"]
    assert one.run(2, hang=0.5)["outcome"] == "hang"
    assert one.run(3)["failure"] == ""
    one.stop()
    assert not one.process.is_alive()
