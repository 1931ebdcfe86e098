"""Looks at an installation, at the machine, and at a catalog; says what is wrong and how to mend it.

Every check stands alone and imports what it needs itself, so that it can be run where little works: ``python -m
lookalike.doctor [CATALOG]`` where even the command line cannot start. Nothing is changed but files of its own, which are gone
afterwards, and no network is touched but the object storage whose address is given.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import faulthandler
import hashlib
import importlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.store import Manifest, Store

OK, NOTE, BAD = "ok", "note", "bad"

LEAST_PYTHON = (3, 10)
ROOM = 1_000_000_000
"""Bytes below which it is said that a disk, or the memory, is small; a tenth of that is too little."""

TRIAL = 0.999
"""The least cosine of what an encoder computes here and what it computed where it was made."""

IMPORTED = (
    "numpy", "PIL", "pyarrow", "lance", "onnxruntime", "tokenizers", "lark", "filelock", "urllib3", "fastapi", "uvicorn",
    "python_multipart", "prometheus_client", "typer", "rich",
)  # fmt: skip
"""Modules of the base installation: a wheel for another processor or an older system library shows when it is loaded."""

PACKAGES = {"PIL": "pillow", "lance": "pylance"}
"""Names of the packages that bring a module of another name."""

EXTRAS = {
    "torch": "encoders of timm and open_clip, MiniLM, export",
    "train": "training",
    "hnsw": "the indexes hnsw and int8",
    "cluster": "object storage and Ray",
    "bench": "comparing indexes",
}
SAMPLED = 50
"""Photos of a catalog whose files are looked for."""

RESTORE = "restore it from a backup, or move it away and index again"
REINSTALL = "install it again: pip install --force-reinstall --no-deps WHEEL (or . in the folder of its sources)"


@dataclass(frozen=True)
class Finding:
    """What one check found; ``mend`` says what to do, where there is anything to do."""

    level: str
    what: str
    found: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.what}: {self.found}" + (f"; {self.mend}" if self.mend else "")


Findings = Iterator[Finding]


def ok(what: str, found: str) -> Finding:
    """All is well."""
    return Finding(OK, what, found)


def note(what: str, found: str, mend: str = "") -> Finding:
    """Something to know."""
    return Finding(NOTE, what, found, mend)


def bad(what: str, found: str | Exception, mend: str = "") -> Finding:
    """Something that does not work; our own errors say themselves how to mend it."""
    told = _line(found)
    if isinstance(found, Exception) and not mend:
        told, _, mend = told.partition("; ")
    return Finding(BAD, what, told, mend)


def examine(catalog: str = "", asked: bool = True) -> Iterator[Finding]:
    """All checks, one after the other.

    Args:
        catalog: its directory or address; "" for none.
        asked: it was named: that it isn't there is then no mere note.
    """
    checks: list[tuple[str, Callable[[], Findings]]] = [
        ("Python", python),
        ("package", package),
        ("requirements", requirements),
        ("libraries", libraries),
        ("photos", photos),
        ("built-in encoder", builtin),
        ("machine", machine),
        ("settings", settings),
        ("clock", lambda: clock(catalog)),
        (
            "temporary files",
            lambda: directory("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a directory that can"),
        ),
        ("cache", cache),
    ]
    if catalog:
        checks.append(("catalog", lambda: catalog_at(catalog, asked)))
    for what, check in checks:
        try:
            yield from check()
        except Exception as error:  # whatever is broken, the other checks are made
            yield bad(what, f"cannot be checked ({type(error).__name__}: {_line(error)})", _after(error))


# The installation


def python() -> Findings:
    """The interpreter."""
    version, bits = platform.python_version(), sys.maxsize.bit_length() + 1
    found = f"{version} ({platform.python_implementation()}, {bits} bits), {platform.platform(terse=True)} {platform.machine()}"
    least = ".".join(map(str, LEAST_PYTHON))
    if sys.version_info[:2] < LEAST_PYTHON or bits < 64:
        yield bad("Python", found, f"install Python {least} or newer, 64 bits, and Lookalike in it")
    else:
        yield ok("Python", found)
    encoding, output = sys.getfilesystemencoding(), getattr(sys.stdout, "encoding", None) or "none"
    if "utf-8" not in encoding.lower().replace("utf8", "utf-8"):
        mend = "set LC_ALL=C.UTF-8 or PYTHONUTF8=1: names of photos beyond ASCII cannot be opened otherwise"
        yield bad("encoding", f"file names are {encoding}", mend)
    elif "utf-8" not in output.lower().replace("utf8", "utf-8"):
        yield note("encoding", f"output is {output}", "set PYTHONUTF8=1 to see titles as they are")
    else:
        yield ok("encoding", "UTF-8")


def package() -> Findings:
    """The package's own files, by the digests of its installation."""
    import lookalike

    here = Path(lookalike.__file__).parent
    try:
        installed = metadata.distribution("lookalike")
    except metadata.PackageNotFoundError:
        yield note(
            "package",
            f"{lookalike.__version__} at {here}, copied rather than installed: nothing to compare it with",
        )
        return
    if installed.version != lookalike.__version__:
        mend = f"remove one of them: pip uninstall lookalike; {REINSTALL}"
        found = f"{here} is {lookalike.__version__}, but {installed.version} is installed"
        yield bad("package", found, mend)
        return
    record = list(csv.reader((installed.read_text("RECORD") or "").splitlines()))
    listed = {name: digest for name, digest, *_ in record if name.startswith("lookalike/") and digest}
    if not listed:
        yield ok("package", f"{lookalike.__version__}, editable, at {here}")
        return
    place = Path(str(installed.locate_file("lookalike")))
    if place.resolve() != here.resolve():
        mend = "remove one of them, or leave the folder that holds the other (or PYTHONPATH)"
        yield bad("package", f"installed at {place}, but what runs is {here}", mend)
        return
    wrong = []
    for name, digest in listed.items():
        kind, _, value = digest.partition("=")
        try:
            content = (here.parent / name).read_bytes()
        except OSError as error:
            wrong.append(f"{name} ({error.strerror})")
            continue
        if base64.urlsafe_b64encode(hashlib.new(kind, content).digest()).rstrip(b"=").decode() != value:
            wrong.append(name)
    if wrong:
        yield bad("package", f"{_some(wrong)} not as installed, in {here.parent}", REINSTALL)
    else:
        yield ok("package", f"{lookalike.__version__}, {len(listed)} files as installed, at {here}")


