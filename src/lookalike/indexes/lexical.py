"""Word matching over titles and attributes: BM25 (Robertson and Zaragoza 2009), in memory."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

K1, B = 1.2, 0.75
_WORD = re.compile(r"\w+")


class Lexical:
    """An inverted index over short texts; built once per snapshot, when word matching is first asked for."""

    def __init__(self, texts: list[str]):
        self.words: dict[str, int] = {}
        postings: list[int] = []
        owners: list[int] = []
        lengths = np.zeros(len(texts), np.float32)
        for row, text in enumerate(texts):
            found = _WORD.findall(text.casefold())
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

    def names(self, text: str, mask: NDArray[np.bool_] | None = None) -> bool:
        """Whether one text (that passes ``mask``) has two thirds of the words asked for, those of every other text aside."""
        found = np.zeros(self.size, np.int32)
        asked = 0
        for w in set(_WORD.findall(text.casefold())):
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
        for w in set(_WORD.findall(text.casefold())):
            n = self.words.get(w)
            if n is not None:
                part = slice(self.starts[n], self.starts[n + 1])
                found = part.stop - part.start
                out[self.rows[part]] += np.log(1 + (self.size - found + 0.5) / (found + 0.5)) * self.gain[part]
        best = out.max(initial=0.0)
        return out / best if best > 0 else out
