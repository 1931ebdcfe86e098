"""The long programs of torture/ at their smallest."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

TORTURE = Path(__file__).parents[1] / "torture"


@pytest.fixture
def durability(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("durability", TORTURE / "durability.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "durability", module)
    spec.loader.exec_module(module)
    for places in module.SETTINGS.values():
        for owner, name in places:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    yield module


def test_kills_lose_nothing(durability: ModuleType, tmp_path: Path):
    figures = durability.kill(tmp_path, seed=1, number=1, kills=2)
    assert figures["kills"] + figures["ended before the kill"] == 2
    assert figures["operations acknowledged"] + figures["operations run again"] > 0
    assert figures["answers"] > 0


def test_a_power_cut_takes_nothing(durability: ModuleType, tmp_path: Path):
    assert durability.power(tmp_path, seed=1, number=12)["power cuts"] == durability.CUTS


def test_the_model_tells_what_is_lost(durability: ModuleType, tmp_path: Path):
    """The program can fail: a row less, a row of before, an answer that never was."""
    life = durability.Life(tmp_path, 1, 1)
    model = life.models["a"]
    operation = model.draw(life.chance, {"index": 1.0})
    catalog = durability.lookalike.open(life.directory, encoder="fake")
    durability.perform(catalog, operation)
    rows = durability.content(catalog.store)
    durability.differ(rows, model.rows, "as it is")
    assert durability.sound(catalog)["photos"] == len(rows) > 3
    catalog.remove(sorted(rows)[0][0])
    with pytest.raises(durability.Broken, match="rows differ"):
        durability.differ(durability.content(catalog.store), model.rows, "one less")
    history = durability.History()
    history.change({}, rows, 10.0, 11.0)
    (identity, _), row = next(iter(rows.items()))
    photos = durability.by_product(rows)[identity]
    state = durability.summary(photos)
    assert history.allows(identity, state, 10.5, 10.6, whole=True)
    assert history.allows(identity, None, 10.5, 10.6, whole=True)
    assert not history.allows(identity, None, 11.5, 11.6, whole=True)
    assert not history.allows(identity, state, 9.0, 9.5, whole=True)
    assert not history.allows(identity, [f"{row[2]} other", *state[1:]], 12.0, 13.0, whole=True)
