"""What is installed and how it is built: locked versions, the wheel and its SBOM, weights by their digests, nothing pickled."""

from __future__ import annotations

import ast
import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lookalike
from lookalike import encoders
from lookalike.encoders.onnx import OnnxEncoder, write_config
from lookalike.errors import EncoderMismatch, InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
BUILTIN = ROOT / "src" / "lookalike" / "builtin"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

# Nothing is pickled: what is read back is JSON, Arrow, plain .npy, safetensors or ONNX, which run no code.

PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"torch.load", "torch.save", "torch.jit.load", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
METHODS = {"read_pickle", "to_pickle", "load_from_checkpoint"}
MENTIONED = re.compile(
    r"pickl|joblib|dill|shelve|marshal|torch.*\b(load|save)\b|yaml.*load|eval|exec|load_from_checkpoint|weights_only"
)
"""Without any of these words a program need not be parsed."""

TRAVEL = {"test_indexing.py": {"pickle"}, "test_docs.py": {"exec"}, "test_supply.py": set()}
"""Work for a Ray cluster travels as Ray packs it: that it can is tried. Examples of the documentation are run."""


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(file: Path) -> Iterator[str]:
    """What in a program could pickle, unpickle, or run text as code."""
    text = file.read_text("utf-8")
    for node in ast.walk(ast.parse(text)) if MENTIONED.search(text) else ():
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in PICKLERS)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from [node.module] if node.module.split(".")[0] in PICKLERS else []
            yield from (f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in CALLS)
        elif isinstance(node, ast.Call):
            name, options = name_of(node.func), {k.arg: k.value for k in node.keywords}
            allowed = options.get("allow_pickle")
            never = isinstance(allowed, ast.Constant) and allowed.value is False
            # numpy does not unpickle unless it is told to.
            if "weights_only" in options or (allowed is not None and not never):
                yield f"{name} with allow_pickle or weights_only"
            elif name in CALLS or name.rpartition(".")[2] in METHODS:
                yield name


def test_nothing_is_pickled_or_evaluated():
    files = [f for part in ("src", "tests", "benchmarks", "torture", "examples") for f in (ROOT / part).rglob("*.py")]
    files += [f for f in (ROOT / "scripts").iterdir() if f.read_text().startswith("#!/usr/bin/env python3")]
    assert len(files) > 100
    for file in files:
        found = set(unsafe(file)) - TRAVEL.get(file.name, set())
        assert not found, f"{file}: {found}"


@pytest.mark.parametrize(
    "program",
    ["import pickle", "from joblib import load", "import torch\ntorch.load(f)", "from torch import load", "eval(x)",
     "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=maybe)", "f(weights_only=True)", "frame.to_pickle(f)"],
)  # fmt: skip
def test_what_pickles_is_seen(tmp_path: Path, program: str):
    (tmp_path / "x.py").write_text(program)
    assert list(unsafe(tmp_path / "x.py"))


def test_no_file_that_ships_is_of_a_kind_that_is_pickled():
    named = {f.suffix for part in ("src", "tests", "docs", "examples") for f in (ROOT / part).rglob("*") if f.is_file()}
    assert not named & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".ckpt"}, named


