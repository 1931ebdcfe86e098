"""One version of a catalog as one file, and a catalog from such a file.

A backup is a zip whose members are stored, not packed: photos and vectors hardly shrink, and none can be larger than it says.

    rows.arrow          all columns of all rows, an Arrow IPC stream
    uploads/ downloads/ photos that lie in the catalog itself, as far as rows of that version name them
    quarantine.json, keys.json (hashes alone), feedback.jsonl      as they were, where they were
    backup.json         written last: format, catalog.json, version, rows, and size and SHA-256 of every other member

What is derived (``index/``) is not in it, and photos elsewhere are not: their paths are.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from lookalike import feedback, images, objects
from lookalike.errors import CatalogError, InputError
from lookalike.indexing import verify
from lookalike.store import ARROW, BACKUP, COLOURS, Manifest, Store, schema

FORMAT = 1
"""Version of the layout above; a backup of a later one is refused."""

BLOCK = 8192
"""Rows of a block of ``rows.arrow``."""

COMMIT_ROWS = 65_536
"""Rows that a restore commits at once."""

COPIED = 2**20
"""Bytes of a file that are copied at once."""

MAX_CONTENTS = 2**28
"""Bytes that ``backup.json`` may have: those of a million photos."""

ROWS, CONTENTS = "rows.arrow", "backup.json"
KEPT = {"quarantine.json": 0o666, "keys.json": 0o600, feedback.FILE: 0o666}
"""Small files that go with the rows, and who may read them when they are made."""

_PHOTO = re.compile(r"(uploads|downloads)(/(?!\.)[\w.-]+)+")
"""Names of members that are photos, or what is known of their addresses."""

_WITHIN = re.compile(r"(.*)[/\\]((?:uploads|downloads)[/\\].*)", re.DOTALL)

Progress = Callable[[int, int], None]


def backup(
    store: Store, file: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the latest version to a file, which is there whole and on the disk, or not at all; writers may go on meanwhile.

    Args:
        store: a catalog that exists, on object storage, too.
        file: to write; a part of it lies beside it meanwhile.
        overwrite: put it in the place of a file that is there.
        progress: called with rows and photos written, and rows in all.

    Returns:
        ``{"photos", "version", "files", "bytes", "missing": [...]}``: rows, files of the catalog's own photos, size, and
        those that rows name and that are gone.

    Raises:
        InputError: the file is there already, or cannot be written.
        CatalogError: the catalog cannot be read.
    """
    path = Path(file)
    if os.path.isdir(path):  # noqa: PTH112  # pathlib's raises where a directory above cannot be entered
        raise InputError(f"{path}: a directory; give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: is there already; give another name, or --overwrite")
    version = store.version()
    manifest = store.manifest()  # after the version: it names the columns of that one at least
    if manifest is None or not version:
        raise CatalogError(f"{store.directory}: no catalog there; make one: lookalike index SOURCE")
    hold = f"{BACKUP}{int(time.time())}-{secrets.token_hex(4)}"
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    with contextlib.suppress(CatalogError):  # who may not write there reads as long as there is what is read
        store.hold(version, hold)
    try:
        # As keys.json, which is in it, it is its owner's alone.
        opened = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with os.fdopen(opened, "w+b") as out, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            told = _written(store, manifest, version, archive, progress or (lambda done, total: None))
        objects.fsync(part)
        part.replace(path)
        objects.fsync(path.absolute().parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); nothing is left of it") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        with contextlib.suppress(CatalogError):
            store.release(hold)
    return {**told, "bytes": path.stat().st_size}


def _written(
    store: Store, manifest: Manifest, version: int, archive: zipfile.ZipFile, progress: Progress
) -> dict[str, Any]:
    """All members."""
    from lookalike import __version__

    members: dict[str, dict[str, Any]] = {}
    root = store.local.absolute()
    total, done = store.dataset(version).count_rows(), 0
    wanted: dict[str, None] = {}
    places = {str(root)}
    with _member(archive, ROWS, members) as out:
        writer = None
        for rows in store.scan(store.columns(version), version, BLOCK):
            if writer is None:
                writer = pa.ipc.new_stream(pa.PythonFile(out, "w"), rows.schema)
            writer.write_batch(rows)
            for name in rows["lk_path"].to_pylist():
                place, own = _own(root, images.split(name)[0])
                if own:
                    places.add(place)
                    wanted[own] = None
            done += len(rows)
            progress(done, total)
        if writer is None:
            writer = pa.ipc.new_stream(pa.PythonFile(out, "w"), _schema(store.dataset(version)))
        writer.close()
    missing, files = [], 0
    for own in wanted:
        try:
            _copied(archive, own, root / own, members)
            files += 1
        except FileNotFoundError:  # a writer has replaced the product since, and its photo with it
            missing.append(str(root / own))
            continue
        with contextlib.suppress(FileNotFoundError):  # when it was fetched, and from where
            if own.startswith("downloads/"):
                _copied(archive, f"{own}.json", root / f"{own}.json", members)
        progress(done + files, total + len(wanted))
    for name in KEPT:
        content = _small(store.folder, name)
        if content is not None:
            with _member(archive, name, members) as out:
                out.write(content)
    contents = {
        "format": FORMAT,
        "lookalike": __version__,
        "version": version,
        "rows": done,
        "catalog": asdict(manifest),
        "places": sorted(places),
        "members": members,
    }
    archive.writestr(zipfile.ZipInfo(CONTENTS), json.dumps(contents, indent=1, ensure_ascii=False))
    return {"photos": done, "version": version, "files": files, "missing": missing}


