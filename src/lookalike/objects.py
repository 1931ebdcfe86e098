"""Where a catalog's small files lie: a local directory, or a prefix of an object store (``s3://``, ``gs://``, ``az://``).

Both read, replace and append whole files by name, and both give one lock. On object storage that is a lease: an object made
with put-if-absent, renewed while its holder lives, and taken over, again by a conditional put, once it has lapsed. Ages are
told by the storage's own clock, so that no two machines' clocks are compared.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import urlsplit

from lookalike.errors import CatalogError, UsageError

LEASE = 30.0
"""Seconds after which the lease of a writer that no longer renews it may be taken over."""

RETRIES, RETRY_SECONDS, CONNECT_SECONDS = 3, 15, 5
"""How long a store that does not answer is tried."""

SCHEMES = ("s3", "gs", "az")


class Busy(Exception):
    """Somebody else holds the lock; the message says who."""


class Lock:
    """A lock that is held; a local one cannot be lost."""

    def check(self) -> None:
        """Make sure that it is held still, right before a write. Raises CatalogError where it is not."""


class Local:
    """A directory."""

    def __init__(self, path: Path):
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def where(self, name: str) -> str:
        """What messages call a file."""
        return str(self.path / name)

    def read(self, name: str) -> bytes | None:
        """A file's content, None where there is none. Raises OSError where it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Changes whenever the file is replaced; None where there is none. Raises OSError."""
        try:
            status = (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return status.st_ino, status.st_mtime_ns

    def replace(self, name: str, text: str, mode: int = 0o666) -> None:
        """Put a file in the place of another, durably and at once. Raises OSError."""
        part = self.path / f"{name}.part"
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / name)
        fsync(self.path)

    def append(self, name: str, line: str) -> None:
        """Add a line in one write, so that several processes may do it at once; durably.

        Half a line that a power cut left ends there. Raises OSError, and then no half of this one is left.
        """
        new = not (self.path / name).exists()
        with (self.path / name).open("a+b", buffering=0) as file:
            if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                line = f"\n{line}"
            content = line.encode()
            written = file.write(content)
            if written < len(content):  # the disk is full
                if file.tell() == os.fstat(file.fileno()).st_size:
                    file.truncate(file.tell() - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        if new:
            fsync(self.path)

    def appended(self, name: str) -> bytes:
        """What was appended, in order; empty where nothing was. Raises OSError."""
        return self.read(name) or b""

    @contextlib.contextmanager
    def lock(self, name: str, purpose: str, wait: float = 0.0) -> Iterator[Lock]:
        """Hold the operating system's lock of that name: a process that dies lets go of it.

        Raises:
            Busy: another process still holds it after ``wait`` seconds.
            OSError: the directory cannot be written.
        """
        from filelock import FileLock, Timeout

        make(self.path)
        lock = FileLock(self.path / f"{name}.lock")
        holder = f"{name}.json"
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise Busy(_who(self.read(holder))) from None
        try:
            self.replace(holder, json.dumps(_me(purpose)))
            yield Lock()
        finally:
            (self.path / holder).unlink(missing_ok=True)
            lock.release()


class Remote:
    """A prefix of an object store, reached by ``obstore`` with the usual AWS_, GOOGLE_ and AZURE_ variables.

    Raises CatalogError, saying which variable or which name to mend, wherever the store does not do as it is asked.
    """

    def __init__(self, address: str):
        """Look at nothing yet.

        Raises:
            UsageError: obstore is not installed.
            CatalogError: an address that is none.
        """
        try:
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        except ImportError as error:
            raise UsageError(f"{address}: object storage wants obstore: pip install 'lookalike[cluster]'") from error
        self.address = address.rstrip("/")
        bucket = urlsplit(self.address).netloc
        if "@" in bucket:  # what stands before it is a secret: it is not repeated
            raise CatalogError(
                f"{urlsplit(address).scheme}://…@{bucket.rpartition('@')[2]}: credentials do not belong in an address; set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
        if bucket == "":
            raise CatalogError(f"{address}: names no bucket; write it as s3://BUCKET/PREFIX")
        if "?" in self.address or "#" in self.address:  # not every library would take it for a part of the name
            raise CatalogError(f"{address}: an address of a catalog has no ? and no #; choose another prefix")
        try:
            self._store = from_url(
                self.address,
                client_options={"allow_http": _allow_http(), "connect_timeout": f"{CONNECT_SECONDS}s"},
                retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
            )
        except (BaseError, ValueError) as error:
            raise CatalogError(f"{address}: {_first_line(error)}") from error
        self._checked = False

    def __str__(self) -> str:
        return self.address

    def where(self, name: str) -> str:
        """What messages call a file."""
        return f"{self.address}/{name}"

    @property
    def options(self) -> dict[str, str]:
        """The same settings for Lance, which reads the variables of credentials itself."""
        return {
            "allow_http": str(_allow_http()).lower(),
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "client_max_retries": str(RETRIES),
            "client_retry_timeout": str(RETRY_SECONDS),
        }

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """The store's errors as one of ours that names the mend; conditions that did not hold pass."""
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        try:
            yield
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            raise CatalogError(
                f"{self.address}: {explained(str(error), self.address) or _first_line(error)}"
            ) from error

    def read(self, name: str) -> bytes | None:
        """An object's content, None where there is none."""
        found = self._get(name)
        return found and found[0]

    def _get(self, name: str) -> tuple[bytes, str] | None:
        """Content and entity tag."""
        import obstore

        with self.errors():
            try:
                result = obstore.get(self._store, name)
                return bytes(result.bytes()), str(result.meta["e_tag"])
            except FileNotFoundError as error:
                if explained(str(error), self.address):
                    raise
                return None

    def stamp(self, name: str) -> tuple[int, int] | None:
        """Changes whenever the object is replaced; None where there is none."""
        import obstore

        with self.errors():
            try:
                found = obstore.head(self._store, name)
            except FileNotFoundError:  # a HEAD has no body: of a bucket that is not there, the next read tells
                return None
        tag = hashlib.blake2b(str(found["e_tag"]).encode(), digest_size=8).digest()
        return int.from_bytes(tag, "big"), int(found["last_modified"].timestamp())

    def replace(self, name: str, text: str, mode: int = 0) -> None:
        """Put an object in the place of another; ``mode`` is the bucket's policy's matter here."""
        self._put(name, text, "overwrite")

    def _put(self, name: str, text: str, mode: Any) -> str:
        """Returns the entity tag. Raises obstore's errors where a condition of ``mode`` does not hold."""
        import obstore

        with self.errors():
            return str(obstore.put(self._store, name, text.encode(), mode=mode, use_multipart=False)["e_tag"])

    def append(self, name: str, line: str) -> None:
        """Keep a line as an object of its own: objects cannot grow."""
        self.replace(f"{name}/{time.time_ns():020}-{uuid.uuid4().hex[:8]}", line)

    def appended(self, name: str) -> bytes:
        """What was appended, in order of time."""
        with ThreadPoolExecutor(16) as pool:
            return b"".join(content or b"" for content in pool.map(self.read, sorted(self.under(f"{name}/"))))

    def under(self, prefix: str = "") -> list[str]:
        """Names of all objects under a prefix."""
        import obstore

        with self.errors():
            return [str(o["path"]) for o in obstore.list(self._store, prefix or None).collect()]

    def entries(self, prefix: str = "") -> set[str]:
        """Names of what lies right under a prefix, objects and prefixes alike."""
        import obstore

        with self.errors():
            found = obstore.list_with_delimiter(self._store, prefix or None)
        paths = [*found["common_prefixes"], *(o["path"] for o in found["objects"])]
        return {str(p).rstrip("/").rpartition("/")[2] for p in paths}

    def delete(self, names: list[str]) -> None:
        """Delete objects."""
        import obstore

        with self.errors():
            obstore.delete(self._store, names)

    @contextlib.contextmanager
    def lock(self, name: str, purpose: str, wait: float = 0.0) -> Iterator[Lock]:
        """Hold the lease of that name, renewed in a thread of its own.

        Raises:
            Busy: another holds it after ``wait`` seconds, and it has not lapsed.
            CatalogError: the store does not answer, or puts without heeding conditions.
        """
        until = time.monotonic() + wait
        while True:
            try:
                lease = Lease(self, f"{name}.json", purpose)
                break
            except Busy:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)
        try:
            yield lease
        finally:
            lease.release()

    def _heeds_conditions(self) -> None:
        """Raises CatalogError where put-if-absent overwrites: then no lock would hold, and no commit of Lance's either."""
        from obstore.exceptions import AlreadyExistsError

        if self._checked:
            return
        name = f"writer.try-{uuid.uuid4().hex[:8]}"
        try:
            with contextlib.suppress(AlreadyExistsError):  # the answer to the first try was lost
                self._put(name, "", "create")
            with contextlib.suppress(AlreadyExistsError):
                self._put(name, "", "create")
                raise CatalogError(
                    f"{self.address}: this storage ignores conditional writes (If-None-Match), by which writers keep out of "
                    "each other's way; use a newer release of it, or another"
                )
        finally:
            self.delete([name])
        self._checked = True

    def age(self, name: str) -> float:
        """Seconds since an object was written, by the store's own clock, give or take one; raises CatalogError."""
        import obstore

        probe = f"writer.try-{uuid.uuid4().hex[:8]}"
        self._put(probe, "", "overwrite")
        try:
            with self.errors():
                now, then = (obstore.head(self._store, n)["last_modified"] for n in (probe, name))
        finally:
            self.delete([probe])
        return float((now - then).total_seconds())


class Lease(Lock):
    """A lock on object storage: whoever wrote the object last holds it until it lapses."""

    def __init__(self, remote: Remote, name: str, purpose: str):
        """Take the lease. Raises Busy, CatalogError."""
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        self._remote, self._name = remote, name
        self._me = {**_me(purpose), "lease": LEASE, "token": uuid.uuid4().hex}
        self._changing = threading.Lock()
        self._lost = ""
        remote._heeds_conditions()
        found = remote._get(name)
        try:
            if found is None:
                self._tag = self._write("create")
            else:
                content, tag = found
                self._must_be_free(content)
                self._tag = self._write({"e_tag": tag})
        except (AlreadyExistsError, PreconditionError):
            # Another was quicker, or our own write came through and its answer was lost.
            now = remote._get(name)
            if now is None or _parsed(now[0]).get("token") != self._me["token"]:
                raise Busy(_who(now and now[0])) from None
            self._tag = now[1]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lookalike-lease", daemon=True)
        self._thread.start()

    def _must_be_free(self, content: bytes) -> None:
        """Raises Busy where the lease is another's and has not lapsed."""
        held = _parsed(content)
        if held.get("free") or not held:
            return
        lease = float(held.get("lease", LEASE))
        left = lease + 1 - self._remote.age(self._name)  # the clock counts whole seconds
        if left > 0:
            raise Busy(f"{_who(content)}; if that was killed, it can be taken over in {left:.0f} s:")

    def _write(self, mode: Any, **more: Any) -> str:
        beat = {"beat": uuid.uuid4().hex[:8]}  # the tag is one of the content: each must differ
        return self._remote._put(self._name, json.dumps({**self._me, **beat, **more}), mode)

    def _renew(self) -> None:
        from obstore.exceptions import PreconditionError

        with self._changing:
            if self._lost:
                return
            try:
                self._tag = self._write({"e_tag": self._tag})
            except PreconditionError:
                # A renewal that was written but whose answer was lost is ours all the same.
                found = self._remote._get(self._name)
                if found is not None and _parsed(found[0]).get("token") == self._me["token"]:
                    self._tag = found[1]
                elif found is None:
                    self._lost = f"{self._name} is gone: somebody removed it, and another may be writing"
                else:
                    self._lost = (
                        f"this process did not renew its lease for {LEASE:.0f} s, and {_who(found[0])} took over"
                    )

    def _keep(self) -> None:
        while not self._end.wait(LEASE / 4):
            with contextlib.suppress(CatalogError):  # tried again; a writer checks before it writes
                self._renew()

    def check(self) -> None:
        """Renew it, right before a write.

        Raises:
            CatalogError: it was lost: another may be writing, and nothing more must be written here.
        """
        self._renew()
        if self._lost:
            raise CatalogError(
                f"{self._remote}: {self._lost}; what was committed is kept, run again when nobody writes any more"
            )

    def release(self) -> None:
        """Let go; at worst it lapses."""
        from obstore.exceptions import PreconditionError

        self._end.set()
        self._thread.join()
        with self._changing, contextlib.suppress(CatalogError, PreconditionError):
            if not self._lost:
                self._write({"e_tag": self._tag}, free=True)


Folder = Local | Remote


def is_address(directory: str | PurePath) -> bool:
    """Whether this is an address rather than a path."""
    return re.match(r"[A-Za-z][\w+.-]+:/", _posix(directory)) is not None


def _posix(directory: str | PurePath) -> str:
    """A path of Windows has the slashes of an address turned."""
    return directory.as_posix() if isinstance(directory, PurePath) else directory


def at(directory: str | PurePath) -> Folder:
    """A directory or an address. Raises CatalogError for an address of another kind, UsageError where obstore is missing."""
    if not is_address(directory):
        return Local(Path(directory))
    scheme, _, rest = _posix(directory).partition(":")
    if scheme not in SCHEMES:
        raise CatalogError(f"{directory}: catalogs are kept in a local directory or at s3://, gs:// or az:// addresses")
    return _remote(f"{scheme}://{rest.lstrip('/')}", _settings())


@lru_cache(maxsize=16)
def _remote(address: str, settings: tuple[tuple[str, str], ...]) -> Remote:
    return Remote(address)


FAMILIES = ("AWS_", "GOOGLE_", "AZURE_")
"""How the variables of each provider begin."""


def _settings() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(FAMILIES)))


