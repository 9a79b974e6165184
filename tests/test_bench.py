"""The benchmark's arithmetic, what it reads from wrk, what it writes, and that it leaves nothing behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.session import Encoder
from handlers.native import Settings as ServerSettings
from load_tests import bench, encodings, floor, fronts, machine, photos, report, server, wrk
from load_tests.encodings import ENCODINGS
from load_tests.floor import Floor
from load_tests.fronts import Model, variants
from load_tests.overload import Borne, Overload, Under
from load_tests.pictures import encode, scene
from load_tests.report import Row, Target
from load_tests.visit import Camera, Connections, OneConnection, Variant, Visit, rows_of
from load_tests.wrk import Load
from tests.server import Server
from tests.serving import JPEG, PATH
from tests.tiny_encoder import write_tiny_encoder

ROOT = Path(__file__).parents[1]
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


def summary(requests: int = 300, refused: int = 0, broken: int = 0) -> str:
    """What wrk prints with our script, shortened."""
    return (
        "Running 2s test @ http://127.0.0.1:8080/predictions/encoder\n  1 threads and 1 connections\n"
        "  Latency Distribution\n     50%    1.23ms\n     99%    4.57ms\nRequests/sec:    150.00\n\n"
        f'summary {{"requests": {requests}, "duration_us": 2000000, "p50_us": 1234, "p99_us": 4567, '
        f'"refused": {refused}, "broken": {broken}}}\n'
    )


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


@pytest.fixture(scope="module")
def wrk_there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """wrk itself where it is installed; otherwise something that prints what it would."""
    with pytest.MonkeyPatch.context() as patch:
        if shutil.which("wrk") is None:
            stand_in = tmp_path_factory.mktemp("bin") / "wrk"
            stand_in.write_text(f"#!/bin/sh\ncat <<'END'\n{summary()}END\n")
            stand_in.chmod(0o755)
            patch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def native_server(server: Server) -> Server:
    """The one that all tests share, by another name: `server` is a module here."""
    return server


@pytest.fixture(scope="module")
def result(wrk_there: None, seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a whole short run of the fronts that a model without weights has; a smaller photo stands in."""
    folder = tmp_path_factory.mktemp("bench")
    photo = photos.Photo(encode(scene(800, 600), quality=92), "a small stand-in")
    quick = ["--rounds", "1", "--seconds", "1", "--warm-up", "1", "--fronts", "native", "torchserve"]
    arguments = [*quick, "--model-store", str(seeded_store), "--environment", sys.prefix]
    written = ["--out", str(folder / "bench.json"), "--markdown", str(folder / "bench.md")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "camera_photo", lambda: photo)
        patch.setattr(bench.overload, "WARM_UP_SECONDS", 0.1)
        assert bench.main([*arguments, *written]) == 0
    return folder


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


def test_variants_are_the_default_and_what_an_environment_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Path("store"), "encoder", Path(sys.prefix))
    versions = {"onnxruntime": "1"}
    monkeypatch.setattr(machine, "versions", lambda python: versions)
    default = {"idle cores used, the default": (model, ())}
    absent = "on OpenVINO is left out: openvino is not installed; run make setup-openvino"
    assert variants(model) == (default, [absent])
    versions["openvino"] = "1"
    openvino = {"on OpenVINO": (model, ("--require-provider", "OpenVINO", "--idle-threads", "1"))}
    assert variants(model) == (default | openvino, [])


def test_openvino_is_run_from_this_environment_where_the_serving_one_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serving = tmp_path / "bin/python"
    serving.parent.mkdir()
    serving.touch()
    monkeypatch.setattr(machine, "versions", lambda python: {} if python == serving else {"openvino": "1"})
    found, _ = variants(Model(Path("store"), "encoder", tmp_path))
    assert found["on OpenVINO"].model.environment == Path(sys.prefix)


def test_every_option_that_fronts_give_is_one_of_the_servers() -> None:
    settings = ServerSettings.from_arguments([*fronts.ONE_THREAD, "--require-provider", fronts.OPENVINO_PROVIDER])
    assert (settings.idle_threads, settings.require_provider) == (1, "OpenVINO")


