"""What ``lookalike doctor`` says of things that were broken on purpose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import lookalike
from lookalike import doctor, encoders
from lookalike.doctor import BAD, NOTE, OK, Finding

BUILTIN = Path(encoders.__file__).parent.parent / "builtin"


def worst(found: Iterable[Finding]) -> Finding:
    """The one finding that is not ok."""
    seen = list(found)
    assert seen
    others = [f for f in seen if f.level != OK]
    assert len(others) == 1, others
    return others[0]


@pytest.fixture
def shop(catalog: lookalike.Catalog) -> Path:
    return Path(catalog.store.directory)


def test_a_whole_installation_and_catalog_are_ok_and_left_as_they_were(shop: Path):
    before = {f: f.stat().st_mtime_ns for f in shop.rglob("*") if f.is_file()}
    found = list(doctor.examine(str(shop)))
    assert not [f for f in found if f.level == BAD]
    told = {f.what: f.found for f in found}
    assert "13 photos in 1 fragments" in told["catalog"]
    assert "12 products" in told["search"]
    assert "photo 1.0000, text 1.0000" in told["built-in encoder"]
    assert told["encoder"].startswith("fake-1")
    assert before == {f: f.stat().st_mtime_ns for f in shop.rglob("*") if f.is_file()}


def test_as_a_command(shop: Path, tmp_path: Path):
    def run(*words: object, module: str = "lookalike", **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **more})

    before = os.times()
    done = run("doctor", "--json", "--catalog", shop)
    after = os.times()
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert found["ok"]
    work = after.children_user - before.children_user + after.children_system - before.children_system
    assert work < 6  # 2 s of a core; what else the machine does is not counted
    assert all(set(c) == {"level", "what", "found", "mend"} for c in found["checks"])
    (shop / "catalog.json").write_text("{")
    done = run(shop, module="lookalike.doctor", LOOKALIKE_MEMORY="lots")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("bad")] == ["settings:", "catalog:"]
    assert "LOOKALIKE_MEMORY is 'lots'; write a size, such as 4GB" in done.stdout
    assert "Traceback" not in done.stderr


def zero(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "rows cut short": (lambda d: cut(data(d)), "catalog", r"DATA (N bytes instead of M)"),
    "rows zeroed": (lambda d: zero(data(d)), "catalog", "DATA (its end is not as it was written)"),
    "rows gone": (lambda d: data(d).unlink(), "catalog", "DATA (No such file or directory)"),
    "versions": (lambda d: [zero(f) for f in (d / "photos.lance/_versions").iterdir()], "catalog", "manifest"),
    "manifest gone": (lambda d: (d / "catalog.json").unlink(), "catalog", "but catalog.json is gone"),
    "manifest": (lambda d: (d / "catalog.json").write_text("["), "catalog", "catalog.json: damaged"),
    "format": (lambda d: changed(d, format=99), "catalog", "of format 99, this version reads up to"),
    "quarantine": (lambda d: (d / "quarantine.json").write_text("["), "catalog", "quarantine.json: damaged"),
    "keys": (lambda d: (d / "keys.json").write_text("{}"), "keys", "keys.json: damaged"),
    "encoder": (lambda d: changed(d, encoder_id="fake-0"), "encoder", "were made by fake-0, not by fake-1"),
    "encoder gone": (lambda d: changed(d, encoder="/no/where"), "encoder", "/no/where made the vectors, and is not there"),
}  # fmt: skip


def data(directory: Path) -> Path:
    (file,) = (directory / "photos.lance" / "data").iterdir()
    return file


def changed(directory: Path, **more: object) -> None:
    file = directory / "catalog.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))


def test_damage_of_a_catalog_is_named_with_its_mend(shop: Path, tmp_path: Path):
    for name, (damage, what, said) in DAMAGE.items():
        broken = Path(shutil.copytree(shop, tmp_path / name.replace(" ", "-")))
        words = said
        if "DATA" in said:
            file = data(broken)
            size = file.stat().st_size
            words = said.replace("DATA", str(file)).replace("N bytes", f"{size - 7} bytes").replace("M)", f"{size})")
        damage(broken)
        found = worst(doctor.catalog_at(str(broken)))
        assert (found.level, found.what) == (BAD, what), (name, found)
        assert words in found.found, (name, found)
        assert found.mend, name


def test_a_catalog_that_is_none(tmp_path: Path, shop: Path, monkeypatch: pytest.MonkeyPatch):
    assert worst(doctor.catalog_at(str(tmp_path / "new"), asked=True)).level == BAD
    assert worst(doctor.catalog_at(str(tmp_path / "new"), asked=False)).level == NOTE
    assert not (tmp_path / "new").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    assert "not a catalog" in worst(doctor.catalog_at(str(tmp_path / "other"))).found
    (shop / "writer.json").write_text("[1]")
    assert "another process is writing" in worst(doctor.catalog_at(str(shop))).found
    (shop / "writer.json").unlink()
    monkeypatch.setenv("LOOKALIKE_ENCODER", "colour-histogram")
    assert "--encoder fake" in worst(doctor.catalog_at(str(shop))).mend
    monkeypatch.setenv("LOOKALIKE_ENCODER", "resnet50")
    assert worst(doctor.catalog_at(str(shop))).level == NOTE  # nothing is fetched to find out


def test_photos_that_moved_are_noted(shop: Path, tmp_path: Path):
    (tmp_path / "img").rename(tmp_path / "elsewhere")
    found = worst(doctor.catalog_at(str(shop)))
    assert found.level == NOTE
    assert found.found.startswith("13 of 13 looked for are not there")


def test_object_storage_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch):
    from lookalike import objects

    monkeypatch.setattr(objects, "RETRIES", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    found = worst(doctor.catalog_at("s3://no-such-bucket/shop"))
    assert found.found == "s3://no-such-bucket/shop: the storage does not answer"
    assert "AWS_ENDPOINT_URL" in found.mend


def test_directories_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert [f.level for f in doctor.directory("x", tmp_path / "to" / "be made", "mend")] == [OK]
    assert not (tmp_path / "to").exists()
    (tmp_path / "file").touch()
    found = worst(doctor.directory("x", tmp_path / "file" / "below", "mend it"))
    assert (found.level, found.mend) == (BAD, "mend it")
    assert "cannot be written" in found.found
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        assert "cannot be synced (Input/output error)" in worst(doctor.directory("x", tmp_path, "")).found
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, 5 * 10**7))
        assert worst(doctor.directory("x", tmp_path, "")).mend == "free some space"
    monkeypatch.setenv("LOOKALIKE_CACHE", str(tmp_path / "file"))
    assert worst(doctor.cache()).level == NOTE
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as pip would have put it into ``folder``; returns its directory there."""
    import base64
    import hashlib

    package = folder / "lookalike"
    shutil.copytree(BUILTIN, package / "builtin")
    shutil.copy(lookalike.__file__, package)
    info = folder / f"lookalike-{lookalike.__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lookalike\nVersion: {lookalike.__version__}\n")
    lines = []
    for file in sorted(f for f in package.rglob("*") if f.is_file()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(file.read_bytes()).digest()).rstrip(b"=").decode()
        lines.append(f"{file.relative_to(folder).as_posix()},sha256={digest},1\n")
    (info / "RECORD").write_text("".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(lookalike, "__file__", str(package / "__init__.py"))
    return package


def test_files_of_the_package_are_compared_with_their_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = installed(tmp_path, monkeypatch)
    (found,) = doctor.package()
    assert found.level == OK
    assert "files as installed" in found.found
    content = bytearray((package / "builtin" / "text.onnx").read_bytes())
    content[1000] ^= 1
    (package / "builtin" / "text.onnx").write_bytes(content)
    (package / "builtin" / "README.md").unlink()
    found = worst(doctor.package())
    assert found.level == BAD
    assert "lookalike/builtin/README.md (No such file or directory), lookalike/builtin/text.onnx" in found.found
    monkeypatch.setattr(lookalike, "__version__", "9.9")
    assert "9.9, but 0.1.0 is installed" in worst(doctor.package()).found


def test_weights_that_were_damaged_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(BUILTIN, tmp_path / "builtin")
    (tmp_path / "encoders").mkdir()
    monkeypatch.setattr(encoders, "__file__", str(tmp_path / "encoders" / "__init__.py"))
    assert [f.level for f in doctor.builtin()] == [OK]
    zero(tmp_path / "builtin" / "photo.onnx")
    found = worst(doctor.builtin())
    assert "photo.onnx is damaged" in found.found
    assert "pip install" in found.mend
    shutil.copy(BUILTIN / "photo.onnx", tmp_path / "builtin")
    config = json.loads((BUILTIN / "encoder.json").read_text())
    config["trial"]["photo"] = config["trial"]["text"]  # as if the processor computed something else
    (tmp_path / "builtin" / "encoder.json").write_text(json.dumps(config))
    assert "gives other vectors (photo" in worst(doctor.builtin()).found


def test_requirements_that_are_missing_or_too_old(monkeypatch: pytest.MonkeyPatch):
    lines = ["pillow>=99", "nowhere>=1", "numpy>=2", "usearch>=99; extra == 'hnsw'", "numpy>=1; extra == 'hnsw'"]
    monkeypatch.setattr(metadata, "requires", lambda _: [*lines, "nothing; extra == 'torch'"])
    found = {f.what: f for f in doctor.requirements()}
    assert found["requirements"].mend == "pip install 'pillow>=99' 'nowhere>=1'"
    assert f"pillow>=99 ({metadata.version('pillow')} is installed)" in found["requirements"].found
    assert (found["extra hnsw"].level, found["extra torch"].level) == (BAD, NOTE)
    assert found["extra torch"].mend == "pip install 'lookalike[torch]'"


def test_libraries_and_decoders_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch):
    from PIL import AvifImagePlugin, Image

    with monkeypatch.context() as patch:
        short = metadata.PackagePath("lark/native.so")
        short.size, short.dist = 100, metadata.distribution("lark")
        patch.setitem(sys.modules, "lark", sys.modules.get("lark"))
        patch.setattr(metadata, "files", lambda name: [short] if name == "lark" else [])
        found = worst(doctor.libraries())
        assert found.what == "lark"
        assert "native.so has 0 bytes instead of 100" in found.found
    with monkeypatch.context() as patch:
        patch.setenv("ORT_DISABLE_TELEMETRY", "0")
        assert "may tell Microsoft" in worst(doctor.libraries()).found
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # as if it were not there
    found = worst(doctor.libraries())
    assert (found.level, found.what) == (BAD, "tokenizers")
    assert "pip install --force-reinstall tokenizers" in found.mend
    monkeypatch.delitem(sys.modules, "tokenizers")
    monkeypatch.setattr(AvifImagePlugin, "SUPPORTED", False)
    monkeypatch.delitem(Image.SAVE, "AVIF")
    found = worst(doctor.photos())
    assert found.level == NOTE
    assert "AVIF" in found.found