def _schema(dataset: Any) -> pa.Schema:
    from urllib.parse import unquote

    return pa.schema([field.with_name(unquote(field.name)) for field in dataset.schema])


def _own(root: Path, path: str) -> tuple[str, str]:
    """The catalog's directory as a photo's path has it, and the photo's place therein; "" where it lies elsewhere.

    A directory that was moved, copied, or opened through a link has other paths in its rows than its own.
    """
    found = _WITHIN.fullmatch(path)
    if not found:
        return "", ""
    own = found[2].replace("\\", "/")
    here = found[1] == str(root) or (root / own).is_file()
    return (found[1], own) if here and _PHOTO.fullmatch(own) else ("", "")


def _small(folder: objects.Folder, name: str) -> bytes | None:
    if name != feedback.FILE:
        return folder.read(name)
    content = folder.appended(name)  # its last line may be half written
    return content[: content.rfind(b"\n") + 1] or None


class _Counted(io.RawIOBase):
    """Writes to a member, or reads from one no further than its size, and counts and digests what passes."""

    def __init__(self, file: Any, size: int = 0):
        self.file, self.left, self.size = file, size, 0
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        content: bytes = self.file.read(self.left if size < 0 else min(size, self.left))
        self.left -= len(content)
        self.digest.update(content)
        return content


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, name: str, members: dict[str, dict[str, Any]]) -> Iterator[_Counted]:
    """A member to write to; afterwards ``members`` knows its size and digest."""
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
        out = _Counted(file)
        yield out
    members[name] = {"size": out.size, "sha256": out.digest.hexdigest()}


def _copied(archive: zipfile.ZipFile, name: str, path: Path, members: dict[str, dict[str, Any]]) -> None:
    with path.open("rb") as file, _member(archive, name, members) as out:
        while content := file.read(COPIED):
            out.write(content)


