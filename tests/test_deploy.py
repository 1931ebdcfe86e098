"""What the files for deployment say is true of the program: Docker itself is not at hand where tests run."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

import lookalike
from lookalike.cli import app
from lookalike.server import security
from lookalike.server.app import create_app

ROOT = Path(__file__).parents[1]
DOCKERFILE = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M))
INSTRUCTIONS = [line.split(None, 1) for line in DOCKERFILE.splitlines() if line.strip()]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICE = COMPOSE["services"]["lookalike"]
COMMANDS = get_command(app).commands
PARAMETERS = [p for command in COMMANDS.values() for p in getattr(command, "params", [])]


def said(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def option(command: list[str], name: str) -> str | None:
    """An option's value as given, or its default; the option exists."""
    (found,) = [p for p in COMMANDS[command[0]].params if name in p.opts]
    return command[command.index(name) + 1] if name in command else found.default


def test_both_serve_at_the_port_that_is_exposed_to_all_with_a_key():
    command = json.loads(said("CMD")[-1])
    assert command == SERVICE["command"]
    assert json.loads(said("ENTRYPOINT")[-1]) == ["lookalike"]
    assert option(command, "--host") == "0.0.0.0"
    assert str(option(command, "--port")) == said("EXPOSE")[0]
    (published,) = SERVICE["ports"]
    assert published == f"127.0.0.1:8000:{said('EXPOSE')[0]}"  # to this machine alone: TLS is the proxy's
    assert SERVICE["environment"]["LOOKALIKE_API_KEY"].startswith("${LOOKALIKE_API_KEY:?")  # refuses to start without


def test_variables_are_those_that_the_program_reads():
    known = {p.envvar for p in PARAMETERS if p.envvar}
    used = set(re.findall(r"LOOKALIKE_\w+", (ROOT / "Dockerfile").read_text() + (ROOT / "compose.yaml").read_text()))
    assert used and used <= known
    environment = dict(re.findall(r"(\w+)=(\S+)", said("ENV")[-1]))
    assert environment["LOOKALIKE_CATALOG"].startswith(said("VOLUME")[0])


def test_what_is_kept_lies_in_the_volume_and_nothing_else_can_be_written():
    volumes = [v.split(":") for v in SERVICE["volumes"]]
    assert ["catalog", said("VOLUME")[0]] in volumes
    assert "catalog" in COMPOSE["volumes"]
    assert all(v[-1] == "ro" for v in volumes if v[0] != "catalog")
    assert SERVICE["read_only"] is True
    assert SERVICE["cap_drop"] == ["ALL"]
    user = said("USER")[-1]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    assert f"-o {user.split(':')[0]}" in DOCKERFILE
    assert len(said("FROM")) == 2


def test_requirements_are_locked_by_hash_and_hold_no_torch():
    (install,) = [r for r in said("RUN") if "install" in r and "-r " in r]
    assert "--require-hashes" in install and "--only-binary :all:" in install
    text = (ROOT / "requirements.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip()]
    assert all("--hash=sha256:" in line for line in lines)
    assert not [line for line in lines if re.match(r"(torch|nvidia|triton)\b", line)]
    declared = {re.match(r"[\w-]+", d)[0] for d in re.findall(r'^    "(\w[^"]*)",$', _base(), re.M)}  # type: ignore[index]
    assert declared and declared <= {re.match(r"[\w-]+", line)[0] for line in lines}  # type: ignore[index]


def _base() -> str:
    return (ROOT / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("\n]", 1)[0]


def test_what_is_copied_is_there_and_not_ignored():
    ignored = [p for p in (ROOT / ".dockerignore").read_text().splitlines() if p and not p.startswith("#")]
    copied = [shlex.split(rest)[:-1] for rest in said("COPY") if "--from" not in rest]
    assert len(copied) >= 3
    for source in (s for sources in copied for s in sources):
        assert (ROOT / source).exists(), source
        state = False
        for pattern in ignored:  # the last that matches decides
            if fnmatch.fnmatch(source.split("/")[0], pattern.lstrip("!")):
                state = not pattern.startswith("!")
        assert not state, f"{source} is ignored"


def test_the_health_check_tells_a_server_that_answers_from_one_that_does_not(catalog: lookalike.Catalog):
    check = json.loads(said("HEALTHCHECK")[0].split("CMD", 1)[1])
    path = re.search(r"127\.0\.0\.1:8000(/\w+)", check[-1])[1]  # type: ignore[index]
    assert path in create_app(catalog).openapi()["paths"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == path else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    code = check[-1].replace("8000", str(server.server_address[1]))
    assert subprocess.run([sys.executable, *check[1:-1], code]).returncode == 0
    assert (
        subprocess.run([sys.executable, *check[1:-1], code.replace(path, "/no")], capture_output=True).returncode != 0
    )
    server.shutdown()
    thread.join()
    server.server_close()
    assert subprocess.run([sys.executable, *check[1:-1], code], capture_output=True).returncode != 0


def test_proxies_refuse_what_the_server_would_refuse():
    text = (ROOT / "docs" / "deploy.md").read_text()
    limit = security.MAX_BODY // 2**20
    assert f"client_max_body_size {limit}m;" in text
    assert f"max_size {limit}MiB" in text


def test_the_unit_in_the_docs_starts_commands_that_exist():
    starts = re.findall(r"^ExecStart=\S+/lookalike (.*)$", (ROOT / "docs" / "deploy.md").read_text(), re.M)
    assert len(starts) == 2
    for words in map(shlex.split, starts):
        for word in words[1:]:
            if word.startswith("--"):
                assert [p for p in COMMANDS[words[0]].params if word in p.opts], word