def requirements() -> Findings:
    """Versions of what the package needs, and of its extras where they are there."""
    try:
        lines = metadata.requires("lookalike") or []
    except metadata.PackageNotFoundError:
        yield note("requirements", "not recorded, since Lookalike was not installed by pip")
        return
    try:
        from packaging.requirements import Requirement
    except ImportError:
        yield note("requirements", "versions cannot be compared", "pip install packaging")
        return
    base: list[str] = []
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            base += _unmet(requirement)
    if base:
        wanted = " ".join(f"'{line.partition(' (')[0]}'" for line in base)
        yield bad("requirements", ", ".join(base), f"pip install {wanted}")
    else:
        yield ok("requirements", "all there, in versions that are allowed")
    for extra, purpose in EXTRAS.items():
        marked = [(r, r.marker) for r in map(Requirement, lines) if r.marker and r.name != "lookalike"]
        ours = [r for r, m in marked if m.evaluate({"extra": extra}) and not m.evaluate({"extra": ""})]
        missing = [line for r in ours for line in _unmet(r)]
        old = [line for line in missing if line.endswith("is installed)")]
        get = f"pip install 'lookalike[{extra}]'"
        if not missing:
            yield ok(f"extra {extra}", purpose)
        elif len(missing) < len(ours) and old:
            yield bad(f"extra {extra}", ", ".join(old), get)
        else:
            yield note(f"extra {extra}", f"not installed ({purpose})", get)


def _unmet(requirement: Any) -> list[str]:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return [f"{requirement.name}{requirement.specifier} (missing)"]
    right = not requirement.specifier or requirement.specifier.contains(version, prereleases=True)
    return [] if right else [f"{requirement.name}{requirement.specifier} ({version} is installed)"]


