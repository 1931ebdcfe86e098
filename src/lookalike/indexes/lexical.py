"""Word matching over titles and attributes: BM25 (Robertson and Zaragoza 2009), in memory; slips of the finger mended."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

K1, B = 1.2, 0.75

Coded = tuple[Sequence[str], NDArray[np.int64]]
"""The different values of a column, and which of them each row has (rows,): −1 where none."""
_WORD = re.compile(r"\w+")


def singular(noun: str) -> str:
    """An English plural's singular, near enough for names of garments."""
    for plural, one in (("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("ies", "y"), ("ss", "ss"), ("s", "")):
        if noun.endswith(plural):
            return noun[: -len(plural)] + one
    return noun


def words_of(text: str) -> tuple[str, ...]:
    """A text's words as they are compared: small letters, no hyphens, the longer ones in the singular."""
    return tuple(map(_compared, _raw(text)))


def _raw(text: str) -> list[str]:
    return _WORD.findall(text.casefold().replace("-", ""))


def _compared(word: str) -> str:
    return singular(word) if len(word) > 3 and word.isalpha() else word


class _Numbers(dict[str, int]):
    """Words as they are written → the numbers of those that they are compared as."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        number = self[word] = self.words.setdefault(_compared(word), len(self.words))
        return number


def _shortened(word: str) -> Iterable[str]:
    """The word, and the word with one letter left out."""
    return {word, *(word[:n] + word[n + 1 :] for n in range(len(word)))}


def _slips(a: str, b: str) -> int:
    """Letters to add, leave out, change or swap with a neighbour between two words (optimal string alignment)."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        older, before, row = before, row, [i]
        for j, y in enumerate(b, 1):
            best = min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, older[j - 2] + 1)
            row.append(best)
    return row[-1]


class _Part:
    """Postings of some texts: ``vocabulary`` sorted; word n is in ``rows[starts[n]:starts[n + 1]]``, with their ``gain``."""

    def __init__(
        self, vocabulary: pa.Array, starts: NDArray[np.int64], rows: NDArray[np.int32], gain: NDArray[np.float32],
        size: int, mean: float,
    ):  # fmt: skip
        self.vocabulary, self.starts, self.rows, self.gain, self.size, self.mean = (
            vocabulary,
            starts,
            rows,
            gain,
            size,
            mean,
        )

    @classmethod
    def of(cls, texts: Iterable[str | Sequence[str]], coded: Sequence[Coded], mean: float | None) -> _Part:
        """Count the words of texts, or of their parts, and of columns that say the same again and again (``coded``).

        ``mean`` is the usual number of words, by default that of these.
        """
        number = _Numbers()
        postings, lengths = array("q"), array("l")
        for text in texts:
            before = len(postings)
            for part in (text,) if isinstance(text, str) else text:
                postings.extend(map(number.__getitem__, _raw(part)))
            lengths.append(len(postings) - before)
        size = len(lengths)
        long = np.asarray(lengths, np.int64)
        word, owner = [np.frombuffer(postings, np.int64)], [np.repeat(np.arange(size), long)]
        for values, codes in coded:
            said = [[number[w] for w in _raw(value)] for value in values] + [[]]  # the last for what is missing: −1
            many = np.array([len(s) for s in said])[codes]
            begin = np.cumsum([0, *(len(s) for s in said)])[:-1][codes]
            within = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many)
            word.append(np.array([w for s in said for w in s], np.int64)[np.repeat(begin, many) + within])
            owner.append(np.repeat(np.arange(size), many))
            long = long + many
        order = sorted(number.words)
        place = np.empty(len(order), np.int64)
        place[np.fromiter((number.words[w] for w in order), np.int64, len(order))] = np.arange(len(order))
        keys = place[np.concatenate(word)] * max(1, size) + np.concatenate(owner)
        unique, counts = np.unique(keys, return_counts=True)
        word_of, rows = np.divmod(unique, max(1, size))
        starts = np.searchsorted(word_of, np.arange(len(order) + 1))
        usual = mean or max(1.0, float(long.mean()) if size else 1.0)
        gain = counts * (K1 + 1) / (counts + K1 * (1 - B + B * long[rows] / usual))
        return cls(pa.array(order, pa.string()), starts, rows.astype(np.int32), gain.astype(np.float32), size, usual)

    def word(self, word: str) -> int:
        """Number of a word, −1 where no text has it."""
        low, high = 0, len(self.vocabulary)
        while low < high:
            middle = (low + high) // 2
            if self.vocabulary[middle].as_py() < word:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self.vocabulary) and self.vocabulary[low].as_py() == word else -1

    def frequent(self) -> list[str]:
        """Words of letters, longer than three, that more than one text has."""
        often = np.flatnonzero(np.diff(self.starts) > 1)
        return [w for w in self.vocabulary.take(pa.array(often)).to_pylist() if len(w) > 3 and w.isalpha()]