def cache(address: str) -> Path:
    """The local directory for what is derived from the catalog at an address.

    Under LOOKALIKE_CACHE, else in the user's cache, else, for a user without a home, where temporary files are.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir())
    if os.environ.get("LOOKALIKE_CACHE"):
        root = Path(os.environ["LOOKALIKE_CACHE"]).absolute()
    elif sys.platform == "darwin":
        root = home / "Library" / "Caches" / "lookalike"
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "lookalike" / "Cache"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "lookalike"
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "")  # the same bucket's name at two providers
    digest = hashlib.blake2b(f"{endpoint} {address}".encode(), digest_size=8).hexdigest()
    last = re.sub(r"[^\w.-]+", "-", address.rpartition("/")[2])
    return root / "catalogs" / f"{last}-{digest}"


def explained(message: str, address: str) -> str:
    """What to do about an error of a store or of Lance about an address; "" where that is not known."""
    said = message.partition("\n\nDebug source")[0]  # after it, names of settings
    parts = urlsplit(address)
    for name in (
        address,
        parts.netloc + parts.path,
        parts.path.lstrip("/"),
    ):  # which may be called timeouts, or 403 Forbidden
        said = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "", said) if name else said
    said = re.sub(r"retry_timeout: \w+", "", said)
    for pattern, mend in _MENDS:
        if re.search(pattern, said):
            return mend
    return ""


_MENDS = (
    (
        r"NoSuchBucket|specified bucket does not exist|ContainerNotFound",
        "there is no such bucket; create it, or mend its name",
    ),
    (
        r"169\.254\.169\.254|metadata\.google|Failed to get AWS credentials|CredentialsNotLoaded|no providers in chain"
        r"|Missing(Access|Secret)Key",
        "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_…)",
    ),
    (
        r"PermanentRedirect|AuthorizationHeaderMalformed|IllegalLocationConstraint",
        "the bucket is in another region; set AWS_REGION",
    ),
    (
        r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|InvalidToken|ExpiredToken|403 Forbidden|401 Unauthorized"
        r"|UnauthenticatedError|PermissionDenied",
        "access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy",
    ),
    (
        r"URL scheme is not allowed|builder error",
        "the endpoint is http://; set AWS_ALLOW_HTTP=true where that is meant",
    ),
    (
        r"error sending request|onnection refused|dns error|timed out|timeout|tcp connect|500 Internal|502 Bad|503 S",
        "the storage does not answer; check AWS_ENDPOINT_URL and the network, then try again",
    ),
)  # fmt: skip


def _allow_http() -> bool:
    """An endpoint that is given as http:// is meant so."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    asked = os.environ.get("AWS_ALLOW_HTTP", "").strip().lower()
    return endpoint.startswith("http://") if not asked else asked in ("1", "true", "yes", "on")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]


def _me(purpose: str) -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose, "since": time.strftime("%F %T")}


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _who(content: bytes | None) -> str:
    h = _parsed(content)
    try:
        return f"process {h['pid']} on {h['host']} ({h['purpose']}, since {h['since']})"
    except KeyError:
        return "another process"


def make(path: Path) -> None:
    """Make a directory and those above it, where they are not there, durably. Raises OSError."""
    new = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in new:
        with contextlib.suppress(PermissionError):  # one may be written to and yet not opened
            fsync(made.parent)


def fsync(path: str | Path) -> None:
    """Make a file, or a directory's entries, durable."""
    if sys.platform == "win32" and Path(path).is_dir():
        return  # directories have no descriptor there; the file system journals them
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
