"""What a visit becomes in the report: ratios within it, a row for each quantity, and the targets."""

from handlers.native import Settings as ServerSettings
from load_tests.floor import Floor
from load_tests.overload import Borne, Overload, Under
from load_tests.visit import Camera, Connections, OneConnection, Variant, Visit, rows_of
from load_tests.wrk import Load

ENCODED = "native, embedding as {}, 1 connection: p50 to that as JSON floats"
CROWD = "native, {}: {}"
CROWDS = (
    *("640 connections retrying at once", "640 connections honouring Retry-After"),
    "1200 connections at 10 × the rate",
)
TARGETS = {
    "native, 1 connection: p50 to the floor's": "≤ 1.25",
    "native, 1 connection: p99 to its p50": "≤ 2",
    "native, 8 connections: throughput to the floor's": "≥ 1.7",
    "native, 32 connections: throughput to the floor's": "≥ 1.7",
    "native, 12-megapixel photo, 1 connection: p50 to the floor's": "≤ 1.2",
    "native, 12-megapixel photo: cosine of its embedding to the full decode's": "≥ 0.99",
    **{ENCODED.format(name): "≤ 1" for name in ("float32 bytes", ".npy", "base64")},
    **{CROWD.format(manner, "goodput to the most"): "≥ 0.8" for manner in CROWDS},
    **{CROWD.format(manner, "p99 of the accepted"): f"≤ {ServerSettings.max_wait_ms}" for manner in CROWDS},
    **{CROWD.format(manner, "failed"): "≤ 0" for manner in CROWDS},
    "native, first start to ready, gallery seeded": "≤ 1.5",
    "native, later start to ready": "≤ 1.5",
    "native, memory after load, gallery open": "≤ 350",
    "torchserve, 1 connection: p50 to the floor's": "≤ 2.2",
    "torchserve, 32 connections: throughput to the floor's": "≥ 1.1",
    "torchserve, first start to ready, gallery seeded": "≤ 12",
    "torchserve, later start to ready": "≤ 12",
}


def a_visit(floor_ms: float = 2.0, one_ms: float = 3.0) -> Visit:
    """A visit in which everything has a value of its own."""
    return Visit(
        first_start_s=1.5,
        later_start_s=0.5,
        resident_mb=240.0,
        peak_mb=260.0,
        connections=Connections(
            floor=Floor(floor_ms, 1e3 / floor_ms),
            floors_per_s=1.8e3 / floor_ms,
            one=Load(one_ms, 7.0, 300.0),
            with_neighbors=OneConnection(Floor(4.0, 250.0), Load(5.0, 8.0, 200.0)),
            eight=Load(11.0, 30.0, 750.0),
            thirty_two=Load(40.0, 90.0, 800.0),
        ),
        camera=Camera(OneConnection(Floor(50.0, 20.0), Load(60.0, 70.0, 16.0)), cosine=0.98),
        encodings={
            "JSON floats": [Load(4.0, 9.0, 250.0), Load(9.0, 9.0, 90.0), Load(2.0, 9.0, 400.0)],
            "base64": [Load(3.0, 9.0, 250.0)],
        },
        variants={
            "idle cores used, the default": Variant(
                OneConnection(Floor(2.5, 400.0), Load(2.0, 3.0, 500.0)), eight=Load(10.0, 20.0, 600.0)
            )
        },
        overload=Overload({CROWDS[1]: Under(Borne(600.0, 4e3, 99.0, 249.0, 1.0), most=800.0)}, 250.0),
    )


def test_a_ratio_is_taken_within_each_visit_and_then_its_median() -> None:
    # The machine was slow at the second visit. The ratio of the medians would be 4.5 / 2 = 2.25.
    visits = [a_visit(2.0, 3.0), a_visit(10.0, 16.0), a_visit(2.0, 4.5)]
    ratio = {row.name: row for row in rows_of("native", visits)}["native, 1 connection: p50 to the floor's"]
    assert ratio.rounds == (1.5, 1.6, 2.25)
    assert ratio.median == 1.6 and ratio.verdict == "missed"


def test_every_row_shows_its_own_quantity() -> None:
    values = {row.name: row.median for row in rows_of("native", [a_visit()])}
    assert values == {
        "native, floor (decode and session run, one thread): p50": 2.0,
        "native, floor: throughput": 500.0,
        "native, a floor on each core at once: throughput to the floor's": 1.8,
        "native, 1 connection: p50": 3.0,
        "native, 1 connection: p50 to the floor's": 1.5,
        "native, 1 connection: p99": 7.0,
        "native, 1 connection: p99 to its p50": 7 / 3,
        "native, 1 connection, k=5: p50": 5.0,
        "native, 1 connection, k=5: p50 to the floor's": 1.25,
        "native, 1 connection, k=5: p99": 8.0,
        "native, 8 connections: throughput": 750.0,
        "native, 8 connections: throughput to the floor's": 1.5,
        "native, 8 connections: p99": 30.0,
        "native, 32 connections: throughput": 800.0,
        "native, 32 connections: throughput to the floor's": 1.6,
        "native, 32 connections: p99": 90.0,
        "native, 12-megapixel photo, floor: p50": 50.0,
        "native, 12-megapixel photo, 1 connection: p50": 60.0,
        "native, 12-megapixel photo, 1 connection: p50 to the floor's": 1.2,
        "native, 12-megapixel photo: cosine of its embedding to the full decode's": 0.98,
        "native, embedding as JSON floats, 1 connection: p50": 4.0,
        "native, embedding as base64, 1 connection: p50": 3.0,
        ENCODED.format("base64"): 0.75,
        "native, idle cores used, the default, floor: p50": 2.5,
        "native, idle cores used, the default, 1 connection: p50": 2.0,
        "native, idle cores used, the default, 1 connection: p50 to the floor's": 0.8,
        "native, idle cores used, the default, 8 connections: throughput to the floor's": 1.5,
        CROWD.format(CROWDS[1], "the most that it can answer"): 800.0,
        CROWD.format(CROWDS[1], "asked, to the most"): 5.75125,
        CROWD.format(CROWDS[1], "goodput to the most"): 0.75,
        CROWD.format(CROWDS[1], "p50 of the accepted"): 99.0,
        CROWD.format(CROWDS[1], "p99 of the accepted"): 249.0,
        CROWD.format(CROWDS[1], "refused"): 4000.0,
        CROWD.format(CROWDS[1], "failed"): 1.0,
        "native, first start to ready, gallery seeded": 1.5,
        "native, later start to ready": 0.5,
        "native, memory after load, gallery open": 240.0,
        "native, memory at its peak": 260.0,
    }


def test_parts_that_were_not_measured_have_no_rows() -> None:
    whole = a_visit()
    rows = rows_of("torchserve", [Visit(1.0, 1.0, 1.0, 1.0, whole.connections)])
    assert {row.name.partition(",")[0] for row in rows} == {"torchserve"}
    assert {row.name for row in rows if row.target} == {name for name in TARGETS if name.startswith("torchserve")}
    rows = rows_of("native", [Visit(1.0, 1.0, 1.0, 1.0, camera=whole.camera)])
    assert [row.name for row in rows] == [
        "native, 12-megapixel photo, floor: p50",
        "native, 12-megapixel photo, 1 connection: p50",
        "native, 12-megapixel photo, 1 connection: p50 to the floor's",
        "native, 12-megapixel photo: cosine of its embedding to the full decode's",
        "native, first start to ready, gallery seeded",
        "native, later start to ready",
        "native, memory after load, gallery open",
        "native, memory at its peak",
    ]
