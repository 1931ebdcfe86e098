"""What the documentation says exists does exist: commands, options, routes, files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

import lookalike
from lookalike.cli import app
from lookalike.server.app import create_app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = get_command(app)


def blocks(page: Path, language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [text for name, text in fenced if name == language]


def commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            joined = block.replace("\\\n", " ")
            found += [(page.name, line) for line in joined.splitlines() if re.match(r"(\w+=\S+ )?lookalike \w", line)]
    return found


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_in_the_docs_can_be_typed(page: str, line: str):
    words = shlex.split(line, comments=True)
    words = words[words.index("lookalike") + 1 :]
    command = COMMAND
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    for word in words:
        if re.match(r"-\w|--", word):
            assert word in known, f"{page}: {line}"


def test_routes_in_the_guide_exist(catalog: lookalike.Catalog):
    described = create_app(catalog).openapi()["paths"]
    text = (ROOT / "docs" / "guide.md").read_text()
    routes = set(re.findall(r"(/api/[\w/{}]+|/healthz|/readyz)", text))
    assert len(routes) >= 7
    for route in routes:
        pattern = re.sub(r"\{\w+\}", "{}", route.split("?")[0])
        assert pattern in {re.sub(r"\{\w+\}", "{}", p) for p in described}, route


def test_the_tree_in_the_readme_is_the_tree():
    tree = blocks(ROOT / "README.md")[-1]
    named = set(re.findall(r"^\s+(\w+\.py|\w+/)", tree, re.M))
    package = ROOT / "src" / "lookalike"
    real = {p.name for p in package.rglob("*.py") if p.name != "__init__.py"} | {"__init__.py"}
    folders = {f"{p.name}/" for p in package.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert named - {"lookalike/"} == real | folders


def test_examples_in_python_run(tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch):
    from conftest import draw

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOOKALIKE_ENCODER", "fake")
    draw(tmp_path / "photos" / "dress" / "red.jpg", "red", "dress")
    draw(tmp_path / "dress.jpg", "blue", "dress")
    for page in PAGES:
        for block in blocks(page, "python"):
            runnable = block.replace('where="price < 50", ', "")  # these photos have no prices
            compile(runnable, page.name, "exec")
            made = lookalike.open(tmp_path / "shop.catalog", encoder="fake")
            made.index(tmp_path / "photos")
            names: dict[str, object] = {}
            exec(runnable, names)
            assert names["catalog"].search("red")  # type: ignore[attr-defined]


def test_settings_come_from_variables(monkeypatch: pytest.MonkeyPatch):
    parameters = {p.name: p for p in COMMAND.commands["serve"].params}
    assert parameters["catalog"].envvar == "LOOKALIKE_CATALOG"
    assert parameters["api_key"].envvar == "LOOKALIKE_API_KEY"
    assert COMMAND.context_settings["auto_envvar_prefix"] == "LOOKALIKE"