def libraries() -> Findings:
    """Whether the libraries can be loaded."""
    failed = False
    for name in IMPORTED:
        if cut := _cut_short(name):
            failed = True
            sys.modules[name] = None  # type: ignore[assignment]  # to load it could end this process: nobody will
            yield bad(name, cut, f"pip install --force-reinstall {PACKAGES.get(name, name)}")
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # some raise what they like while they are loaded
            failed = True
            yield bad(name, f"cannot be loaded ({type(error).__name__}: {_line(error)})", _after(error, name))
    if not failed:
        yield ok("libraries", f"{len(IMPORTED)} can be loaded")
    ort = sys.modules.get("onnxruntime")
    if ort is not None:
        providers = ort.get_available_providers()
        if os.environ.get("ORT_DISABLE_TELEMETRY") != "1":
            yield note("onnxruntime", "may tell Microsoft of its use", "set ORT_DISABLE_TELEMETRY=1, or leave it unset")
        if "CPUExecutionProvider" in providers:
            yield ok("onnxruntime", f"{ort.__version__}, {', '.join(providers)} (encoders use the CPU)")
        else:
            mend = "pip install --force-reinstall onnxruntime"
            yield bad("onnxruntime", f"has no CPU provider, only {', '.join(providers)}", mend)


def _cut_short(module: str) -> str:
    """Which native files of a package are not as large as they were installed, "" where all are."""
    try:
        files = metadata.files(PACKAGES.get(module, module)) or []
    except metadata.PackageNotFoundError:
        return ""
    for file in files:
        if file.size and (file.suffix in (".so", ".pyd", ".dylib", ".dll") or ".so." in file.name):
            place = Path(str(file.locate()))
            size = place.stat().st_size if place.is_file() else 0
            if size != file.size:
                return f"{place} has {size} bytes instead of {file.size}"
    return ""


def photos() -> Findings:
    """Whether each format of photos is read."""
    import io

    from PIL import Image

    from lookalike import images

    unread = []
    drawn = Image.new("RGB", (16, 24), (190, 30, 44))
    for kind in images.FORMATS:
        out = io.BytesIO()
        try:
            drawn.save(out, kind)
            colour = images.read(out.getvalue()).getpixel((8, 12))
            if not isinstance(colour, tuple) or abs(colour[0] - 190) + colour[1] + colour[2] > 120:
                raise ValueError(f"another colour, {colour}")
        except Exception as error:  # Pillow raises KeyError, OSError and others where a decoder is missing
            unread.append(f"{kind} ({_line(error)})")
    if unread:
        level = BAD if any(u.startswith(("JPEG", "PNG")) for u in unread) else NOTE
        yield Finding(level, "photos", f"not read here: {', '.join(unread)}", "pip install --force-reinstall pillow")
    else:
        yield ok("photos", f"{', '.join(images.FORMATS)} are read")


def builtin() -> Findings:
    """The model that ships: its digests, and what it computes here."""
    from lookalike import encoders
    from lookalike.errors import LookalikeError

    try:
        made = encoders.load("builtin", threads=1)
    except LookalikeError as error:
        yield bad("built-in encoder", _line(error).rpartition("; ")[0], REINSTALL)
        return
    yield from _tried(
        "built-in encoder", made, "its arithmetic is wrong here: pip install --force-reinstall onnxruntime"
    )


def _tried(what: str, encoder: Any, mend: str) -> Findings:
    """The encoder's own trial, where it has one."""
    cosines = encoder.tried() if hasattr(encoder, "tried") else {}
    if not cosines:
        yield ok(what, f"{encoder.id} can be loaded")
        return
    start = time.perf_counter()
    encoder.encode_photos(encoder.prepare(_blank())[None])
    took = (time.perf_counter() - start) * 1000
    told = ", ".join(f"{kind} {cosine:.4f}" for kind, cosine in cosines.items())
    if all(cosine >= TRIAL for cosine in cosines.values()):
        yield ok(what, f"{encoder.id}, files as sealed; trial: {told}; a photo takes {took:.1f} ms on one core")
    else:
        yield bad(what, f"{encoder.id}: its trial gives other vectors ({told}, where {TRIAL} is wanted)", mend)


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (60, 80), "white")


# The machine


