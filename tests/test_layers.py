"""Imports point one way, and the base needs no torch."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lookalike

ROOT = Path(lookalike.__file__).parent
LAYERS = [
    {"errors"},
    {"types", "objects"},
    {"images", "colours", "where", "store", "indexes", "feedback", "stages"},
    {"sources", "encoders", "demo"},
    {"segment"},
    {"snapshot"},
    {"insights"},
    {"search", "indexing", "evaluation"},
    {"training", "cluster", "backup"},
    {"catalog"},
    {"__init__"},
    {"server"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up; a module may import what is below its own row, and its own package."""


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lookalike":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lookalike.")}
    modules = {p.stem if p.is_file() else p.name for p in ROOT.iterdir()}
    return found & modules


def test_imports_point_one_way():
    level = {name: n for n, row in enumerate(LAYERS) for name in row}
    seen = 0
    for file in ROOT.rglob("*.py"):
        module = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports(file):
            seen += 1
            assert other == module or level[other] < level[module], f"{file.name} imports {other}"
    assert seen > 50


def test_only_training_and_its_encoders_import_torch():
    allowed = {ROOT / "encoders" / name for name in ("torch.py", "clip.py", "text.py")}
    for file in set(ROOT.rglob("*.py")) - allowed:
        if file.relative_to(ROOT).parts[0] != "training":
            assert not re.search(r"^\s*(import|from) torch\b", file.read_text(), re.M), file
