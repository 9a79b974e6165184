"""Which rows a search may answer with: equality, sets and ranges over the label and the metadata.

    {"label": "cat"}                                  equality
    {"label": ["cat", "dog"], "indoors": true}        a set; all conditions must hold
    {"year": {"gte": 1990, "lt": 2000}}               a range: gt, gte, lt, lte

`label` is the row's label, any other name a field at the top of its metadata. Types are kept apart: a number matches
numbers, a string strings, true only true. A row without the field does not match.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from index.errors import RowRefused

Scalar = str | int | float | bool
MAX_CONDITIONS = 16
MAX_VALUES = 1000
MAX_NAME = 128
BOUNDS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
LABEL = "label"
HOW_TO = 'write {"label": "cat"}, {"label": ["cat", "dog"]} or {"year": {"gte": 1990, "lt": 2000}}'


@dataclass(frozen=True)
class OneOf:
    """The field has one of these values."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True)
class Within:
    """The field lies within these bounds, all numbers or all strings; strings compare by code point."""

    field: str
    bounds: tuple[tuple[str, int | float | str], ...]  # (one of BOUNDS, value)


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold."""

    conditions: tuple[OneOf | Within, ...]

    def matches(self, label: str | None, metadata: Mapping[str, Any]) -> bool:
        """Whether a row does: for engines that keep types apart less well."""
        return all(
            _matches(condition, label if condition.field == LABEL else metadata.get(condition.field))
            for condition in self.conditions
        )

    @classmethod
    def parse(cls, given: object) -> "Filter | None":
        """The filter that a client wrote as a JSON object; None for none. Raises `RowRefused`."""
        if given is None:
            return None
        if not isinstance(given, Mapping):
            raise RowRefused(f"filter is {_shown(given)}, not a JSON object: {HOW_TO}")
        if len(given) > MAX_CONDITIONS:
            raise RowRefused(f"filter has {len(given)} conditions; the limit is {MAX_CONDITIONS}")
        return cls(tuple(_condition(name, value) for name, value in given.items())) if given else None


def _matches(condition: OneOf | Within, value: object) -> bool:
    if isinstance(condition, OneOf):
        return any(_kind(one) == _kind(value) and one == value for one in condition.values)
    return all(_kind(bound) == _kind(value) and COMPARED[name](value, bound) for name, bound in condition.bounds)


def _kind(value: object) -> type | None:
    """str, bool, or float for any number; None for what is none of them."""
    return next(
        (kind for kind in (str, bool) if isinstance(value, kind)), float if isinstance(value, int | float) else None
    )


def _condition(name: object, value: object) -> OneOf | Within:
    # What an engine's query language would need escaped is refused here, once.
    if (
        not isinstance(name, str)
        or not 0 < len(name) <= MAX_NAME
        or not name.isprintable()
        or set(name) & set("\"'\\")
    ):
        raise RowRefused(
            f"filter field {_shown(name)} must be a name of 1 to {MAX_NAME} printable characters without quotes"
        )
    if isinstance(value, Mapping):
        return _within(name, value)
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not 0 < len(values) <= MAX_VALUES:
        raise RowRefused(f"filter field {name!r} lists {len(values)} values; send 1 to {MAX_VALUES}")
    for one in values:
        _check_scalar(name, one)
        if name == LABEL and not isinstance(one, str):
            raise RowRefused(f"filter field 'label' is {_shown(one)}; labels are strings")
    return OneOf(name, values)


def _within(name: str, bounds: Mapping[Any, Any]) -> Within:
    if not bounds or not set(bounds) <= set(BOUNDS):
        raise RowRefused(
            f"filter field {name!r} has the bounds {_shown(list(bounds))}; there are {', '.join(BOUNDS)}"
        )
    for bound in bounds.values():
        _check_scalar(name, bound)
    kinds = {
        str if isinstance(bound, str) else bool if isinstance(bound, bool) else float for bound in bounds.values()
    }
    if bool in kinds or len(kinds) > 1:
        raise RowRefused(f"filter field {name!r} mixes types in its bounds; send numbers or strings")
    if name == LABEL and kinds == {float}:
        raise RowRefused("filter field 'label' is compared with a number; labels are strings")
    return Within(name, tuple(bounds.items()))


def _check_scalar(name: str, value: object) -> None:
    if not isinstance(value, str | int | float):
        raise RowRefused(f"filter field {name!r} is {_shown(value)}: {HOW_TO}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RowRefused(f"filter field {name!r} is {_shown(value)}, which is not valid Unicode") from error
        if "\0" in value:
            raise RowRefused(f"filter field {name!r} holds a NUL character")
    elif not abs(value) < 2**63:  # NaN is not either
        raise RowRefused(f"filter field {name!r} is no number that is finite and fits 64 bits")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
