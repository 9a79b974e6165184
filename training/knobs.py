"""A frozen dataclass is a verb's block of knobs; this turns one into a command line.

Every field becomes `--its-name`, a field of a nested dataclass `--outer-inner`; a comment behind a field in the
source is its help. With presets, `--preset NAME` chooses what the other flags change.
"""

import argparse
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

Knobs = TypeVar("Knobs")


def parse(
    default: Knobs,
    argv: Sequence[str] | None,
    prog: str,
    about: str,
    presets: Mapping[str, Knobs] | None = None,
) -> Knobs:
    """The knobs that argv asks for: `default`, or the preset it names, with the flags it gives."""
    chooser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False)
    if presets:
        chooser.add_argument("--preset", choices=sorted(presets), help="where the defaults below come from")
    chosen, rest = chooser.parse_known_args(argv)
    base = presets[chosen.preset] if presets and chosen.preset else default
    parser = argparse.ArgumentParser(
        prog=prog,
        description=about,
        parents=[chooser],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_flags(parser, base)
    given = vars(parser.parse_args(rest))
    try:
        return with_flags(base, given, "")
    except ValueError as error:  # values that the dataclass refuses
        parser.error(str(error))


def add_flags(parser: argparse.ArgumentParser, knobs: Any, prefix: str = "") -> None:
    types, notes = get_type_hints(type(knobs)), comments(type(knobs))
    for field in fields(knobs):
        value, flag = getattr(knobs, field.name), f"--{prefix}{field.name}".replace("_", "-")
        kind, note = types[field.name], notes.get(field.name) or " "
        if is_dataclass(value):
            add_flags(parser, value, f"{prefix}{field.name}-")
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value, help=note)
        elif get_origin(kind) is Literal:
            parser.add_argument(flag, choices=get_args(kind), default=value, help=note)
        elif get_origin(kind) is tuple:
            item, *others = get_args(kind)
            count: int | str = "+" if others == [Ellipsis] else 1 + len(others)
            parser.add_argument(flag, type=item, nargs=count, default=value, help=note)
        else:
            kind = next((k for k in get_args(kind) if k is not type(None)), kind)  # Optional[float] -> float
            parser.add_argument(flag, type=kind, default=value, help=note)


def with_flags(knobs: Knobs, given: Mapping[str, Any], prefix: str) -> Knobs:
    changes: dict[str, Any] = {}
    for field in fields(knobs):  # type: ignore[arg-type]
        value = getattr(knobs, field.name)
        if is_dataclass(value):
            changes[field.name] = with_flags(value, given, f"{prefix}{field.name}_")
        else:
            flag = given[f"{prefix}{field.name}".replace("-", "_")]
            changes[field.name] = tuple(flag) if isinstance(flag, list) else flag
    return replace(knobs, **changes)  # type: ignore[type-var]


def comments(kind: type) -> dict[str, str]:
    """Field name -> the comment behind it in the class's source."""
    lines = inspect.getsource(kind).splitlines()
    found = (re.match(r"\s+(\w+):[^#]*#\s*(.+)", line) for line in lines)
    return {match[1]: match[2].replace("%", "%%") for match in found if match}


def from_json(default: Knobs, saved: Mapping[str, Any]) -> Knobs:
    """The inverse of `dataclasses.asdict` after a trip through JSON (tuples come back as lists)."""
    changes = {}
    for field in fields(default):  # type: ignore[arg-type]
        value, now = saved[field.name], getattr(default, field.name)
        changes[field.name] = (
            from_json(now, value) if is_dataclass(now) else tuple(value) if isinstance(value, list) else value
        )
    return replace(default, **changes)  # type: ignore[type-var]


def typed(default: Knobs, argv: Sequence[str] | None) -> set[str]:
    """The paths (view.size) of the knobs that a command line `parse` has accepted gives a value to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser, default)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_known_args(argv)[0])
    return {path for path, _ in flat(asdict(default)) if path.replace(".", "_") in given}  # type: ignore[call-overload]


def flat(saved: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every knob in what `asdict` gave, those of nested dataclasses by their path: view.size."""
    for key, value in saved.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
