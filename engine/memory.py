"""Integers side by side: what the tables of the engine are made of."""

from __future__ import annotations

from typing import Final

from librt.vecs import vec
from mypy_extensions import i64

_31_BITS: Final = 0x7FFFFFFF
_HASH: Final = 0x9E3779B1


def spread(key: i64) -> i64:
    """Where the search for a key begins in a table, before the mask. Never overflows."""
    return ((key ^ key >> 31) & _31_BITS) * _HASH >> 12


def zeros(length: i64, reserved: i64) -> vec[i64]:
    """``length`` zeros, with address space for ``reserved``; where there is not so much of it, with less."""
    content = memoryview(bytes(8 * int(length))).cast("q")
    while True:
        try:
            # From a buffer: a vector made of its capacity alone writes to all of it, and so takes the memory at once.
            return vec[i64](content, capacity=reserved)
        except MemoryError:
            if reserved <= length:
                raise
            reserved = reserved // 2
