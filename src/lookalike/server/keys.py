"""API keys: a file of the catalog that holds their hashes, read again whenever it changes.

    DIR/keys.json   {"keys": [{"name", "scope", "sha256", "since"}, …]}, readable by its owner alone

A secret is 256 random bits, which nobody can try out, however fast the hash: SHA-256 is enough. Slow hashes are for
passwords, which people choose; here they would only be work that a stranger's request can cause.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from lookalike import objects
from lookalike.errors import CatalogError, InputError, UsageError

SCOPES = {"search": ("search",), "write": ("search", "write"), "metrics": ("metrics",)}
"""What a key of a scope may do: one that writes also searches."""

FILE = "keys.json"

LOOK_SECONDS = 1.0
"""How often keys on object storage are looked at, where a look costs a request; of local ones every call is told."""

ALL = ("search", "write", "metrics")
log = logging.getLogger("lookalike")


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is kept: the secret itself is nowhere."""

    name: str
    scope: str
    sha256: str
    since: str

    @property
    def scopes(self) -> tuple[str, ...]:
        """What it may do."""
        return SCOPES[self.scope] if self.scope else ALL


class _Damaged(CatalogError):
    """A file of keys that was found and cannot be used."""


class Keys:
    """The keys of one catalog, beside the one from the environment."""

    def __init__(self, directory: Path | str, api_key: str = ""):
        """Read nothing yet.

        Args:
            directory: the catalog's, or its address.
            api_key: a secret that may do everything, if not empty.
        """
        self.folder = objects.at(directory)
        self._looked, self._looking = float("-inf"), False
        self._fixed = [Key("environment", "", _hash(api_key), "")] if api_key else []
        self._seen: tuple[int, int] | None = None
        self._read: list[Key] = []
        self._known = False
        self._broken = self._away = False

    def __bool__(self) -> bool:
        """Whether there are any: where the file cannot be read there might be, and nobody gets in without one."""
        return bool(self.all()) or self._broken

    def all(self) -> list[Key]:
        """The keys as they were at the last look; those of a damaged file are none that anybody has."""
        return [*self._fixed, *self._read]

    async def follow(self) -> None:
        """Look again where that is due, without holding up the event loop: on object storage a look is a request.

        Who comes while another looks goes on with what is known, if anything is.
        """
        if not isinstance(self.folder, objects.Remote):
            self.refresh()
        elif time.monotonic() - self._looked >= LOOK_SECONDS and not (self._looking and self._known):
            self._looking = True
            try:
                await asyncio.to_thread(self.refresh)
            finally:
                self._looking = False

    def refresh(self) -> None:
        """Read the keys again if they have changed.

        A damaged file lets nobody in; storage that does not answer leaves the keys as they were. The log tells of both.
        """
        try:
            seen = self.folder.stamp(FILE)
        except OSError:
            seen = (0, 0)
        except CatalogError as error:
            self._miss(error)
            return
        try:
            if seen != self._seen or not self._known:
                self._read = _read(self.folder) if seen else []
                self._broken = False
        except _Damaged as error:
            self._read, self._broken = [], True
            log.error("%s", error)
        except CatalogError as error:
            self._miss(error)
            return
        self._seen, self._known, self._away = seen, True, False
        self._looked = time.monotonic()

    def _miss(self, error: CatalogError) -> None:
        """The storage did not answer: said once; the door is shut only where nothing was ever read."""
        if not self._away:
            log.error("the keys are as they were: %s", error)
        self._away, self._broken = True, self._broken or not self._known
        self._looked = time.monotonic()

    def find(self, secret: str) -> Key | None:
        """The key of this secret. Takes as long for a wrong one as for a right one."""
        wanted, found = _hash(secret), None
        for key in self.all():
            if hmac.compare_digest(key.sha256, wanted):
                found = key
        return found


def read(directory: Path | str) -> list[Key]:
    """The keys of a catalog, in order of name.

    Raises:
        CatalogError: the file cannot be read, or is damaged.
    """
    return _read(objects.at(directory))


def _read(folder: objects.Folder) -> list[Key]:
    try:
        text = folder.read(FILE)
        if text is None:
            return []
        keys = [Key(**entry) for entry in json.loads(text)["keys"]]
        if any(k.scope not in SCOPES or len(k.sha256) != 64 or not k.sha256.isascii() for k in keys):
            raise ValueError("a scope or a hash that is none")
    except (OSError, ValueError, TypeError, KeyError) as error:
        if isinstance(error, OSError):
            raise _Damaged(f"{folder.where(FILE)}: cannot be read ({error.strerror}); check its permissions") from error
        raise _Damaged(f"{folder.where(FILE)}: damaged ({error}); remove it and add the keys again") from error
    return sorted(keys, key=lambda k: k.name)


def add(directory: Path | str, name: str, scope: str) -> str:
    """Make a key; returns its secret, which can be had only now.

    Raises:
        UsageError: no such scope, or a name that cannot stand in a log.
        InputError: the name is taken.
    """
    if scope not in SCOPES:
        raise UsageError(f"--scope {scope}: choose {', '.join(SCOPES)}")
    if not re.fullmatch(r"[\w.@-]{1,64}", name) or name == "environment":
        raise UsageError(f"{name!r}: a name of 1 to 64 letters, digits and . - _ @ is wanted (and not environment)")
    secret = "lk_" + secrets.token_urlsafe(32)

    def added(keys: list[Key]) -> list[Key]:
        if any(k.name == name for k in keys):
            raise InputError(f"a key called {name!r} is there already; remove it first: lookalike keys remove {name}")
        return [*keys, Key(name, scope, _hash(secret), time.strftime("%Y-%m-%d"))]

    _change(directory, added)
    return secret


def remove(directory: Path | str, name: str) -> None:
    """Take a key away; a running server refuses it from then on.

    Raises:
        InputError: there is none of this name.
    """

    def removed(keys: list[Key]) -> list[Key]:
        if not any(k.name == name for k in keys):
            raise InputError(f"no key called {name!r}; there are: {', '.join(k.name for k in keys) or 'none'}")
        return [k for k in keys if k.name != name]

    _change(directory, removed)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _change(directory: Path | str, change: Callable[[list[Key]], list[Key]]) -> None:
    folder = objects.at(directory)
    try:
        with folder.lock("keys-writer", "keys", wait=10) as lock:
            keys = change(_read(folder))
            lock.check()
            folder.replace(FILE, json.dumps({"keys": [asdict(k) for k in keys]}, indent=1), 0o600)
    except objects.Busy as busy:
        raise CatalogError(f"{directory}: {busy} is changing the keys; try again") from None
    except OSError as error:
        raise CatalogError(
            f"{directory}: cannot be written ({error.strerror or error}); check its permissions"
        ) from error
