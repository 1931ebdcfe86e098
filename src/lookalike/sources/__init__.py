"""Where products come from: a folder of photos, a table, a shop's export, a known dataset's layout, or Python objects.

A source is read whole before anything is written, so that what is wrong with it changes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lookalike.errors import InputError, UsageError
from lookalike.types import Product, Quarantined

if TYPE_CHECKING:
    from lookalike.sources.web import Web

ROLES = ("id", "title", "image", "category", "colour", "gender", "price")


@dataclass
class Source:
    """Products in order, what could not be used of them, and what the columns mean.

    ``key`` names the source for ``--prune``; ``roles`` maps a role to a column; ``left`` counts files that are no photos,
    ``hidden`` products that the shop itself does not show (drafts).
    What is there but cannot be read just now must not be pruned: ``broken`` has the ids of such products, ``unreadable``
    the folders. ``files`` says which address a fetched file came from, ``unfetched`` why one could not be fetched.
    """

    key: str
    products: list[Product]
    roles: dict[str, str] = field(default_factory=dict)
    quarantined: list[Quarantined] = field(default_factory=list)
    left: int = 0
    hidden: int = 0
    broken: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    unfetched: dict[str, str] = field(default_factory=dict)


def open_source(
    what: Any, roles: Mapping[str, str] | None = None, product_from: str = "photo", web: Web | None = None
) -> Source:
    """Read a source whole.

    Args:
        what: a path of a folder, a table or a shop's export, the address of one, a pandas-like DataFrame, or an iterable of
            ``Product``.
        roles: which columns of a table are ``id``, ``title``, ``image`` …, where their names do not say it.
        product_from: ``photo`` (each photo of a folder is a product) or ``folder`` (each folder is one).
        web: fetches what is given by its address; without it nothing is fetched.

    Raises:
        InputError: nothing usable is there, or it has addresses and there is no ``web``; the message says what was looked
            for.
        UsageError: an unknown role, or an option that is not for this kind of source.
    """
    unknown = sorted(set(roles or {}) - set(ROLES))
    if unknown:
        raise UsageError(f"--map {unknown[0]}=…: no such role; the roles are {', '.join(ROLES)}")
    if product_from not in ("photo", "folder"):
        raise UsageError(f"--product-from {product_from}: choose photo or folder")
    source = _read(what, roles, product_from, web)
    first = next((str(p) for product in source.products for p in product.photos if is_address(p)), "")
    if first and web is None:
        raise InputError(f"{source.key}: its photos are addresses (the first: {first}). {_NOT_ASKED}")
    if first and web is not None:
        web.photos(source)
    return source


_NOT_ASKED = (
    "Nothing is fetched from the web unless you ask for it: add --download (in Python download=True), or set "
    "LOOKALIKE_DOWNLOAD=1"
)


def is_address(name: object) -> bool:
    """Whether a photo's or a source's name is an address (``scheme://…``) rather than a path."""
    return isinstance(name, str) and bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name))


def _read(what: Any, roles: Mapping[str, str] | None, product_from: str, web: Web | None) -> Source:
    from lookalike.sources import deepfashion, folder, mnist, street, table

    if is_address(what):
        if web is None:
            raise InputError(f"{what}: an address. {_NOT_ASKED}")
        if product_from == "folder":
            raise UsageError(f"--product-from is for folders of photos, {what} is an address; leave it out")
        file = web.source(what)
        try:
            return table.read(file, roles, key=what, name=Path(urlsplit(what).path).name or what, base=what)
        except InputError as error:
            raise InputError(str(error).replace(str(file), what)) from error
    if isinstance(what, (str, Path)):
        path = _existing(Path(what).expanduser())
        kaggle = (path / "styles.csv").is_file() and (path / "images").is_dir()
        if product_from == "folder" and (kaggle or path.is_file()):
            raise UsageError(f"--product-from is for folders of photos, {path} is a table; leave it out")
        if path.is_file():
            return table.read(path, roles)
        if kaggle:
            return table.read(path / "styles.csv", roles, key=str(path), image_from_id="images")
        if roles:
            raise UsageError(f"--map is for tables, {path} is a folder; leave it out")
        found = deepfashion.read(path) or street.read(path) or mnist.read(path)
        if found is not None and product_from == "folder":
            raise UsageError(f"--product-from is for folders of photos, {path} is a data set; leave it out")
        return found or folder.read(path, product_from)
    if hasattr(what, "to_dict") and hasattr(what, "columns"):
        return table.from_records(what.to_dict("records"), roles, key="dataframe", base=Path.cwd(), name="DataFrame")
    if isinstance(what, Iterable):
        return from_products(what)
    raise InputError(f"cannot index a {type(what).__name__}; give a path, a DataFrame, or products")


def _existing(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file or folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def cache_folder() -> Path:
    """Where files go that can be made again at any time: ``LOOKALIKE_CACHE``, else the user's cache folder."""
    given = os.environ.get("LOOKALIKE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lookalike"


def from_products(what: Iterable[Product]) -> Source:
    """A source of Python objects.

    Raises:
        InputError: something in it is no Product, has a value that no column can hold, or two have one id.
    """
    from lookalike.sources.table import MAX_ID, as_text, plain, short

    products: list[Product] = []
    quarantined: list[Quarantined] = []
    broken: set[str] = set()
    seen: set[str] = set()
    for n, product in enumerate(what):
        if not isinstance(product, Product):
            raise InputError(f"item {n}: a {type(product).__name__}, not a lookalike.Product")
        if not isinstance(product.id, str) or not isinstance(product.title, str):
            raise InputError(f"item {n}: id and title must be text, not {product.id!r} and {product.title!r}")
        if len(product.id) > MAX_ID:
            raise InputError(
                f"item {n}: the id {short(product.id, 20)!r} is longer than {MAX_ID:,} characters; shorten it"
            )
        if product.id in seen:
            raise InputError(f"item {n}: the id {product.id!r} occurs twice; ids must differ")
        if isinstance(product.photos, (str, Path)):
            product = replace(product, photos=[product.photos])
        if not all(isinstance(p, (str, Path)) for p in product.photos):
            raise InputError(f"item {n}, id {product.id}: photos must be paths of files, or addresses")
        if not all(isinstance(name, str) for name in product.attributes):
            raise InputError(f"item {n}, id {product.id}: the names of attributes must be text")
        seen.add(product.id)
        values = {name: plain(value) for name, value in product.attributes.items()}
        values = {name: as_text(value) if isinstance(value, list) else value for name, value in values.items()}
        texts = {"the id": product.id, "the title": product.title, **values}
        damaged = next((name for name, text in texts.items() if isinstance(text, str) and "\0" in text), "")
        if damaged or not product.id.strip():
            reason = f"{damaged}: has a NUL character; take it out" if damaged else "the id is empty; fill it in"
            quarantined.append(Quarantined(product.where or f"item {n}", reason))
            broken.add(product.id)
            continue
        products.append(replace(product, attributes=values))
    if not products and not quarantined:
        raise InputError("no products given")
    roles = {r: r for r in ("category", "colour", "gender", "price") if any(r in p.attributes for p in products)}
    without = [p for p in products if not p.photos]
    return Source(
        key="python",
        products=[p for p in products if p.photos],
        roles=roles,
        quarantined=[*quarantined, *(Quarantined(p.where or p.id, "the product has no photo") for p in without)],
        broken=broken | {p.id for p in without},
    )