def test_an_encoding_that_is_not_what_was_asked_for_is_no_result(
    native_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = server.Server(native_server.port, native_server.process, 0.0)
    encodings.check(served, PATH, JPEG)
    monkeypatch.setitem(ENCODINGS, "base64", replace(ENCODINGS["base64"], query=""))
    with pytest.raises(server.ServerError, match="asked for base64, the server sent what is none"):
        encodings.check(served, PATH, JPEG)
    monkeypatch.setitem(ENCODINGS, "base64", replace(ENCODINGS["JSON floats"], content_type="text/plain"))
    with pytest.raises(server.ServerError, match="base64, which is text/plain, the server sent application/json"):
        encodings.check(served, PATH, JPEG)
    monkeypatch.setitem(ENCODINGS, "base64", replace(ENCODINGS["JSON floats"], read=lambda body: np.zeros(3)))
    with pytest.raises(server.ServerError, match="the embedding as base64 is not the one as JSON floats"):
        encodings.check(served, PATH, JPEG)


def test_memory_is_that_of_a_process_and_all_below_it() -> None:
    hold = "import subprocess, sys; held = b'.' * {}; print(flush=True); {}"
    below = hold.format(200_000_000, "sys.stdin.read()")
    above = hold.format(100_000_000, f"subprocess.run([sys.executable, '-c', {below!r}])")
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", above], **piped) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        process.stdout.readline()  # both hold theirs
        memory = server.Server(0, process, 0.0).memory()
        process.stdin.close()
    assert 300 < memory.resident_mb <= memory.peak_mb < 400


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (Target("≤", 1.7), 1.7, "met"),
        (Target("≤", 1.7), 1.701, "missed"),
        (Target("≥", 1.4), 1.4, "met"),
        (Target("≥", 1.4), 1.399, "missed"),
        (None, 1.0, ""),
    ],
)
def test_a_target_is_met_up_to_its_limit(target: Target | None, value: float, verdict: str) -> None:
    assert Row("some", "×", (value,), target).verdict == verdict


def test_the_table_is_aligned_and_the_markdown_has_the_same_cells() -> None:
    rows = [Row("short", "ms", (1.0, 3.0, 2.0)), Row("a longer one", "MB", (1234.0,), Target("≤", 350))]
    assert report.table(rows) == (
        "                median  lowest to highest    target\n"
        "short          2.00 ms       1.00 to 3.00\n"
        "a longer one  1,234 MB     1,234 to 1,234  ≤ 350 MB  missed"
    )
    assert report.markdown(rows, "Somewhere.") == (
        "|  | median | lowest to highest | target |  |\n"
        "| --- | ---: | ---: | ---: | --- |\n"
        "| short | 2.00 ms | 1.00 to 3.00 |  |  |\n"
        "| a longer one | 1,234 MB | 1,234 to 1,234 | ≤ 350 MB | missed |\n"
        "\n"
        "Somewhere.\n"
    )


def test_the_summary_of_wrk_is_read_in_exact_numbers() -> None:
    assert wrk.parse(summary()) == Load(p50_ms=1.234, p99_ms=4.567, requests_per_s=150.0)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (summary(refused=3), "300 requests were answered, 3 of them with an error status"),
        (summary(broken=2), "2 connections failed or timed out"),
        (summary(requests=0), "0 requests were answered"),
        ("unable to connect to 127.0.0.1:1 Connection refused\n", "without a summary; it printed: unable to connect"),
    ],
)
def test_load_with_errors_is_no_result(output: str, words: str) -> None:
    with pytest.raises(wrk.LoadError, match=words):
        wrk.parse(output)


def test_the_floor_is_the_median_latency_and_the_images_of_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_encoder(tmp_path)
    ticks = iter([100.0, 100.010, 100.030, 100.040])  # 10, 20 and 10 ms
    monkeypatch.setattr(floor, "perf_counter", lambda: next(ticks))
    measured = floor.measure(Encoder.load(tmp_path), JPEG, seconds=0.035)
    assert measured.p50_ms == pytest.approx(10) and measured.images_per_s == pytest.approx(75)


def test_a_run_writes_every_row_with_its_rounds_target_and_machine(result: Path) -> None:
    written = json.loads((result / "bench.json").read_text(encoding="utf-8"))
    rows = written.pop("rows")
    assert {row["name"]: row["target"] for row in rows if row["target"]} == TARGETS
    for row in rows:
        assert row.keys() == {"name", "unit", "median", "lowest", "highest", "rounds", "target", "met"}
        assert row["median"] == row["lowest"] == row["highest"] == row["rounds"][0]
        assert row["median"] > 0 or row["name"].endswith((": failed", ": refused"))
        assert type(row["met"]) is (bool if row["target"] else type(None))
    assert written.keys() >= {"date", "commit", "cpu", "cores", "instruction_sets", "versions", "load_average", "wrk"}
    assert written["model"].startswith("tiny@")
    assert written["camera_photo"].startswith("a small stand-in, ")
    assert written["fronts"] == ["native", "torchserve"]
    assert (written["rounds"], written["seconds"], written["warm_up"]) == (1, 1, 1)