def restore(
    file: str | Path,
    directory: str | Path,
    *,
    photos: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make a catalog from a backup, whole or not at all, and look whether its photos are there.

    Rows whose photos lay in the catalog itself get their new paths. It is made beside the directory and renamed, or, where
    there is an empty directory (which may be a mounted volume), made in it; there, as on object storage, which cannot rename,
    ``catalog.json`` comes last, and without it nothing is a catalog.

    Args:
        file: what ``backup`` wrote.
        directory: of the new catalog, or its address: nothing may be there.
        photos: directories, or files, and where they are on this machine, for photos that do not lie in the catalog.
        progress: called with rows written and rows in all, then with photos looked at.

    Returns:
        As ``indexing.verify``, and ``"catalog"``, where it is.

    Raises:
        InputError: the file is no backup, is damaged, or of a later format; nothing was made.
        CatalogError: something is in the directory already, or it cannot be written; nothing was made.
    """
    path, tell = Path(file), progress or (lambda done, total: None)
    folder = objects.at(directory)
    photos = {_place(old): _place(new, here=True) for old, new in (photos or {}).items()}
    with _opened(path) as (archive, contents):
        if isinstance(folder, objects.Remote):
            _at_address(Store(directory), archive, contents, path, photos, tell)
        else:
            _in_directory(Path(directory), archive, contents, path, photos, tell)
    return {"catalog": str(directory), **verify(Store(directory), progress)}


def _in_directory(
    directory: Path, archive: zipfile.ZipFile, contents: dict[str, Any], path: Path, photos: Mapping[str, str],
    progress: Progress,
) -> None:  # fmt: skip
    goal = directory.absolute()
    name = f"{secrets.token_hex(4)}.restoring"
    part = goal.with_name(f".{goal.name}-{name}")
    try:
        if there := goal.exists():
            if any(goal.iterdir()):
                raise CatalogError(f"{directory}: not empty; restore to a directory that is new or empty")
            part = goal / f".{name}"  # it may be mounted, linked to, or where one is: it stays, and is filled
        part.mkdir(parents=True)
    except OSError as error:
        raise CatalogError(f"{directory}: cannot be written ({error.strerror or error}); nothing was made") from error
    try:
        store = Store(part)
        _filled(store, part, goal, archive, contents, path, photos, progress)
        with store.errors(mend="nothing was made"):
            for made in (part, *(p for p in part.iterdir() if p.name in ("uploads", "downloads"))):
                objects.fsync(made)
            if there:
                # First the rows, which cannot replace those of another restore; last what makes it a catalog.
                first, last = "photos.lance", "catalog.json"
                for name in (first, *({p.name for p in part.iterdir()} - {first, last}), last):
                    (part / name).rename(goal / name)
                    objects.fsync(goal)
            else:
                part.rename(goal)
                objects.fsync(goal.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _at_address(
    store: Store,
    archive: zipfile.ZipFile,
    contents: dict[str, Any],
    path: Path,
    photos: Mapping[str, str],
    progress: Progress,
) -> None:
    folder = store.folder
    assert isinstance(folder, objects.Remote)
    lock = "writer.json"
    if folder.entries() - {lock}:
        raise CatalogError(f"{store.directory}: not empty; restore to a prefix under which nothing is")
    goal = store.local.absolute()
    try:
        _filled(store, goal, goal, archive, contents, path, photos, progress)
    except BaseException:
        with contextlib.suppress(CatalogError):
            folder.delete([name for name in folder.under() if name != lock])
        raise


def _filled(
    store: Store, local: Path, goal: Path, archive: zipfile.ZipFile, contents: dict[str, Any], path: Path,
    photos: Mapping[str, str], progress: Progress,
) -> None:  # fmt: skip
    """A catalog of what is in the archive, ``catalog.json`` last; its own photos go to ``local`` and will be in ``goal``."""
    manifest: Manifest = contents["catalog"]
    moved = partial(_moved, photos=photos, places=set(contents["places"]), goal=goal)
    with store.writing("restore"):
        store.create_rows(manifest.dim)
        for rows in _blocks(archive, contents, path, progress):
            for name in ("lk_path", "lk_source"):
                column = pa.array(map(moved, rows[name].to_pylist()), pa.string())
                at = rows.schema.get_field_index(name)
                rows = rows.set_column(at, rows.schema.field(at), column)
            store.commit(rows, replaces=False)
        store.compact()
        with store.errors(mend="nothing was made"):
            for name in contents["members"]:
                if _PHOTO.fullmatch(name):
                    _extracted(archive, contents, path, name, local / name)
            for name, mode in KEPT.items():
                if name in contents["members"]:
                    text = _text(archive, contents, path, name)
                    if name == feedback.FILE and store.remote:
                        store.folder.append(name, text)
                    else:
                        store.folder.replace(name, text, mode)
        store.write_manifest(manifest)


def _moved(name: str, photos: Mapping[str, str], places: set[str], goal: Path) -> str:
    """The path of a photo, or of a source, as it is on this machine."""
    file, box = images.split(name)
    found = _WITHIN.fullmatch(file)
    if found and found[1] in places:
        return str(goal / found[2].replace("\\", "/")) + box
    within = (old for old in photos if name.startswith(old) and name[len(old) : len(old) + 1] in ("", "/", "\\", "#"))
    old = max(within, key=len, default=None)
    return name if old is None else photos[old] + name[len(old) :]


def _place(path: str, here: bool = False) -> str:
    """A directory without a slash at its end; ``here`` on this machine, where rows name it whole."""
    if here and not objects.is_address(path):
        path = str(Path(path).expanduser().absolute())
    return path.rstrip("/\\")


def _text(archive: zipfile.ZipFile, contents: dict[str, Any], path: Path, name: str) -> str:
    """A small file's content."""
    out = io.BytesIO()
    _passed(archive, contents, path, name, out.write)
    try:
        text = out.getvalue().decode("utf-8")
        if name.endswith(".json"):
            json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"{name}: {error}") from error
    return text


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: damaged ({why}); nothing was restored, take another backup")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """A backup whose members are what its ``backup.json`` says, and that; the manifest as such."""
    try:
        with contextlib.ExitStack() as stack:
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
            except zipfile.BadZipFile as error:
                raise InputError(f"{path}: no backup of lookalike, or not whole ({error})") from error
            yield archive, _contents(archive, path)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, EOFError) as error:
        raise _damaged(path, str(error) or "it ends too early") from error


def _contents(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    infos = {info.filename: info for info in archive.infolist()}
    if CONTENTS not in infos:
        raise InputError(f"{path}: no backup of lookalike: it has no {CONTENTS}")
    if infos[CONTENTS].file_size > MAX_CONTENTS or infos[CONTENTS].compress_type != zipfile.ZIP_STORED:
        raise _damaged(path, f"{CONTENTS} is larger than any")
    try:
        contents: dict[str, Any] = json.loads(archive.read(CONTENTS).decode("utf-8"))
        if not isinstance(contents, dict) or not isinstance(contents["format"], int):
            raise ValueError("no format")
        for what, found, known in (
            ("backup", contents["format"], FORMAT),
            ("catalog", contents["catalog"]["format"], Manifest.format),
        ):
            if found > known:
                raise InputError(
                    f"{path}: a {what} of format {found}, this version reads up to {known}; upgrade lookalike"
                )
        manifest = contents["catalog"] = Manifest(**contents["catalog"])
        members = contents["members"]
        names = [info.filename for info in archive.infolist()]
        if sorted(names) != sorted([*members, CONTENTS]) or ROWS not in members:
            raise ValueError("its members are not those that it lists")
        for name, said in members.items():
            info = infos[name]
            if name not in (ROWS, *KEPT) and not _PHOTO.fullmatch(name):
                raise ValueError(f"a member {name!r}, which no backup has")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.external_attr >> 28 not in (0, 8):
                raise ValueError(f"{name} is packed, or a link")
            if info.file_size != said["size"] or info.compress_size != said["size"]:
                raise ValueError(f"{name} has {info.file_size} bytes, not {said['size']}")
        if sum(info.file_size for info in infos.values()) > path.stat().st_size:
            raise ValueError("its members overlap")
        if not isinstance(contents["rows"], int) or not all(isinstance(p, str) and p for p in contents["places"]):
            raise ValueError("no rows, no places")
        if not 0 < manifest.dim <= 65_536 or set(manifest.kinds.values()) - set(ARROW):
            raise ValueError("a manifest that no catalog has")
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise _damaged(path, f"{CONTENTS}: {error}") from error
    return contents


def _blocks(archive: zipfile.ZipFile, contents: dict[str, Any], path: Path, progress: Progress) -> Iterator[pa.Table]:
    """The rows, ``COMMIT_ROWS`` at a time, as a catalog of today has them."""
    said, manifest = contents["members"][ROWS], contents["catalog"]
    done, waiting = 0, []
    try:
        with archive.open(ROWS) as file:
            source = _Counted(file, said["size"])
            with pa.ipc.open_stream(pa.PythonFile(source, "r")) as reader:
                wanted = _wanted(reader.schema, manifest)
                for batch in reader:
                    batch.validate(full=True)
                    rows = pa.Table.from_batches([batch])
                    if "lk_colours" not in rows.column_names:  # of a catalog from before there were colours
                        rows = rows.append_column("lk_colours", pa.nulls(len(rows), pa.binary(COLOURS)))
                    waiting.append(rows.select(wanted.names).cast(wanted))
                    done += len(batch)
                    if sum(map(len, waiting)) >= COMMIT_ROWS:
                        yield pa.concat_tables(waiting)
                        waiting = []
                        progress(done, contents["rows"])
            while source.read(COPIED):
                pass
        _check(source, said, path, ROWS)
    except (pa.ArrowException, ValueError, KeyError, OSError) as error:
        raise _damaged(path, f"{ROWS}: {error}") from error
    if done != contents["rows"]:
        raise _damaged(path, f"{done} rows, not {contents['rows']}")
    if waiting:
        yield pa.concat_tables(waiting)
    progress(done, contents["rows"])


def _wanted(found: pa.Schema, manifest: Manifest) -> pa.Schema:
    """The columns of a catalog's rows. Raises ValueError where they are not what the manifest says."""
    ours = schema(manifest.dim)
    own = [found.field(name) for name in found.names if name not in ours.names]
    for field in [*ours, *own]:
        kind = field.type if field.name in ours.names else ARROW.get(manifest.kinds.get(field.name, ""))
        if field.name == "lk_colours" and field.name not in found.names:
            continue
        if (
            field.name not in found.names
            or found.field(field.name).type != kind
            or len(found.get_all_field_indices(field.name)) > 1
        ):
            raise ValueError(f"the column {field.name} is not what catalog.json says")
    return pa.schema([*ours, *own])


def _passed(
    archive: zipfile.ZipFile, contents: dict[str, Any], path: Path, name: str, write: Callable[[bytes], Any]
) -> None:
    """A member's content to ``write``, and its digest checked."""
    said = contents["members"][name]
    with archive.open(name) as file:
        source = _Counted(file, said["size"])
        while content := source.read(COPIED):
            write(content)
    _check(source, said, path, name)


def _check(source: _Counted, said: Mapping[str, Any], path: Path, name: str) -> None:
    if source.left or source.digest.hexdigest() != said["sha256"]:
        raise _damaged(path, f"{name} is not what was backed up: its SHA-256 is another")


def _extracted(archive: zipfile.ZipFile, contents: dict[str, Any], path: Path, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        _passed(archive, contents, path, name, out.write)
        out.flush()
        os.fsync(out.fileno())
    objects.fsync(target.parent)
