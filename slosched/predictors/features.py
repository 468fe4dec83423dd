"""What a prompt looks like in numbers: hashed words and character n-grams, and lexical counts.

One compiled pass over the prompt's bytes, since a library's vectorizer needs about a millisecond per prompt
for the same n-grams, and a serving engine asks one prompt at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slosched.core.arrays import Floats, Ints
from slosched.core.jit import BORROWED, njit

BUCKETS = 1 << 18
"""Hash buckets; words take the lower half, character n-grams the upper."""

MOST_BYTES = 2048
"""Longer prompts are read at both ends: instructions stand there."""

COUNTS = (
    "bytes", "words", "distinct_words", "lines", "questions", "commas", "periods", "digits", "numbers",
    "uppercase", "brackets", "operators", "quotes", "colons", "beyond_ascii", "first_line_bytes",
)  # fmt: skip
"""Lexical counts."""

_SHORTEST, _LONGEST = 3, 4


def featurise(texts: Sequence[str]) -> tuple[Ints, NDArray[np.int32], NDArray[np.float32], Floats]:
    """Counts of the hashed n-grams of each text, and its lexical counts.

    Returns
    -------
    offsets, buckets, counts
        Text i has the buckets ``buckets[offsets[i]:offsets[i + 1]]``, shape (n + 1,), (total,), (total,).
    lexical
        Shape (n, number of COUNTS), each log(1 + count).

    Examples
    --------
    >>> offsets, buckets, counts, lexical = featurise(["Say yes, yes.", ""])
    >>> round(float(np.expm1(lexical[0, COUNTS.index("words")])))
    3
    >>> int(offsets[2] - offsets[1])  # nothing in an empty text
    0
    """
    lexical = np.zeros((len(texts), len(COUNTS)))
    pieces = []
    for text in texts:
        raw = text.encode("utf-8", "replace")
        half = MOST_BYTES // 2
        pieces.append(raw if len(raw) <= MOST_BYTES else raw[:half] + b" " + raw[-half:])
    starts = np.concatenate([[0], np.cumsum([len(p) for p in pieces], dtype=np.int64)]).astype(np.int64)
    joined = np.frombuffer(b"".join(pieces), dtype=np.uint8)
    room = int(len(joined) * (_LONGEST + 1) + 4 * len(texts) + 16)
    offsets, buckets, counts = _count(joined, starts, room, lexical)
    # The whole length is known also where the middle is not read.
    lexical[:, 0] = [len(t.encode("utf-8", "replace")) for t in texts]
    return offsets, buckets, counts, np.log1p(lexical)


@njit(**BORROWED)
def _put(
    hashed: np.uint32,
    base: int,
    table: NDArray[np.float32],
    touched: NDArray[np.int32],
    used: int,
) -> int:
    hashed = np.uint32((hashed ^ (hashed >> np.uint32(15))) * np.uint32(2246822519))
    bucket = base + int((hashed >> np.uint32(7)) & np.uint32(BUCKETS // 2 - 1))
    if table[bucket] == 0.0:
        touched[used] = bucket
        used += 1
    table[bucket] += 1.0
    return used


@njit(**BORROWED, forceinline=True)
def _character(lexical: NDArray[np.float64], i: int, c: int, digit: bool, upper: bool, number: bool) -> None:
    """Count one character of text i; `number` says whether the one before was a digit."""
    if c == 10:
        lexical[i, 3] += 1
    if lexical[i, 3] == 0:
        lexical[i, 15] += 1
    lexical[i, 4] += c == 63
    lexical[i, 5] += c == 44
    lexical[i, 6] += c == 46
    lexical[i, 7] += digit
    lexical[i, 8] += digit and not number
    lexical[i, 9] += upper
    lexical[i, 10] += c in (40, 41, 91, 93, 123, 125)
    lexical[i, 11] += c in (42, 43, 45, 47, 60, 61, 62)
    lexical[i, 12] += c == 34 or c == 39
    lexical[i, 13] += c == 58
    lexical[i, 14] += c >= 128


@njit(**BORROWED)
def _grams(
    padded: NDArray[np.uint32], n: int, table: NDArray[np.float32], touched: NDArray[np.int32], used: int
) -> int:
    """Count the character n-grams of a word of n characters with a space at both ends."""
    seed, prime = np.uint32(2166136261), np.uint32(16777619)
    for s in range(n + 1):
        gram = seed
        for k in range(s, min(s + _LONGEST, n + 2)):
            gram = np.uint32((gram ^ padded[k]) * prime)
            if k - s + 1 >= _SHORTEST:
                used = _put(gram, BUCKETS // 2, table, touched, used)
    return used


@njit(nogil=True, cache=True)
def _count(
    text: NDArray[np.uint8], starts: NDArray[np.int64], room: int, lexical: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """FNV-1a over words, word pairs, and the character n-grams of each word with a space at both ends."""
    seed, prime = np.uint32(2166136261), np.uint32(16777619)
    space = np.uint32(32)
    table = np.zeros(BUCKETS, dtype=np.float32)
    touched = np.empty(room, dtype=np.int32)
    counts = np.empty(room, dtype=np.float32)
    offsets = np.zeros(len(starts), dtype=np.int64)
    used = 0
    padded = np.empty(66, dtype=np.uint32)
    for i in range(len(starts) - 1):
        first = used
        length, before = 0, seed
        begun = False
        number = False
        for at in range(starts[i], starts[i + 1] + 1):
            c = int(text[at]) if at < starts[i + 1] else 32
            upper = 65 <= c <= 90
            digit = 48 <= c <= 57
            letter = upper or 97 <= c <= 122 or digit or c == 95 or c >= 128
            if at < starts[i + 1]:
                _character(lexical, i, c, digit, upper, number)
            number = digit
            # Signs stand as words of their own: they tell code and formats.
            alone = not letter and c > 32
            if letter and length < 64:
                if length == 0:
                    padded[0] = space
                length += 1
                padded[length] = np.uint32(c + 32 if upper else c)
            if (not letter and length > 0) or alone:
                for part in range(2):
                    if part == 0:
                        if length == 0:
                            continue
                        n = length
                    else:
                        if not alone:
                            continue
                        padded[0] = space
                        padded[1] = np.uint32(c)
                        n = 1
                    padded[n + 1] = space
                    word = seed
                    for k in range(1, n + 1):
                        word = np.uint32((word ^ padded[k]) * prime)
                    known = used
                    used = _put(word, 0, table, touched, used)
                    if part == 0:
                        lexical[i, 1] += 1
                        lexical[i, 2] += used > known
                    if begun:
                        pair = np.uint32(np.uint32(before * np.uint32(31)) ^ np.uint32(word * prime))
                        used = _put(pair, 0, table, touched, used)
                    before, begun = word, True
                    used = _grams(padded, n, table, touched, used)
                length = 0
        for k in range(first, used):
            counts[k] = table[touched[k]]
            table[touched[k]] = 0.0
        offsets[i + 1] = used
    return offsets, touched[:used].copy(), counts[:used].copy()