def test_arrays_of_objects_are_not_read(tmp_path: Path):
    """An array file whose content would be unpickled is refused by numpy, as everything here calls it."""

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    np.save(tmp_path / "x.npy", np.array([Evil()], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        np.load(tmp_path / "x.npy")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt", ".joblib", ".PT"])
def test_weights_that_could_run_code_are_refused_by_their_name(tmp_path: Path, suffix: str):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(InputError, match=rf"model\{suffix}: weights of this kind can run code .*safetensors"):
        encoders.load(str(file))


def test_no_library_keeps_a_diary_of_its_use_to_send(tmp_path: Path):
    """onnxruntime's packages queue events for Microsoft in the user's cache, with an id of the machine, unless told not to."""
    hushed = ("CI", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in hushed} | {
        "HOME": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    code = "from lookalike.encoders import load; print(load('builtin', threads=1).encode_texts(['red']).shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "(1, 256)", done.stderr
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


# Weights are those that were sealed.


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILTIN, tmp_path / "mine"))


@pytest.mark.parametrize("name", ["photo.onnx", "text.onnx", "tokenizer.json"])
def test_a_bit_that_flipped_in_the_weights_is_told(sealed: Path, name: str):
    content = bytearray((sealed / name).read_bytes())
    content[len(content) // 2] ^= 4
    (sealed / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"mine: not a whole encoder \({re.escape(name)} is damaged .*install or export it"
    ):
        encoders.load(str(sealed))


def test_files_are_named_in_the_encoders_own_directory(sealed: Path):
    config = json.loads((sealed / "encoder.json").read_text())
    for name in ("../mine/photo.onnx", str(sealed / "photo.onnx")):
        (sealed / "encoder.json").write_text(json.dumps({**config, "photo": name}))
        with pytest.raises(InputError, match="is no name of a file beside"):
            encoders.load(str(sealed))


def test_an_encoder_without_digests_is_read_and_sealed(sealed: Path):
    config = json.loads((sealed / "encoder.json").read_text())
    digests, code = config.pop("sha256"), encoders.load(str(sealed)).id
    (sealed / "encoder.json").write_text(json.dumps(config))  # as versions before wrote them
    assert encoders.load(str(sealed)).id == code
    write_config(sealed, config)
    assert json.loads((sealed / "encoder.json").read_text())["sha256"] == digests
    assert digests == {n: hashlib.sha256((BUILTIN / n).read_bytes()).hexdigest() for n in digests}
    assert set(digests) == {"photo.onnx", "text.onnx", "tokenizer.json"}


def test_no_weights_name_the_machine_that_made_them():
    for name in ("photo.onnx", "text.onnx"):
        content = (BUILTIN / name).read_bytes()
        assert not any(place in content for place in (b"site-packages", b"lookalike/training"))


def test_the_trial_tells_a_net_that_computes_something_else(sealed: Path):
    made = OnnxEncoder(sealed, 1)
    assert all(cosine > 0.999 for cosine in made.tried().values())
    assert set(made.tried()) == {"photo", "text"}
    other = np.random.default_rng(0).integers(-127, 128, made.dim).astype(np.int8)
    made._trial["text"] = base64.b64encode(other.tobytes()).decode()
    assert made.tried()["text"] < 0.5 < 0.999 < made.tried()["photo"]


def test_a_catalog_refuses_weights_that_were_exchanged_under_it(sealed: Path, table: Path, tmp_path: Path):
    """What a catalog remembers of weights by path, or from the hub, is their digest: others are other encoders."""
    lookalike.open(tmp_path / "shop", encoder=str(sealed)).index(table)
    assert lookalike.open(tmp_path / "shop").search("red shirt", k=1)
    vocabulary = json.loads((sealed / "tokenizer.json").read_text("utf-8"))
    vocabulary["model"]["max_input_chars_per_word"] = 99
    (sealed / "tokenizer.json").write_text(json.dumps(vocabulary), "utf-8")
    config = json.loads((sealed / "encoder.json").read_text())
    write_config(sealed, {k: v for k, v in config.items() if k != "sha256"})  # sealed anew: whole, but not the same
    with pytest.raises(
        EncoderMismatch,
        match=r"its vectors were made by builtin-.*; its weights are others now: bring those back, or index",
    ):
        lookalike.open(tmp_path / "shop").search("red shirt")


def test_a_catalog_of_an_earlier_built_in_model_says_what_to_do(table: Path, tmp_path: Path):
    catalog = lookalike.open(tmp_path / "shop", encoder="builtin")
    catalog.index(table)
    with pytest.raises(EncoderMismatch, match=r"another one now: install the version that made them, or index into"):
        catalog.store.check_encoder("builtin-000000000000", "builtin")


# The lock


def locked(file: str) -> list[tuple[Requirement, list[str]]]:
    """Requirements of a lock file, each with its hashes."""
    lines = (ROOT / file).read_text("utf-8").replace("\\\n", " ").splitlines()
    parts = [line.split("--hash=") for line in lines if line.strip() and not line.startswith("#")]
    return [(Requirement(p[0].strip()), [h.strip() for h in p[1:]]) for p in parts]


def wanted(extra: str = "") -> list[Requirement]:
    """What pyproject.toml asks for, with what extras of our own bring."""
    lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    own = [Requirement(line) for line in lines]
    return [r for r in own if r.name != "lookalike"] + [
        inner for r in own if r.name == "lookalike" for name in sorted(r.extras) for inner in wanted(name)
    ]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_is_exact_hashed_and_names_no_address(file: str):
    text = (ROOT / file).read_text("utf-8")
    assert not re.search(r"https?:|file:|git\+|--(extra-)?index-url|--find-links|--trusted-host|/simple/", text)
    for requirement, hashes in locked(file):
        assert requirement.url is None
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        assert "*" not in str(requirement.specifier)
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in hashes), requirement


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_the_project_on_every_python(file: str, python: str):
    pins: dict[str, list[str]] = {}
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"), ("win32", "AMD64")):
        here = {
            "python_version": python, "python_full_version": f"{python}.0", "sys_platform": system, "platform_machine": machine,
            "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system],
            "os_name": "nt" if system == "win32" else "posix", "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
        }  # fmt: skip
        pins.clear()
        for requirement, _ in locked(file):
            if requirement.marker is None or requirement.marker.evaluate(here):
                version = next(iter(requirement.specifier)).version
                pins.setdefault(canonicalize_name(requirement.name), []).append(version)
        assert all(len(versions) == 1 for versions in pins.values()), "two versions of one package at once"
        more = [] if file == "requirements.txt" else [*wanted("dev"), *wanted("train")]
        for requirement in [*wanted(), *more]:
            if requirement.name == "torch" or (requirement.marker and not requirement.marker.evaluate(here)):
                continue  # by name, in the Makefile: its builds differ by platform
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{requirement} is not in {file} for Python {python} on {system}"
            assert requirement.specifier.contains(Version(pins[name][0])), f"{requirement}: {file} has {pins[name][0]}"


def test_torch_is_one_version_and_within_its_range():
    (ours,) = set(re.findall(r"torch==([\d.]+)", (ROOT / "Makefile").read_text()))
    assert f'"torch=={ours}"' in (ROOT / "pyproject.toml").read_text()
    (range_,) = [r for r in wanted("torch") if r.name == "torch"]
    assert range_.specifier.contains(ours)


def test_an_audit_that_was_none_is_not_taken_for_one(tmp_path: Path):
    """``scripts/audit``: 0 audited, 1 vulnerable, 2 not audited. The database here is one that says what is wanted."""
    (tmp_path / "pip_audit").mkdir()
    (tmp_path / "pip_audit" / "__init__.py").touch()
    (tmp_path / "pip_audit" / "__main__.py").write_text(
        "import json, os, sys\n"
        "pins = [line.strip().split('==') for line in open(sys.argv[-1])]\n"
        "if os.environ['SAYS'] == 'down': sys.exit('no route to host')\n"
        "vuln = [{'id': 'PYSEC-1', 'aliases': ['CVE-1'], 'fix_versions': ['9']}]\n"
        "told = lambda n: {'skip_reason': 'not found'} if os.environ['SAYS'] == 'nothing' else\\\n"
        "    {'vulns': vuln if n == os.environ['SAYS'] else []}\n"
        "print(json.dumps({'dependencies': [{'name': n, 'version': v, **told(n)} for n, v in pins]}))\n"
    )
    for says, code, line in [
        ("all well", 0, "locked versions audited: 0 known"),
        ("numpy", 1, "PYSEC-1 (CVE-1), mended in 9"),
        ("nothing", 2, "NOT AUDITED"),
        ("down", 2, "no route to host"),
    ]:
        command = [sys.executable, ROOT / "scripts" / "audit"]
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "SAYS": says}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert (done.returncode, line in done.stdout) == (code, True), done.stdout + done.stderr


