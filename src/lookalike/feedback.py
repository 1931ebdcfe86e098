"""What visitors found good or bad, kept beside the catalog for fine-tuning: DIR/feedback.jsonl, one line a vote; on object
storage an object a vote.

A line has the product, the vote, the words and products that were asked for, and the time in whole minutes. Nothing says who
voted, and no photo that somebody gave is kept. ``LOOKALIKE_FEEDBACK=off`` keeps nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookalike import objects
from lookalike.errors import CatalogError, InputError

FILE = "feedback.jsonl"
VOTES = ("up", "down", "none")
MAX_WORDS = 1000
"""Characters of a text that are kept."""

MAX_FILE = 256 * 2**20
"""Bytes of all votes: whoever may search may vote, and must not fill the disk."""


@dataclass(frozen=True)
class Vote:
    """``product`` was found good (``up``) or bad (``down``) for ``text`` and ``like``; ``none`` takes an earlier vote back."""

    product: str
    vote: str
    text: str = ""
    like: tuple[str, ...] = ()
    where: str = ""
    photo: bool = False
    time: int = 0


def wanted() -> bool:
    """Whether votes are kept at all."""
    return os.environ.get("LOOKALIKE_FEEDBACK", "on").strip().lower() not in ("off", "0", "false", "no")


def vote(product: str, vote: str, query: Mapping[str, Any]) -> Vote:
    """A vote with what may be kept of the query; everything else of it is dropped."""
    like = query.get("like")
    likes = [like] if isinstance(like, str) else like if isinstance(like, (list, tuple)) else ()
    return Vote(
        product=product,
        vote=vote,
        text=_words(query.get("text")),
        like=tuple(_words(i) for i in likes[:20]),
        where=_words(query.get("where")),
        photo=bool(query.get("image") or query.get("photo")),
        time=int(time.time()) // 60 * 60,
    )


def _words(value: Any) -> str:
    """What can be written of a text; nothing of anything else, which no page of ours sends."""
    return value[:MAX_WORDS].encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def keep(directory: Path | str, vote: Vote) -> None:
    """Append a vote: one write, so that several servers may do it at once.

    Raises:
        CatalogError: it cannot be written, or the file is full.
    """
    line = json.dumps(asdict(vote), ensure_ascii=False) + "\n"
    folder = objects.at(directory)
    try:
        if (
            not isinstance(folder, objects.Remote)
            and folder.stamp(FILE)
            and (folder.path / FILE).stat().st_size > MAX_FILE
        ):
            raise CatalogError(f"{folder.where(FILE)}: holds {MAX_FILE // 2**20} MiB of votes; move it away")
        folder.append(FILE, line)
    except OSError as error:
        raise CatalogError(f"{folder.where(FILE)}: the vote cannot be kept ({error.strerror})") from error


def read(directory: Path | str) -> list[Vote]:
    """The votes that stand, in their order: of several on one product for one query the last, unless it took them back.

    Raises:
        InputError: a line is damaged, with its number. Lines that were half written when the power went are left out.
    """
    folder = objects.at(directory)
    file = folder.where(FILE)
    try:
        lines = folder.appended(FILE).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error})") from error
    latest: dict[tuple[str, str, tuple[str, ...]], Vote] = {}
    for number, line in enumerate(lines[:-1], 1):
        if not line.endswith("}"):
            continue
        try:
            fields = json.loads(line)
            found = Vote(**{**fields, "like": tuple(fields["like"])})
            if found.vote not in VOTES:
                raise ValueError(f"vote is {found.vote!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{file}, line {number}: not a vote ({error}); remove the line") from error
        key = (found.product, found.text, found.like)
        latest.pop(key, None)
        latest[key] = found
    return [v for v in latest.values() if v.vote != "none"]
