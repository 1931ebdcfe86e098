"""Word matching over titles and attributes: BM25 (Robertson and Zaragoza 2009), in memory; slips of the finger mended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
_WORD = re.compile(r"\w+")


def singular(noun: str) -> str:
    """An English plural's singular, near enough for names of garments."""
    for plural, one in (("sses", "ss"), ("ches", "ch"), ("shes", "sh"), ("ies", "y"), ("ss", "ss"), ("s", "")):
        if noun.endswith(plural):
            return noun[: -len(plural)] + one
    return noun


def words_of(text: str) -> tuple[str, ...]:
    """A text's words as they are compared: small letters, no hyphens, the longer ones in the singular."""
    found = _WORD.findall(text.casefold().replace("-", ""))
    return tuple(singular(w) if len(w) > 3 and w.isalpha() else w for w in found)


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


class Lexical:
    """An inverted index over short texts; built once per snapshot, when word matching is first asked for."""

    def __init__(self, texts: list[str]):
        self.words: dict[str, int] = {}
        postings: list[int] = []
        owners: list[int] = []
        lengths = np.zeros(len(texts), np.float32)
        for row, text in enumerate(texts):
            found = words_of(text)
            lengths[row] = len(found)
            postings.extend(self.words.setdefault(w, len(self.words)) for w in found)
            owners.extend([row] * len(found))
        keys = np.array(postings, np.int64) * max(1, len(texts)) + np.array(owners, np.int64)
        unique, counts = np.unique(keys, return_counts=True)
        word, self.rows = np.divmod(unique, max(1, len(texts)))
        self.starts = np.searchsorted(word, np.arange(len(self.words) + 1))
        norm = K1 * (1 - B + B * lengths[self.rows] / max(1.0, float(lengths.mean() if len(texts) else 1)))
        self.gain = (counts * (K1 + 1) / (counts + norm)).astype(np.float32)
        self.size = len(texts)

    @cached_property
    def _near(self) -> dict[str, list[str]]:
        """Shortened words → the words, those that only one text has left out (they may be slips themselves)."""
        out: dict[str, list[str]] = {}
        for word, n in self.words.items():
            if len(word) > 3 and word.isalpha() and self.starts[n + 1] - self.starts[n] > 1:
                for short in _shortened(word):
                    out.setdefault(short, []).append(word)
        return out

    def correct(self, word: str) -> str | None:
        """The known word that an unknown one is one slip from; the most frequent of several, None where there is none.

        Both words' letters are left out one at a time (as in SymSpell, W. Garbe 2012), so that no list is scanned.
        """
        if word in self.words or len(word) < 4 or not word.isalpha():
            return None
        near = {w for short in _shortened(word) for w in self._near.get(short, ())}
        near = {w for w in near if _slips(word, w) == 1}
        return max(near, key=lambda w: (self._frequency(w), w), default=None)

    def _frequency(self, word: str) -> int:
        n = self.words[word]
        return int(self.starts[n + 1] - self.starts[n])

    def names(self, text: str, mask: NDArray[np.bool_] | None = None) -> bool:
        """Whether one text (that passes ``mask``) has two thirds of the words asked for, those of every other text aside."""
        found = np.zeros(self.size, np.int32)
        asked = 0
        for w in set(words_of(text)):
            n = self.words.get(w)
            rows = self.rows[self.starts[n] : self.starts[n + 1]] if n is not None else self.rows[:0]
            if len(rows) <= self.size / 2:
                asked += 1
                found[rows] += 1
        best = found.max(initial=0) if mask is None else found[mask].max(initial=0)
        return bool(asked and 3 * int(best) >= 2 * asked)

    def scores(self, text: str) -> NDArray[np.float32]:
        """BM25 of every text, (texts,), divided by the largest: 0 … 1."""
        out = np.zeros(self.size, np.float32)
        for w in set(words_of(text)):
            n = self.words.get(w)
            if n is not None:
                part = slice(self.starts[n], self.starts[n + 1])
                found = part.stop - part.start
                out[self.rows[part]] += np.log(1 + (self.size - found + 0.5) / (found + 0.5)) * self.gain[part]
        best = out.max(initial=0.0)
        return out / best if best > 0 else out
