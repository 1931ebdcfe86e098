"""Lookalike: visual search for fashion catalogues, by photo, by words, or by both.

>>> import lookalike
>>> catalog = lookalike.open("shop.catalog", encoder="fake")
>>> catalog
<lookalike.Catalog shop.catalog>
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The packages of onnxruntime (from 1.29 on, outside Windows too) tell Microsoft of each process, model and error unless this is
# set before they are loaded; huggingface_hub tells its own of what loads models. Who wants that sets these variables to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from lookalike.catalog import Catalog
from lookalike.errors import LookalikeError
from lookalike.types import Answer, Hit, Product, Quarantined, Query

if TYPE_CHECKING:
    from lookalike.encoders import Encoder

__version__ = "0.1.0"
__all__ = ["Answer", "Catalog", "Hit", "LookalikeError", "Product", "Quarantined", "Query", "open", "restore"]


def open(directory: str | Path, encoder: str | Encoder | None = None, threads: int = 0) -> Catalog:
    """Open the catalog in ``directory``, which is made at the first ``index`` where it does not exist.

    Args:
        directory: the catalog's directory, or its address on object storage (``s3://bucket/prefix``).
        encoder: a name, a directory with an ``encoder.json``, or an object like ``lookalike.encoders.Encoder``; by default
            the one that the catalog was made with, else ``builtin``.
        threads: cores that one encoding may use, 0 for all.

    Raises:
        CatalogError: the directory holds something else, or a damaged catalog.
    """
    return Catalog(directory, encoder, threads)


def restore(file: str | Path, directory: str | Path, *, photos: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Make a new catalog in ``directory`` from what ``Catalog.backup`` wrote, and look whether its photos are there.

    Args:
        file: the backup.
        directory: a path, or an address of object storage; nothing may be there yet.
        photos: beginnings of paths and what to put in their place, where photos lie elsewhere on this machine.

    Returns:
        ``{"catalog", "photos", "damaged": [...], "changed": [...], "missing": [...]}``, as ``Catalog.verify``.

    Raises:
        InputError: no backup, a damaged one, or one of a later format; nothing was made.
        CatalogError: something is in the directory already, or it cannot be written; nothing was made.
    """
    from lookalike import backup

    return backup.restore(file, directory, photos=photos)
