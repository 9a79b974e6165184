"""A filter in SQL, over the columns of `rows`."""

import json
from typing import Any

from index.filters import BOUNDS, LABEL, Filter, OneOf, Scalar, Within

NUMBERS = "('integer', 'real')"


def where_clause(where: Filter) -> tuple[str, list[Any]]:
    """The condition and the values of its question marks."""
    clauses: list[str] = []
    values: list[Any] = []
    for condition in where.conditions:
        clause, bound = _one_of(condition) if isinstance(condition, OneOf) else _within(condition)
        clauses.append(f"({clause})")
        values += bound
    return " AND ".join(clauses), values


def _one_of(condition: OneOf) -> tuple[str, list[Any]]:
    strings = [value for value in condition.values if isinstance(value, str)]
    if condition.field == LABEL:
        return f"label IN ({_marks(strings)})", list(strings)
    path = _path(condition.field)
    numbers: list[Scalar] = [value for value in condition.values if not isinstance(value, bool | str)]
    clauses: list[str] = []
    values: list[Any] = []
    for kinds, some in (("('text')", strings), (NUMBERS, numbers)):
        if some:
            clauses.append(f"json_type(metadata, ?) IN {kinds} AND json_extract(metadata, ?) IN ({_marks(some)})")
            values += [path, path, *some]
    for value in (True, False):
        if any(one is value for one in condition.values):
            clauses.append(f"json_type(metadata, ?) = '{str(value).lower()}'")
            values.append(path)
    return " OR ".join(clauses), values


def _within(condition: Within) -> tuple[str, list[Any]]:
    bounds = [value for _, value in condition.bounds]
    if condition.field == LABEL:
        return " AND ".join(f"label {BOUNDS[name]} ?" for name, _ in condition.bounds), list(bounds)
    path = _path(condition.field)
    kinds = "('text')" if isinstance(bounds[0], str) else NUMBERS
    clauses = [f"json_type(metadata, ?) IN {kinds}"]
    values: list[Any] = [path]
    for name, bound in condition.bounds:
        clauses.append(f"json_extract(metadata, ?) {BOUNDS[name]} ?")
        values += [path, bound]
    return " AND ".join(clauses), values


def _path(field: str) -> str:
    """With the escapes that metadata is stored with: SQLite before 3.45 compares them as they stand."""
    return f"$.{json.dumps(field)}"


def _marks(values: list[Any]) -> str:
    return ",".join("?" * len(values))
