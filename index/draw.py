"""A fair draw of rows that is the same each time: those whose digests are the smallest.

A row that comes or goes changes a draw by one row at most, and the beginning of a draw is a smaller draw.
"""

from collections.abc import Iterable
from hashlib import blake2b
from heapq import nsmallest

import numpy as np


def drawn_keys(keys: np.ndarray, most: int) -> np.ndarray:
    """(N,) int64 to at most `most` of them, in the order of their digests."""
    digests = _mixed(keys)
    nearest = np.argpartition(digests, most - 1)[:most] if most < len(keys) else np.arange(len(keys))
    return keys[nearest[np.argsort(digests[nearest])]]


def drawn_ids(ids: Iterable[str], most: int) -> list[str]:
    """At most `most` of the ids, in the order of their digests; remembers no more than that."""
    return nsmallest(most, ids, key=lambda id: blake2b(id.encode(), digest_size=8).digest())


def _mixed(keys: np.ndarray) -> np.ndarray:
    """(N,) uint64, splitmix64 (Steele, Lea and Flood, 2014): one to one, every bit depending on every other."""
    mixed = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