def test_a_single_part_is_measured_alone(wrk_there: None, seeded_store: Path, tmp_path: Path) -> None:
    quick = ["--rounds", "1", "--seconds", "1", "--warm-up", "1", "--fronts", "native", "--parts", "encodings"]
    arguments = [*quick, "--model-store", str(seeded_store), "--environment", sys.prefix]
    assert bench.main([*arguments, "--out", str(tmp_path / "bench.json")]) == 0
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    named = [row["name"] for row in written["rows"]]
    assert ENCODED.format("base64") in named and not [name for name in named if "floor" in name or "crowd" in name]
    assert written["parts"] == ["encodings"]


def test_the_markdown_of_a_run_has_its_rows_and_says_what_was_measured(result: Path) -> None:
    text = (result / "bench.md").read_text(encoding="utf-8")
    assert text.count("\n| ") == len(json.loads((result / "bench.json").read_text(encoding="utf-8"))["rows"]) + 1
    assert "96 × 96 JPEG q90" in text and "tiny@" in text and "medians of 1 round" in text


def test_a_run_leaves_nothing_but_its_results(result: Path) -> None:
    assert sorted(file.name for file in result.iterdir()) == ["bench.json", "bench.md"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_its_server_and_cleans_up(
    wrk_there: None, seeded_store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    environment, pid_file = tmp_path / "environment/bin", tmp_path / "pid"
    environment.mkdir(parents=True)
    python = environment / "python"  # serves by sleeping, and never becomes ready
    python.write_text(
        f'#!/bin/sh\n[ "$2" = serve ] && [ "$3" != --help ] || exec {sys.executable} "$@"\n'
        f"echo $$ >{pid_file}.new && mv {pid_file}.new {pid_file} && exec sleep 600\n"
    )
    python.chmod(0o755)
    options = ["--model-store", str(seeded_store), "--environment", str(environment.parent)]
    running = subprocess.Popen(
        [sys.executable, "-m", "load_tests.bench", *options, "--out", str(tmp_path / "out/bench.json")], cwd=ROOT
    )
    try:
        while not pid_file.exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.send_signal(number)
        assert running.wait(timeout=60) == 128 + number
    finally:
        running.kill()
        running.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_server_that_does_not_start_is_named_with_what_it_printed(tmp_path: Path) -> None:
    with (
        pytest.raises(server.ServerError, match="did not become ready") as caught,
        server.running([sys.executable, "-c", "print('no model here')"], tmp_path),
    ):
        pass
    assert caught.value.__notes__ == ["the server printed: no model here"]


@pytest.mark.parametrize(
    ("path", "arguments", "words"),
    [
        ("", [], "wrk is not installed; on Debian and Ubuntu: apt-get install wrk"),
        (None, ["--environment", "nowhere"], "nowhere is not an environment to serve from; run make setup"),
        (None, ["--environment", sys.prefix, "--model-store", "nowhere"], "no model at nowhere"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(
    wrk_there: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    path: str | None,
    arguments: list[str],
    words: str,
) -> None:
    if path is not None:
        monkeypatch.setenv("PATH", path)
    assert bench.main(arguments) == 1
    assert words in capsys.readouterr().err


def test_the_first_readable_image_of_a_folder_is_sent_as_a_small_jpeg(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "b.png").write_bytes(encode(scene(300, 200), "PNG"))
    photo = photos.small_photo(tmp_path)
    picture = Image.open(BytesIO(photo.data))
    assert (picture.format, picture.size) == ("JPEG", (96, 96))
    assert photo.origin == f"96 × 96 JPEG q90 of the first image in {tmp_path.name}"


def test_a_generated_photo_is_called_generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(photos, "STL10", tmp_path / "not-there.zip")
    assert photos.small_photo(None) == photos.Photo(encode(scene(96, 96), quality=90), "96 × 96 JPEG q90, generated")


def test_versions_are_those_of_the_interpreter_that_serves() -> None:
    described = machine.describe(Path(sys.executable))
    assert described["versions"]["python"] == sys.version.split()[0]
    assert described["versions"]["pillow"] == Image.__version__
    assert described["cores"] == len(os.sched_getaffinity(0))