class Lexical:
    """An inverted index over short texts; those of several segments of a catalog are asked as one."""

    def __init__(
        self, texts: Iterable[str | Sequence[str]], coded: Sequence[Coded] = (), mean: float | None = None
    ):  # fmt: skip
        self.parts = [_Part.of(texts, coded, mean)]
        self.live: NDArray[np.bool_] | None = None

    @classmethod
    def joined(cls, several: Sequence[Lexical], live: NDArray[np.bool_] | None = None) -> Lexical:
        """One over all their texts, one after the other, of which only the ``live`` ones (texts,) count."""
        new = cls.__new__(cls)
        new.parts, new.live = [part for one in several for part in one.parts], live
        return new

    @property
    def size(self) -> int:
        """Number of texts, those that do not count among them."""
        return sum(p.size for p in self.parts)

    @cached_property
    def _count(self) -> int:
        return self.size if self.live is None else int(np.count_nonzero(self.live))

    @property
    def mean(self) -> float:
        """Words that a text usually has."""
        return self.parts[0].mean

    def save(self, directory: Path) -> None:
        """Write the postings into a folder."""
        (part,) = self.parts
        with pa.OSFile(str(directory / "vocabulary.arrow"), "wb") as file:
            table = pa.table({"words": part.vocabulary})
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
        for name in ("starts", "rows", "gain"):
            np.save(directory / f"{name}.npy", getattr(part, name))
        np.save(directory / "sizes.npy", np.array([part.size, part.mean]))

    @classmethod
    def load(cls, directory: Path) -> Lexical:
        """What ``save`` wrote, memory-mapped."""
        words = pa.ipc.open_file(pa.memory_map(str(directory / "vocabulary.arrow"))).read_all()["words"]
        starts, rows, gain = (np.load(directory / f"{n}.npy", mmap_mode="r") for n in ("starts", "rows", "gain"))
        size, mean = np.load(directory / "sizes.npy").tolist()
        new = cls.__new__(cls)
        vocabulary = words.chunk(0) if words.num_chunks else pa.array([], pa.string())
        new.live = None
        new.parts = [_Part(vocabulary, starts, rows, gain, int(size), mean)]
        return new

    def _postings(self, word: str) -> list[tuple[int, _Part, slice]]:
        """Where a word stands: of each part the row of its first text, and the part of its postings."""
        out, begin = [], 0
        for part in self.parts:
            n = part.word(word)
            if n >= 0:
                out.append((begin, part, slice(int(part.starts[n]), int(part.starts[n + 1]))))
            begin += part.size
        return out

    @cached_property
    def _near(self) -> dict[str, list[str]]:
        """Shortened words → the words, those that only one text has left out (they may be slips themselves)."""
        out: dict[str, list[str]] = {}
        for word in dict.fromkeys(w for part in self.parts for w in part.frequent()):
            for short in _shortened(word):
                out.setdefault(short, []).append(word)
        return out

    def correct(self, word: str) -> str | None:
        """The known word that an unknown one is one slip from; the most frequent of several, None where there is none.

        Both words' letters are left out one at a time (as in SymSpell, W. Garbe 2012), so that no list is scanned.
        """
        if len(word) < 4 or not word.isalpha() or self._frequency(word):
            return None
        near = {w for short in _shortened(word) for w in self._near.get(short, ())}
        near = {w for w in near if _slips(word, w) == 1}
        return max((w for w in near if self._frequency(w)), key=lambda w: (self._frequency(w), w), default=None)

    def _frequency(self, word: str) -> int:
        if self.live is None:
            return sum(where.stop - where.start for _, _, where in self._postings(word))
        found = (self.live[part.rows[where] + begin] for begin, part, where in self._postings(word))
        return sum(int(np.count_nonzero(some)) for some in found)

    def names(self, text: str, mask: NDArray[np.bool_] | None = None) -> bool:
        """Whether one text (that passes ``mask``) has two thirds of the words asked for, those of every other text aside."""
        found = np.zeros(self.size, np.int32)
        asked = 0
        for w in set(words_of(text)):
            if self._frequency(w) <= self._count / 2:
                asked += 1
                for begin, part, where in self._postings(w):
                    found[part.rows[where] + begin] += 1
        mask = self.live if mask is None else mask
        best = found.max(initial=0) if mask is None else found[mask].max(initial=0)
        return bool(asked and 3 * int(best) >= 2 * asked)

    def scores(self, text: str) -> NDArray[np.float32]:
        """BM25 of every text, (texts,), divided by the largest: 0 … 1."""
        out = np.zeros(self.size, np.float32)
        for w in set(words_of(text)):
            found = self._frequency(w)
            for begin, part, where in self._postings(w):
                out[part.rows[where] + begin] += (
                    np.log(1 + (self._count - found + 0.5) / (found + 0.5)) * part.gain[where]
                )
        if self.live is not None:
            out[~self.live] = 0
        best = out.max(initial=0.0)
        return out / best if best > 0 else out
