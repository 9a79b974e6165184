"""Ids, labels and metadata of many rows, packed: 30 bytes a row where Python's objects take 300."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from index.flat import Entry


@dataclass(frozen=True)
class Documents:
    """One entry a position."""

    text: bytes  # of each entry id, NUL, label, NUL, metadata, in UTF-8; ids and labels hold no NUL
    bounds: np.ndarray  # (N + 1,) int64: entry i is text[bounds[i]:bounds[i + 1]]

    @classmethod
    def pack(cls, entries: Iterable[Entry]) -> Self:
        """Pack entries in their order."""
        parts = [f"{entry.id}\0{entry.label}\0{entry.metadata}".encode() for entry in entries]
        return cls(b"".join(parts), np.cumsum([0, *map(len, parts)], dtype=np.int64))

    @classmethod
    def join(cls, parts: Sequence["Documents"]) -> Self:
        """One after the other."""
        shifts = np.cumsum([0, *(len(part.text) for part in parts)])
        bounds = [part.bounds[:-1] + shift for part, shift in zip(parts, shifts, strict=False)]
        return cls(b"".join(part.text for part in parts), np.concatenate([*bounds, shifts[-1:]]))

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def at(self, positions: np.ndarray) -> list[Entry]:
        """The entries at these positions."""
        spans = zip(self.bounds[positions].tolist(), self.bounds[positions + 1].tolist(), strict=True)
        return [Entry(*self.text[start:end].decode().split("\0", 2)) for start, end in spans]