def test_a_check_that_fails_itself_is_a_finding(monkeypatch: pytest.MonkeyPatch):
    def broken() -> doctor.Findings:
        raise OSError("libgomp.so.1: cannot open shared object file")
        yield

    for name in ("builtin", "libraries", "photos"):
        monkeypatch.setattr(doctor, name, broken)
    found = [f for f in doctor.examine() if f.level == BAD]
    assert len(found) == 3
    assert "libgomp" in found[0].found


def test_a_catalog_that_others_may_not_read_is_no_bug(shop: Path, monkeypatch: pytest.MonkeyPatch):
    """Root reads everything: the system's answer is put in its mouth."""
    real = Path.stat

    def stat(path: Path, **more: Any) -> os.stat_result:
        if path.is_relative_to(shop):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **more)

    monkeypatch.setattr(Path, "stat", stat)
    assert [f.level for f in doctor.clock(str(shop))] == [OK]
    found = worst(doctor.catalog_at(str(shop)))
    assert "cannot be read" in found.found and found.mend == "check its permissions"


def test_settings_and_clock(monkeypatch: pytest.MonkeyPatch, shop: Path):
    monkeypatch.setenv("LOOKALIKE_INDEX", "best")
    assert worst(doctor.settings()).found == "LOOKALIKE_INDEX is 'best'"
    monkeypatch.delenv("LOOKALIKE_INDEX")
    monkeypatch.setenv("LOOKALIKE_API_KEY", "secret")
    found = worst(doctor.settings())
    assert "secret" not in str(found).replace("secrets", "")
    assert [f.level for f in doctor.clock(str(shop))] == [OK]
    os.utime(shop / "catalog.json", (4e9, 4e9))
    assert "timedatectl" in worst(doctor.clock(str(shop))).mend


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch):
    told = {"/sys/fs/cgroup/cpu.max": "50000 100000", "/sys/fs/cgroup/memory.max": "500000000"}
    told["/sys/fs/cgroup/memory.current"] = "400000000"
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, *a, **k: told.get(str(p)) or real(p, *a, **k))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    found = {f.what: f for f in doctor.machine()}
    assert found["cores"].found == "4 seen, but this container may use 0.5 of them"
    assert found["memory"].found == "0.5 GB, of which 0.1 GB are free"
    assert found["memory"].level == NOTE
