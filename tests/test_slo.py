"""The gate: that it passes what is good, fails what is slow, wrong or too little, and leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.manifest import Manifest
from load_tests import slo
from load_tests.latencies import Measured
from tests.pictures import encode, scene
from tests.stand_in import stand_in

ROOT = Path(__file__).parents[1]


def measured(latency_ms: float = 5.0, requests: int = 2000, errors: dict[str, int] | None = None) -> Measured:
    return Measured("photos", np.full(requests, latency_ms), 10.0, errors or {})


def gate(out: Path, *arguments: str) -> int:
    """A short run on one small photo, its result named by a relative path, as people do. 2000 requests are not
    needed unless `arguments` say so."""
    photos = out / "photos"
    photos.mkdir(parents=True)
    (photos / "a.jpg").write_bytes(encode(scene(32, 32)))
    quick = ["--seconds", "1", "--warm-up", "0", "--min-requests", "1"]
    return slo.main([*quick, "--images", str(photos), "--out", os.path.relpath(out / "load.json"), *arguments])


def reasons(printed: str) -> list[str]:
    return [line.removeprefix("FAILED: ") for line in printed.splitlines() if line.startswith("FAILED: ")]


# The verdict


@pytest.mark.parametrize("latency_ms", [0.5, 19.999])
def test_a_p50_below_the_target_with_enough_requests_and_no_error_passes(latency_ms: float) -> None:
    assert slo.shortfalls(measured(latency_ms), slo_ms=20, min_requests=2000) == []


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (measured(latency_ms=20.0), "p50 is 20.00 ms, and must be below 20 ms"),
        (measured(latency_ms=25.5), "p50 is 25.50 ms"),
        (measured(requests=1999), "1999 requests were measured, at least 2000 are needed: raise SECONDS"),
        (measured(requests=0), "0 requests were measured"),
        (measured(errors={"HTTP 500": 3}), "3 requests failed, and none may: 3 × HTTP 500"),
    ],
)
def test_each_shortfall_alone_fails_with_its_reason(result: Measured, words: str) -> None:
    (reason,) = slo.shortfalls(result, slo_ms=20, min_requests=2000)
    assert words in reason


def test_all_shortfalls_are_named_together() -> None:
    everything = measured(latency_ms=30, requests=10, errors={"HTTP 500": 1, "timed out": 2})
    assert len(slo.shortfalls(everything, slo_ms=20, min_requests=2000)) == 3


def test_one_slow_answer_in_three_does_not_move_the_median() -> None:
    mixed = Measured("photos", np.tile([5.0, 5.0, 500.0], 1000), 10.0, {})
    assert slo.shortfalls(mixed, slo_ms=20, min_requests=2000) == []
    assert mixed.percentile(95) == 500


# Real load


def test_a_quick_server_passes_and_everything_about_the_run_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in() as served:
        assert gate(tmp_path, "--url", served.url + "/", "--slo-ms", "5000", "--users", "3") == 0
    printed = capsys.readouterr().out
    for word in ("p50 ", "p95 ", "p99 ", "requests/s", "0 failed", "stand-in@0", "NoProvider", "GPU: ", "commit "):
        assert word in printed
    assert reasons(printed) == [] and "passed: p50 is below 5000 ms" in printed
    written = json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))
    assert written["passed"] is True and written["shortfalls"] == []
    assert (written["users"], written["failed"], written["slo_ms"]) == (3, 0, 5000)
    assert 0 < written["p50_ms"] <= written["p95_ms"] <= written["p99_ms"] <= written["longest_ms"]
    assert written["requests"] == pytest.approx(written["requests_per_s"] * written["seconds"], rel=0.01)
    assert written["sent"] == "1 files of photos"
    assert written.keys() >= {"cpu", "gpus", "commit", "date", "model", "provider", "versions", "load_average"}
    with Image.open(tmp_path / "load.png") as picture:
        assert picture.size[0] > 500
    assert sorted(file.name for file in tmp_path.iterdir()) == ["load.json", "load.png", "photos"]


def test_a_run_leaves_gevent_out_of_its_own_process(tmp_path: Path) -> None:
    """It would rewrite that. In a process where nothing else can have imported it."""
    code = "import sys; from pathlib import Path; from tests.test_slo import gate; "
    code += "sys.exit(gate(Path(sys.argv[1]), *sys.argv[2:]) or ('gevent' in sys.modules and 'gevent is there'))"
    with stand_in() as served:
        command = [sys.executable, "-c", code, str(tmp_path), "--url", served.url + "/", "--slo-ms", "5000"]
        ran = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_server_that_takes_25_ms_fails_the_20_ms_target_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with stand_in(pause_s=0.025) as served:
        assert gate(tmp_path, "--url", served.url) == 1
    (reason,) = reasons(capsys.readouterr().out)
    assert reason.startswith("p50 is ") and reason.endswith("must be below 20 ms")
    assert json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))["p50_ms"] >= 25


def test_a_server_that_answers_500_fails_by_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in(status=500) as served:
        assert gate(tmp_path, "--url", served.url) == 1
    failed, missing = reasons(capsys.readouterr().out)
    assert "requests failed" in failed and "500" in failed
    assert missing.startswith("0 requests were measured")
    assert json.loads((tmp_path / "load.json").read_text(encoding="utf-8"))["passed"] is False


def test_a_good_status_without_an_embedding_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in(answer=b'{"label": "cat"}') as served:
        assert gate(tmp_path, "--url", served.url) == 1
    assert "200 without an embedding" in reasons(capsys.readouterr().out)[0]


def test_too_few_requests_fail_whatever_their_latency(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stand_in(pause_s=0.005) as served:  # 4 users in a second: 800 at most
        assert gate(tmp_path, "--url", served.url, "--slo-ms", "5000", "--min-requests", "2000") == 1
    (reason,) = reasons(capsys.readouterr().out)
    assert "at least 2000 are needed" in reason


def test_2000_requests_are_needed_unless_told_otherwise() -> None:
    assert slo.Settings.from_arguments([]) == slo.Settings(slo_ms=20, users=4, seconds=30, min_requests=2000)


@pytest.mark.parametrize("front", ["native", pytest.param("torchserve", marks=pytest.mark.long)])
def test_a_front_is_started_measured_and_ended(
    seeded_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], front: str
) -> None:
    started = ["--front", front, "--model-store", str(seeded_store), "--environment", sys.prefix]
    assert gate(tmp_path, *started, "--slo-ms", "5000") == 0
    printed = capsys.readouterr().out
    assert f"{front} at http://127.0.0.1:" in printed and Manifest.read(seeded_store).model_id in printed
    port = int(printed.partition("http://127.0.0.1:")[2].partition(",")[0])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["load.json", "load.png", "photos"]


def children(pid: int) -> dict[int, str]:
    """The processes that it started, with their command lines."""
    found = {}
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with suppress(OSError):  # some end at once
            found[child] = Path(f"/proc/{child}/cmdline").read_text()
    return found


def test_an_interrupted_run_ends_server_and_load_and_cleans_up(seeded_store: Path, tmp_path: Path) -> None:
    options = ["--model-store", str(seeded_store), "--environment", sys.prefix, "--out", str(tmp_path / "load.json")]
    command = [sys.executable, "-m", "load_tests.slo", *options]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        started: dict[int, str] = {}
        while not any("locustfile" in line for line in started.values()):
            assert running.poll() is None
            time.sleep(0.1)
            started = children(running.pid)
        assert any("serve" in line for line in started.values())
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 143
    finally:
        running.kill()
        running.wait()
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(tmp_path.iterdir()) == []


# What cannot be measured


def test_where_nothing_listens_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert gate(tmp_path, "--url", url) == 2
    assert f"nothing answers at {url}/predictions/encoder" in capsys.readouterr().err
    assert not (tmp_path / "load.json").exists()


def test_a_missing_environment_is_named_with_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate(tmp_path, "--environment", "nowhere") == 2
    assert "nowhere is not an environment to serve from; run make setup" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--seconds", "0"], "1 to 3600"),
        (["--seconds", "3601"], "1 to 3600"),
        (["--users", "1001"], "1 to 1000"),
        (["--users", "many"], "number"),
        (["--slo-ms", "0"], "not within"),
        (["--slo-ms", "nan"], "not within"),
        (["--url", "127.0.0.1:8080"], "is not like http://127.0.0.1:8080"),
        (["--url", "http://127.0.0.1:8080/predictions/encoder"], "is not like"),
        (["--front", "apache"], "'native', 'torchserve'"),
    ],
)
def test_a_knob_out_of_range_is_refused_with_its_limit(
    capsys: pytest.CaptureFixture[str], arguments: list[str], word: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        slo.main(arguments)
    assert refused.value.code == 2
    assert word in capsys.readouterr().err
