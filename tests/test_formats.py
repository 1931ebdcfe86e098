"""Catalogs and backups of every earlier format: made by the versions of their time, opened and used by this one.

``catalog-1-first`` is by the first version that had a catalog: no colours, no ``photo_dim``, no ``source``. Each has four
products of one photo, of which the last was removed, and a row in quarantine; photos and table lay in /srv/shop.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

import lookalike
from lookalike.errors import CatalogError
from lookalike.store import FORMAT

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", sorted(p.stem for p in DATA.glob("catalog-*.zip")))
def test_a_catalog_of_an_earlier_format_is_used_as_any(tmp_path: Path, name: str):
    with zipfile.ZipFile(DATA / f"{name}.zip") as archive:
        archive.extractall(tmp_path)
    old = lookalike.open(tmp_path / "shop.catalog")
    assert [h.id for h in old.search("blue", where="price < 20")] == ["p1", "p0"]
    assert old.product("p1")["attributes"] == {"colour": "Blue", "price": 15.5, "new": True}
    assert [q.reason for q in old.quarantine()] == ["the photo img/none.png is not there"]
    found = old.verify()
    assert (found["photos"], found["damaged"], found["changed"], len(found["missing"])) == (3, [], [], 3)
    lost = old.store.directory.parent / "lost.zip"
    old.backup(lost)
    moved = lookalike.restore(lost, tmp_path / "moved", photos={"/srv/shop": str(tmp_path)})
    assert (moved["photos"], moved["damaged"], moved["changed"], moved["missing"]) == (3, [], [], [])
    assert lookalike.open(tmp_path / "moved").search("blue", k=1)[0].id == "p1"
    vectors = {r["lk_id"]: r["lk_vector"] for r in old.store.rows().to_pylist()}
    for catalog in (old, lookalike.open(tmp_path / "moved")):
        report = catalog.index(tmp_path / "products.csv")
        assert report.added == 1  # the one that was removed
        rows = {r["lk_id"]: r for r in catalog.store.rows().to_pylist()}
        assert sorted(rows) == ["p0", "p1", "p2", "p3"]
        assert all(rows[i]["lk_vector"] == vector for i, vector in vectors.items())
        assert all(r["lk_colours"] for r in rows.values())
        catalog.reindex("int8")
        catalog.remove("p2")
        catalog.compact()
        assert [h.id for h in catalog.search("blue", where="price < 20")] == ["p1", "p0"]
        assert catalog.verify() == {"photos": 3, "damaged": [], "changed": [], "missing": []}
        assert catalog.index(tmp_path / "products.csv").unchanged == 3


@pytest.mark.parametrize("name", sorted(p.name for p in DATA.glob("backup-*.zip")))
def test_a_backup_of_an_earlier_format_is_restored(tmp_path: Path, name: str):
    found = lookalike.restore(DATA / name, tmp_path / "shop")
    assert (found["photos"], found["damaged"], len(found["missing"])) == (3, [], 3)
    made = lookalike.open(tmp_path / "shop")
    assert [h.id for h in made.search("blue", where="price < 20")] == ["p1", "p0"]
    assert [q.reason for q in made.quarantine()] == ["the photo img/none.png is not there"]


def test_there_is_a_catalog_of_every_format_that_was():
    held = {
        json.loads(zipfile.ZipFile(p).read("shop.catalog/catalog.json"))["format"] for p in DATA.glob("catalog-*.zip")
    }
    assert held == set(range(1, FORMAT + 1))


def test_a_later_format_is_refused_by_name(tmp_path: Path):
    with zipfile.ZipFile(DATA / "catalog-1.zip") as archive:
        archive.extractall(tmp_path)
    file = tmp_path / "shop.catalog" / "catalog.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": FORMAT + 1, "shards": 4}))
    with pytest.raises(
        CatalogError, match=f"of format {FORMAT + 1}, this version reads up to {FORMAT}; upgrade lookalike"
    ):
        lookalike.open(tmp_path / "shop.catalog")
