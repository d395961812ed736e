"""An item's words, categories and attributes as a vector."""

from __future__ import annotations

import re
import zlib

import numpy as np
from numpy.typing import NDArray

from schemas.records import Item

__all__ = ["CATEGORIES", "TEXT_DIMENSIONS", "text_vector"]

TEXT_DIMENSIONS = 128
CATEGORIES = 8
"Number of an item's categories that are used."
MAX_TOKENS = 400
WORD = re.compile(r"\w{3,}")
ATTRIBUTES = 32
"Number of an item's attributes that enter its content."
LONGEST_KIND = 64
"Maximum length of an attribute value that names a kind, such as a brand or colour. Numbers and longer texts do not."


def is_kind(value: str) -> bool:
    """Return whether an attribute value names a kind of item, instead of measuring or describing an item."""
    return len(value) <= LONGEST_KIND and any(letter.isalpha() for letter in value)


def text_vector(item: Item) -> NDArray[np.float32]:
    """Hash title, text, categories and attributes by signed feature hashing (Weinberger et al. 2009).

    Returns float32 `(TEXT_DIMENSIONS,)`, of length 1, or 0 for an item without words. It needs no learned weights, so that a
    new item is found by its content as soon as it arrives.
    """
    tokens = [(f"c:{name.lower()}", 3.0) for name in item.categories[:CATEGORIES]]
    tokens += [(word, 2.0) for word in WORD.findall(item.title.lower())[:MAX_TOKENS]]
    tokens += [(word, 1.0) for word in WORD.findall(item.text.lower())[:MAX_TOKENS]]
    said = [(name, value.lower()) for name, value in sorted(item.attributes.items())[:ATTRIBUTES] if is_kind(value)]
    tokens += [(f"a:{name}={value}", 1.0) for name, value in said]
    sums = [0.0] * TEXT_DIMENSIONS  # a list, because single elements of an array are slow; the sums of whole numbers are exact
    for token, weight in tokens:
        code = zlib.crc32(token.encode())
        sums[code % TEXT_DIMENSIONS] += weight if code >> 31 else -weight
    vector = np.asarray(sums, np.float32)
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector
