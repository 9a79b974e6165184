"""What is measured of one front in one round, and the rows and targets that its rounds become."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from load_tests import overload
from load_tests.encodings import JSON_FLOATS
from load_tests.floor import Floor
from load_tests.overload import Overload
from load_tests.report import Row, Target
from load_tests.wrk import Load


@dataclass(frozen=True)
class OneConnection:
    """A load, and the floor right before it."""

    floor: Floor
    one: Load

    @property
    def to_floor(self) -> float:
        """p50, in that of the floor."""
        return self.one.p50_ms / self.floor.p50_ms


@dataclass(frozen=True)
class Connections:
    """Small photos over more and more connections."""

    floor: Floor  # right before the load, while the front is idle
    floors_per_s: float  # images, of one floor a core at once
    one: Load  # one connection
    with_neighbors: OneConnection
    eight: Load
    thirty_two: Load


@dataclass(frozen=True)
class Camera:
    """A camera's photo, as the server scales it down while it decodes."""

    load: OneConnection
    cosine: float  # of its embedding to that of the photo decoded in full


@dataclass(frozen=True)
class Variant:
    """The front started in another way."""

    load: OneConnection
    eight: Load


@dataclass(frozen=True)
class Visit:
    """Everything that was asked for, once. Only the native front has what follows `connections`."""

    first_start_s: float  # with the gallery copied from its seed
    later_start_s: float
    resident_mb: float  # after the warm-up and the load over `connections`
    peak_mb: float  # in the end
    connections: Connections | None = None
    camera: Camera | None = None
    encodings: Mapping[str, Sequence[Load]] = field(default_factory=dict)  # one connection, in turns with each other
    variants: Mapping[str, Variant] = field(default_factory=dict)
    overload: Overload | None = None


def rows_of(front: str, visits: Sequence[Visit]) -> list[Row]:
    """The report's rows. Ratios are taken within each visit."""

    def row(name: str, unit: str, of: Callable[[Visit], float], **targets: Target) -> Row:
        return Row(f"{front}, {name}", unit, tuple(map(of, visits)), targets.get(front))

    ready = {"native": Target("≤", 1.5), "torchserve": Target("≤", 12.0)}
    return [
        *_connection_rows(front, [each.connections for each in visits if each.connections]),
        *_camera_rows(front, [each.camera for each in visits if each.camera]),
        *_encoding_rows(front, [each.encodings for each in visits if each.encodings]),
        *(
            row
            for name in visits[0].variants
            for row in _variant_rows(f"{front}, {name}", [each.variants[name] for each in visits])
        ),
        *overload.rows_of(front, [each.overload for each in visits if each.overload]),
        row("first start to ready, gallery seeded", "s", lambda v: v.first_start_s, **ready),
        row("later start to ready", "s", lambda v: v.later_start_s, **ready),
        row("memory after load, gallery open", "MB", lambda v: v.resident_mb, native=Target("≤", 350.0)),
        row("memory at its peak", "MB", lambda v: v.peak_mb),
    ]


def _connection_rows(front: str, taken: Sequence[Connections]) -> list[Row]:
    if not taken:
        return []

    def row(name: str, unit: str, of: Callable[[Connections], float], **targets: Target) -> Row:
        return Row(f"{front}, {name}", unit, tuple(map(of, taken)), targets.get(front))

    return [
        row("floor (decode and session run, one thread): p50", "ms", lambda v: v.floor.p50_ms),
        row("floor: throughput", "images/s", lambda v: v.floor.images_per_s),
        row(
            "a floor on each core at once: throughput to the floor's",
            "×",
            lambda v: v.floors_per_s / v.floor.images_per_s,
        ),
        row("1 connection: p50", "ms", lambda v: v.one.p50_ms),
        row(
            "1 connection: p50 to the floor's",
            "×",
            lambda v: v.one.p50_ms / v.floor.p50_ms,
            native=Target("≤", 1.25),
            torchserve=Target("≤", 2.2),
        ),
        row("1 connection: p99", "ms", lambda v: v.one.p99_ms),
        row("1 connection: p99 to its p50", "×", lambda v: v.one.p99_ms / v.one.p50_ms, native=Target("≤", 2.0)),
        row("1 connection, k=5: p50", "ms", lambda v: v.with_neighbors.one.p50_ms),
        row("1 connection, k=5: p50 to the floor's", "×", lambda v: v.with_neighbors.to_floor),
        row("1 connection, k=5: p99", "ms", lambda v: v.with_neighbors.one.p99_ms),
        row("8 connections: throughput", "images/s", lambda v: v.eight.requests_per_s),
        row(
            "8 connections: throughput to the floor's",
            "×",
            lambda v: v.eight.requests_per_s / v.floor.images_per_s,
            native=Target("≥", 1.7),
        ),
        row("8 connections: p99", "ms", lambda v: v.eight.p99_ms),
        row("32 connections: throughput", "images/s", lambda v: v.thirty_two.requests_per_s),
        row(
            "32 connections: throughput to the floor's",
            "×",
            lambda v: v.thirty_two.requests_per_s / v.floor.images_per_s,
            native=Target("≥", 1.7),
            torchserve=Target("≥", 1.1),
        ),
        row("32 connections: p99", "ms", lambda v: v.thirty_two.p99_ms),
    ]


def _camera_rows(front: str, taken: Sequence[Camera]) -> list[Row]:
    if not taken:
        return []
    name, cosines = f"{front}, 12-megapixel photo", tuple(each.cosine for each in taken)
    return [
        *_rows_to_floor(name, [each.load for each in taken], Target("≤", 1.2)),
        Row(f"{name}: cosine of its embedding to the full decode's", "cosine", cosines, Target("≥", 0.99)),
    ]


def _variant_rows(name: str, taken: Sequence[Variant]) -> list[Row]:
    throughput = tuple(each.eight.requests_per_s / each.load.floor.images_per_s for each in taken)
    return [
        *_rows_to_floor(name, [each.load for each in taken]),
        Row(f"{name}, 8 connections: throughput to the floor's", "×", throughput),
    ]


def _rows_to_floor(name: str, taken: Sequence[OneConnection], target: Target | None = None) -> list[Row]:
    ratios = tuple(each.to_floor for each in taken)
    return [
        Row(f"{name}, floor: p50", "ms", tuple(each.floor.p50_ms for each in taken)),
        Row(f"{name}, 1 connection: p50", "ms", tuple(each.one.p50_ms for each in taken)),
        Row(f"{name}, 1 connection: p50 to the floor's", "×", ratios, target),
    ]


def _encoding_rows(front: str, rounds: Sequence[Mapping[str, Sequence[Load]]]) -> list[Row]:
    if not rounds:
        return []
    p50s_ms = [{name: median(load.p50_ms for load in loads) for name, loads in each.items()} for each in rounds]
    rows = []
    for name in p50s_ms[0]:
        row = f"{front}, embedding as {name}, 1 connection: p50"
        rows.append(Row(row, "ms", tuple(each[name] for each in p50s_ms)))
        if name != JSON_FLOATS:
            ratios = tuple(each[name] / each[JSON_FLOATS] for each in p50s_ms)
            rows.append(Row(f"{row} to that as {JSON_FLOATS}", "×", ratios, Target("≤", 1.0)))
    return rows