def machine() -> Findings:
    """Cores, memory, open files."""
    with contextlib.suppress(OSError):
        flags = set(re.findall(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[0].split())
        shown = [
            f for f in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp") if f in flags
        ]
        if shown:
            yield ok("processor", ", ".join(shown))
        else:
            yield note(
                "processor",
                "has neither AVX2 nor NEON",
                "it works, but several times slower: use a newer machine",
            )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _cpu_share()
    if share and share < cores:
        found = f"{cores} seen, but this container may use {share:.1f} of them"
        mend = f"set OMP_NUM_THREADS={max(1, round(share))}, or allow it more" if share <= cores - 1 else ""
        yield note("cores", found, mend)
    else:
        yield ok("cores", str(cores))
    size, free = _memory()
    if size:
        level = OK if size >= ROOM else NOTE
        mend = "" if size >= ROOM else "100,000 photos want about 0.5 GB beside 0.3 GB for the program: give it more"
        yield Finding(level, "memory", f"{_bytes(size)}, of which {_bytes(free)} are free", mend)
    with contextlib.suppress(ImportError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < 1024:
            yield note(
                "open files", f"at most {soft}, {hard} where it is raised", "raise it for a server: ulimit -n 4096"
            )
        else:
            yield ok("open files", "unlimited" if soft == resource.RLIM_INFINITY else f"at most {soft}")


def _cpu_share() -> float:
    """Cores that a container may use; 0 where that is not limited."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period) if quota != "max" else 0.0
    with contextlib.suppress(OSError, ValueError):
        quota, period = (Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{n}_us").read_text() for n in ("quota", "period"))
        return max(0.0, int(quota) / int(period))
    return 0.0


def _memory() -> tuple[int, int]:
    """Bytes of memory that this process may use, and those that are free; 0 where that is not known."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0, 0
    free = size
    with contextlib.suppress(OSError, IndexError):
        free = int(re.findall(r"^MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)[0]) * 1024
    group = Path("/sys/fs/cgroup")
    for most, used in (
        (group / "memory.max", group / "memory.current"),
        (group / "memory/memory.limit_in_bytes", group / "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            limit = int(most.read_text())
            if limit < size:
                size, free = limit, min(free, limit - int(used.read_text()))
    return size, max(0, free)


def settings() -> Findings:
    """Variables that would be refused later."""
    from lookalike.catalog import forced, memory
    from lookalike.errors import UsageError

    wrong = False
    for read in (forced, memory):
        try:
            read()
        except UsageError as error:
            wrong = True
            yield bad("settings", error)
    key = os.environ.get("LOOKALIKE_API_KEY", "")
    if key and len(key) < 20:
        mend = "take one that cannot be guessed: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        yield note("settings", f"LOOKALIKE_API_KEY has only {len(key)} characters", mend)
    named = sorted(name for name in os.environ if name.startswith("LOOKALIKE_"))
    if not wrong:
        yield ok("settings", ", ".join(named) or "none of LOOKALIKE_… is set")


def clock(catalog: str) -> Findings:
    """Whether the clock can be right: it is not before what was installed or written."""
    now = time.time()
    latest = 0.0
    names = ("catalog.json", "photos.lance/_versions") if catalog else ()
    for file in (__file__, *(f"{catalog}/{name}" for name in names)):
        with contextlib.suppress(OSError):
            latest = max(latest, Path(file).stat().st_mtime)
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < latest - 3600:
        files = time.strftime("%Y-%m-%d %H:%M", time.gmtime(latest))
        yield bad("clock", f"says {shown}, but files here are of {files}", "set it: timedatectl set-ntp true")
    else:
        yield ok("clock", shown)


def cache() -> Findings:
    """The user's cache: for what is fetched, and for catalogs on object storage."""
    from lookalike import objects

    place = objects.cache("s3://bucket/x").parent.parent
    for finding in directory("cache", place, "set LOOKALIKE_CACHE to a directory that can"):
        only = "only catalogs on object storage, and fetched sources, are kept there"
        yield finding if finding.level != BAD else note("cache", f"{finding.found} ({only})", finding.mend)


def directory(what: str, place: Path, mend: str) -> Findings:
    """Whether a directory, or the one that it would be made in, takes files, locks, renames, syncs and maps them."""
    there = place.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    trial = there / f"writer.try-{uuid.uuid4().hex[:8]}"  # a name that a catalog's directory may have
    step = "written"
    try:
        trial.mkdir()
        step = "synced"
        with (trial / "a").open("wb") as file:
            file.write(b"lookalike" * 1000)
            file.flush()
            os.fsync(file.fileno())
        step = "renamed"
        (trial / "b").write_bytes(b"")
        (trial / "a").replace(trial / "b")
        step = "mapped into memory"
        import mmap

        with (trial / "b").open("rb") as again, mmap.mmap(again.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            if mapped[:9] != b"lookalike":
                raise OSError("it reads back otherwise")
        step = "locked"
        with contextlib.suppress(ImportError):
            from filelock import FileLock

            with FileLock(trial / "lock", timeout=5):
                pass
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or _line(error)
        yield bad(what, f"in {there} files cannot be {step} ({reason})", mend)
        return
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    free = shutil.disk_usage(there).free
    found = f"{place}, {_bytes(free)} free"
    if free < ROOM:
        yield Finding(BAD if free < ROOM // 10 else NOTE, what, found, "free some space")
    else:
        yield ok(what, found)


# The catalog


def catalog_at(where: str, asked: bool = True) -> Findings:
    """A catalog: whether it opens, can be written, is whole and searchable."""
    from lookalike import objects
    from lookalike.errors import LookalikeError
    from lookalike.store import Store

    try:
        store = Store(where)
        there = store.exists
        manifest = store.manifest()
    except LookalikeError as error:
        yield bad("catalog", error)
        return
    if isinstance(store.folder, objects.Remote):
        try:
            store.folder._heeds_conditions()
            yield ok("object storage", f"{where} answers and heeds conditional writes")
        except LookalikeError as error:
            yield bad("object storage", error)
    elif there or asked:
        mend = (
            "searching works, but nothing can be indexed: run as its owner, or change its permissions" if there else ""
        )
        yield from directory("catalog's directory", Path(where), mend or "choose another --catalog")
    if manifest is None and store.version() > 1:
        yield bad("catalog", f"photos.lance is at {where}, but catalog.json is gone", RESTORE)
        return
    if not there or manifest is None:
        make = f"make it: lookalike index SOURCE --catalog {where}"
        yield Finding(BAD if asked else NOTE, "catalog", f"there is none at {where}", make)
        return
    found = [*_rows(where, store, manifest), *_keys(where, store), *_encoder(store, manifest)]
    yield from found
    if all(f.level != BAD for f in found):
        yield from _searched(where, store)


def _rows(where: str, store: Store, manifest: Manifest) -> Findings:
    """The rows' files, each by its size and its last bytes; and who is writing."""
    from lookalike import objects
    from lookalike.errors import LookalikeError

    try:
        dataset = store.dataset()
        count = dataset.count_rows()
        fragments = [f.metadata for f in dataset.get_fragments()]
        store.quarantine()
    except LookalikeError as error:
        named = _named_damage(store)
        yield bad("catalog", named, RESTORE) if named else bad("catalog", error)
        return
    if not store.remote:
        damaged = []
        for fragment in fragments:
            for file in fragment.files:
                place = Path(store.photos) / "data" / file.path
                why = _not_whole(place, file.file_size_bytes)
                damaged += [f"{place} ({why})"] if why else []
        if damaged:
            yield bad("catalog", f"damaged: {_some(damaged)}", RESTORE)
            return
    found = (
        f"{where}: {count} photos in {len(fragments)} fragments, version {dataset.version}, format {manifest.format}"
    )
    yield ok("catalog", found)
    gone = []
    some = sorted({n * count // SAMPLED for n in range(SAMPLED)}) if count else []
    if some:
        from lookalike import images

        paths = store.take(some, ["lk_path"], dataset.version)["lk_path"].to_pylist()
        gone = [path for path in paths if not images.file_of(path).is_file()]
    if gone:
        mend = "searches go on, but they cannot be shown; bring them back, or index the source again where they are now"
        yield note("photos' files", f"{len(gone)} of {len(some)} looked for are not there, such as {gone[0]}", mend)
    elif some:
        yield ok("photos' files", f"{len(some)} looked for, all there (all of them, and every row: lookalike verify)")
    holder = store.folder.read("writer.json")
    if holder is not None and not objects._parsed(holder).get("free"):
        who = objects._who(holder)
        yield note("writer", f"{who} is writing, or was killed", "a lock that is left behind is taken over by itself")


def _not_whole(file: Path, size: int | None) -> str:
    """Why a file of Lance's cannot be whole, "" where it can."""
    try:
        actual = file.stat().st_size
        with file.open("rb") as opened:
            opened.seek(max(0, actual - 4))
            end = opened.read()
    except OSError as error:
        return error.strerror or _line(error)
    if size and actual != size:
        return f"{actual} bytes instead of {size}"
    return "" if end == b"LANC" else "its end is not as it was written"


def _named_damage(store: Store) -> str:
    """Which versions' files are damaged; "" where that cannot be seen."""
    if store.remote:
        return ""
    versions = []
    with contextlib.suppress(PermissionError):  # then the error itself names it
        versions = sorted((Path(store.photos) / "_versions").glob("*.manifest"))
    damaged = [str(v) for v in versions if _not_whole(v, None)]
    return f"damaged: {_some(damaged)}" if damaged else ""


def _keys(where: str, store: Store) -> Findings:
    """API keys."""
    from lookalike.errors import LookalikeError
    from lookalike.server import keys

    try:
        found = keys.read(where)
    except LookalikeError as error:
        yield bad("keys", error)
        return
    file = Path(where) / keys.FILE
    if not store.remote and os.name == "posix" and file.exists() and file.stat().st_mode & 0o077:
        yield note("keys", f"{file} can be read by others (it holds hashes alone)", f"chmod 600 {file}")
    else:
        public = len(found) or bool(os.environ.get("LOOKALIKE_API_KEY"))
        told = "" if public else " (a server then answers this machine alone)"
        yield ok("keys", f"{len(found)}{told}")


def _encoder(store: Store, manifest: Manifest) -> Findings:
    """The encoder that made the vectors; one that would have to be fetched, or wants torch, is not loaded."""
    from lookalike import encoders
    from lookalike.errors import LookalikeError

    name = os.environ.get("LOOKALIKE_ENCODER") or manifest.encoder
    config = Path(name) / "encoder.json"
    if name not in ("builtin", "fake", "colour-histogram") and not config.is_file():
        if Path(name).is_absolute() and not Path(name).exists():
            mend = "bring the directory back, or name where it is now: LOOKALIKE_ENCODER=…"
            yield bad("encoder", f"{name} made the vectors, and is not there", mend)
        else:
            yield note(
                "encoder",
                f"{name} was not tried: it may want torch, or have to be fetched",
                "try: lookalike search",
            )
        return
    try:
        made = encoders.load(name, threads=1)
    except LookalikeError as error:
        yield bad("encoder", error)
        return
    try:
        store.check_encoder(made.id, made.name)
    except LookalikeError as error:
        yield bad("encoder", error)
        return
    yield from _tried("encoder", made, "export or install it again")


def _searched(where: str, store: Store) -> Findings:
    """Whether the catalog can be searched, and by which index."""
    from lookalike.catalog import Catalog
    from lookalike.errors import LookalikeError

    if store.remote:
        return  # that would fetch all of it
    try:
        start = time.perf_counter()
        status = Catalog(where).status()
        took = time.perf_counter() - start
    except LookalikeError as error:
        yield bad("search", error)
        return
    index = status["index"]
    newer = f", {index['newer']} newer photos beside it" if index["newer"] else ""
    found = f"{status['products']} products in {took:.2f} s, index {index['kind']} ({index['why']}){newer}"
    yield Finding(NOTE if "no index yet" in index["why"] else OK, "search", found)
    if status["quarantined"]:
        yield note("quarantine", f"{status['quarantined']} inputs could not be used", "see: lookalike quarantine")


# Words


def _line(error: object) -> str:
    return str(error).strip().split("\n")[0][:400]


def _after(error: Exception, module: str = "") -> str:
    """What to do about an error that no check foresaw, perhaps while a module was loaded."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        return f"pip install --force-reinstall {PACKAGES.get(module, module)}"
    if isinstance(error, (ImportError, OSError)) and module:
        mend = f"pip install --force-reinstall {PACKAGES.get(module, module)}"
        return f"it is damaged, built for another system, or lacks a library of the system: {mend}"
    if isinstance(error, ImportError):
        return "mend the libraries that are named above first"
    if isinstance(error, OSError):
        return "check its permissions, and the disk"
    return "please report it"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def main(catalog: str = "", asked: bool = True, as_json: bool = False, write: Callable[[str], Any] = print) -> bool:
    """Make all checks and write what they found; returns whether nothing is bad."""
    faulthandler.enable()  # a damaged library may end the process while it is loaded: then it says which
    start, found = time.perf_counter(), []
    for finding in examine(catalog, asked):
        found.append(finding)
        if not as_json:
            write(str(finding))
    fine = all(f.level != BAD for f in found)
    seconds = round(time.perf_counter() - start, 2)
    if as_json:
        write(json.dumps({"ok": fine, "seconds": seconds, "checks": [asdict(f) for f in found]}, ensure_ascii=False))
    else:
        counts = {level: sum(f.level == level for f in found) for level in (OK, NOTE, BAD)}
        write(f"{counts[OK]} ok, {counts[NOTE]} to note, {counts[BAD]} bad, in {seconds} s")
    return fine


if __name__ == "__main__":
    sys.exit(0 if main(sys.argv[1] if len(sys.argv) > 1 else "") else 1)