# What is built


def built(into: Path, source: Path, **environment: str) -> Path:
    """The wheel of a copy of the sources."""
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
    done = subprocess.run(
        command, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True, umask=0o077
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = into.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return built(folder / "dist", folder / "source")


def test_the_wheel_is_the_same_bytes_wherever_and_whenever_it_is_built(wheel: Path, tmp_path: Path):
    again = built(tmp_path / "dist", tmp_path / "some" / "where else", TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="1")
    assert again.name == wheel.name
    assert hashlib.sha256(again.read_bytes()).hexdigest() == hashlib.sha256(wheel.read_bytes()).hexdigest()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"lookalike-{lookalike.__version__}.dist-info/METADATA").decode()
        record = archive.read(f"lookalike-{lookalike.__version__}.dist-info/RECORD").decode()
        for name, digest, _ in csv.reader(io.StringIO(record)):
            if digest:
                content = hashlib.sha256(archive.read(name)).digest()
                assert digest == "sha256=" + base64.urlsafe_b64encode(content).rstrip(b"=").decode(), name
    info = f"lookalike-{lookalike.__version__}.dist-info/"
    package = {n for n in names if not n.startswith(info)}
    assert {n.removeprefix(info) for n in names - package} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert all(n.startswith("lookalike/") for n in package)
    assert {Path(n).suffix or Path(n).name for n in package} <= {
        ".py", ".js", ".css", ".html", ".json", ".txt", ".md", ".onnx", ".typed",
    }  # fmt: skip
    here = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "lookalike").rglob("*") if p.is_file()}
    assert package == {n for n in here if "__pycache__" not in n}
    for name in ("photo.onnx", "text.onnx", "tokenizer.json", "encoder.json"):
        assert f"lookalike/builtin/{name}" in package
    assert "lookalike/py.typed" in package
    assert wheel.stat().st_size < 12_000_000
    assert f"Version: {lookalike.__version__}" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert not re.search(r"Requires-Dist: torch\b(?!.*extra)", metadata)


def test_the_sbom_has_every_locked_version_with_its_hashes(tmp_path: Path):
    (line,) = re.findall(r"-m (cyclonedx_py .*?)\n\n", (ROOT / "Makefile").read_text().replace("\\\n\t\t", ""), re.S)
    words = line.splitlines()[0].split()
    words[words.index("-o") + 1] = str(tmp_path / "sbom.json")
    words.append("--no-validate")  # takes longer than all the rest
    done = subprocess.run([sys.executable, "-W", "ignore", "-m", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "sbom.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    root = found["metadata"]["component"]
    assert (root["name"], root["version"]) == ("lookalike", lookalike.__version__)
    listed = {
        (c["name"], c["version"]): {h["content"] for r in c["externalReferences"] for h in r.get("hashes", ())}
        for c in found["components"]
    }
    for requirement, hashes in locked("requirements.txt"):
        version = next(iter(requirement.specifier)).version
        assert {h.removeprefix("sha256:") for h in hashes} <= listed[requirement.name, version], requirement
