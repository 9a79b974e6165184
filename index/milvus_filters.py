"""What is said in Milvus's language: a filter, and rows by the values of a field. Text alone, no connection."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from index.filters import BOUNDS, LABEL, Filter, Scalar, Within

SLICE_ROWS = 500  # a message
LISTED_BYTES = 64 << 10  # of values in one expression: Milvus's parser takes 13 µs a character outside ASCII
ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
Item = TypeVar("Item")


def expression(where: Filter | None, lite: bool) -> str:
    """The filter as far as the engine speaks the language; empty where there is none. `lite`: for Milvus Lite."""
    parts = []
    for condition in where.conditions if where is not None else ():
        field = LABEL if condition.field == LABEL else f"metadata[{quoted(condition.field)}]"
        if isinstance(condition, Within):
            parts.append(
                " and ".join(f"{field} {BOUNDS[name]} {_literal(value)}" for name, value in condition.bounds)
            )
        elif lite and condition.field != LABEL:  # it lists no values of JSON
            parts.append(" or ".join(f"{field} == {_literal(value)}" for value in condition.values))
        else:  # a server fails on some hundred `or`, and on a list of several types
            kinds: dict[type, list[str]] = {}
            for value in condition.values:
                kinds.setdefault(type(value), []).append(_literal(value))
            parts.append(" or ".join(f"{field} in [{', '.join(values)}]" for values in kinds.values()))
    return " and ".join(f"({part})" for part in parts)


def among(field: str, values: Sequence[str]) -> Iterator[str]:
    """Expressions for the rows whose field is one of `values`: as few as the length of one allows."""
    for some in slices(list(map(quoted, values)), [len(value.encode()) for value in values], LISTED_BYTES):
        yield f"{field} in [{', '.join(some)}]"


def quoted(text: str) -> str:
    """A string of Milvus's language: what must be escaped and no more, since Lite knows few escapes."""
    return f'"{text.translate(ESCAPES)}"'


def slices(items: Sequence[Item], sizes: Sequence[int], limit: int) -> Iterator[list[Item]]:
    """At most SLICE_ROWS and `limit` bytes at a time; one that is larger goes alone."""
    some: list[Item] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if some and (len(some) == SLICE_ROWS or total + size > limit):
            yield some
            some, total = [], 0
        some.append(item)
        total += size
    if some:
        yield some


def _literal(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(value) if isinstance(value, str) else repr(value)
