"""What is measured of one front in one round, and the rows and targets that its rounds become."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from load_tests.floor import Floor
from load_tests.report import Row, Target
from load_tests.server import Memory
from load_tests.wrk import Load


@dataclass(frozen=True)
class Camera:
    """A large photo, once."""

    floor: Floor
    one: Load  # one connection


@dataclass(frozen=True)
class Visit:
    """Everything, once."""

    floor: Floor  # right before the load, while the front is idle
    one: Load  # one connection
    one_with_neighbors: Load
    eight: Load
    thirty_two: Load
    camera: Camera | None  # None where it is not measured
    first_start_s: float  # with the gallery copied from its seed
    later_start_s: float
    memory: Memory  # after the load


def rows_of(front: str, visits: Sequence[Visit]) -> list[Row]:
    """The report's rows. Ratios are taken within each visit."""

    def row(name: str, unit: str, of: Callable[[Visit], float], **targets: Target) -> Row:
        return Row(f"{front}, {name}", unit, tuple(map(of, visits)), targets.get(front))

    return [
        row("floor (decode and session run, one thread): p50", "ms", lambda v: v.floor.p50_ms),
        row("floor: throughput", "images/s", lambda v: v.floor.images_per_s),
        row("1 connection: p50", "ms", lambda v: v.one.p50_ms),
        row(
            "1 connection: p50 to the floor's",
            "×",
            lambda v: v.one.p50_ms / v.floor.p50_ms,
            native=Target("≤", 1.7),
            torchserve=Target("≤", 2.2),
        ),
        row("1 connection: p99", "ms", lambda v: v.one.p99_ms),
        row("1 connection, k=5: p50", "ms", lambda v: v.one_with_neighbors.p50_ms),
        row("1 connection, k=5: p50 to the floor's", "×", lambda v: v.one_with_neighbors.p50_ms / v.floor.p50_ms),
        row("1 connection, k=5: p99", "ms", lambda v: v.one_with_neighbors.p99_ms),
        row("8 connections: throughput", "images/s", lambda v: v.eight.requests_per_s),
        row(
            "8 connections: throughput to the floor's",
            "×",
            lambda v: v.eight.requests_per_s / v.floor.images_per_s,
            native=Target("≥", 1.4),
        ),
        row("8 connections: p99", "ms", lambda v: v.eight.p99_ms),
        row("32 connections: throughput", "images/s", lambda v: v.thirty_two.requests_per_s),
        row(
            "32 connections: throughput to the floor's",
            "×",
            lambda v: v.thirty_two.requests_per_s / v.floor.images_per_s,
            torchserve=Target("≥", 1.1),
        ),
        row("32 connections: p99", "ms", lambda v: v.thirty_two.p99_ms),
        *_camera_rows(front, [visit.camera for visit in visits if visit.camera]),
        row(
            "first start to ready, gallery seeded",
            "s",
            lambda v: v.first_start_s,
            native=Target("≤", 3.0),
            torchserve=Target("≤", 12.0),
        ),
        row(
            "later start to ready",
            "s",
            lambda v: v.later_start_s,
            native=Target("≤", 3.0),
            torchserve=Target("≤", 12.0),
        ),
        row("memory after load, gallery open", "MB", lambda v: v.memory.resident_mb, native=Target("≤", 350.0)),
        row("memory at its peak", "MB", lambda v: v.memory.peak_mb),
    ]


def _camera_rows(front: str, cameras: Sequence[Camera]) -> list[Row]:
    if not cameras:
        return []
    name = f"{front}, 12-megapixel photo"
    ratios = tuple(camera.one.p50_ms / camera.floor.p50_ms for camera in cameras)
    return [
        Row(f"{name}, floor: p50", "ms", tuple(camera.floor.p50_ms for camera in cameras)),
        Row(f"{name}, 1 connection: p50", "ms", tuple(camera.one.p50_ms for camera in cameras)),
        Row(f"{name}, 1 connection: p50 to the floor's", "×", ratios, Target("≤", 1.5)),
    ]
