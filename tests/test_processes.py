"""Several processes on one port: they share the work, are replaced when they die, and end together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from handlers import control, processes
from handlers.control import path_of
from handlers.processes import merge
from tests.server import ROOT, Server, deploy, running_server, start, wait_until
from tests.serving import JPEG, PATH, samples
from tests.tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="module")
def pair(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of two processes."""
    with running_server(seeded_store, tmp_path_factory.mktemp("pair"), ["--processes", "2"]) as server:
        yield server
        assert server.stop() == 0


def ask(server: Server, path: str = PATH) -> httpx.Response:
    """A request on a connection of its own, which the kernel gives to one of the processes."""
    return httpx.post(server.url + path, content=JPEG, timeout=30)


def children(server: Server) -> set[int]:
    found = subprocess.run(["ps", "--ppid", str(server.process.pid), "-o", "pid="], capture_output=True, text=True)
    return set(map(int, found.stdout.split()))


def counts(server: Server) -> dict[int, float]:
    """Good predictions by process."""
    found = samples(httpx.get(server.url + "/metrics", timeout=30).text)
    return {process: found[f'akin_requests_total{{process="{process}",status="200"}}'] for process in (1, 2)}


def test_both_processes_answer_and_any_of_them_tells_the_metrics_of_both(pair: Server) -> None:
    before = counts(pair)
    for _ in range(60):
        assert ask(pair).status_code == 200
    after = counts(pair)
    assert sum(after.values()) - sum(before.values()) == 60
    assert all(after[process] > before[process] for process in (1, 2))


def test_a_row_put_through_one_is_found_through_either(pair: Server) -> None:
    assert httpx.put(f"{pair.url}/index/new", content=JPEG, timeout=30).status_code == 200
    for _ in range(20):
        assert ask(pair, PATH + "?k=1").json()["neighbors"][0]["id"] == "new"


def test_a_process_that_is_killed_is_replaced_while_the_other_goes_on(pair: Server) -> None:
    before = children(pair)
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(children(pair) - before) >= 1, lambda: pair.log)
    wait_until(lambda: len(counts_or_none(pair)) == 2, lambda: pair.log)
    assert ask(pair).status_code == 200


def test_whether_a_process_is_wedged_is_heard_from_each_by_itself(pair: Server) -> None:
    for process in (1, 2):
        path = pair.log_file.parent / path_of(pair.port, process)
        assert control.ask(path, "wedged", patience_s=30) == {"reason": None}


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[processes._Child]:
    """One that only sleeps, and is looked after at every opportunity."""
    monkeypatch.setattr(processes, "ASK_EVERY_S", 0.0)
    child = processes._Child(1, ["sleep", "600"], tmp_path / "1.sock")
    yield child
    child.end(time.monotonic())


def test_a_process_that_says_it_is_wedged_is_ended_and_another_takes_its_place(
    child: processes._Child, tmp_path: Path
) -> None:
    reasons = iter([None, "a worker has been busy with the same work for 130 s"])
    asked = control.Control(tmp_path / "1.sock", {"wedged": lambda given: {"reason": next(reasons)}})
    threading.Thread(target=asked.serve_forever, daemon=True).start()
    first = child.process
    assert first is not None
    child.watch()
    assert first.poll() is None  # well so far
    child.watch()
    assert first.wait(timeout=30) == -signal.SIGKILL
    asked.close()
    deadline = time.monotonic() + 30
    while child.process in (None, first):
        assert time.monotonic() < deadline
        child.watch()


def test_a_process_that_says_nothing_is_ended_after_its_time_and_not_before(
    child: processes._Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    child.watch()
    assert child.process is not None and child.process.poll() is None
    monkeypatch.setattr(processes, "SILENT_S", 0.0)
    child.watch()
    assert child.process.wait(timeout=30) == -signal.SIGKILL


def counts_or_none(server: Server) -> dict[int, float]:
    try:
        return counts(server)
    except (KeyError, httpx.TransportError):
        return {}


def test_one_that_cannot_start_ends_all_with_its_reason(seeded_store: Path, tmp_path: Path) -> None:
    arguments = ["--processes", "2", "--images", str(tmp_path / "none")]
    process, log_file = start(seeded_store, tmp_path / "run", arguments)
    assert process.wait(timeout=60) == 1
    (line,) = log_file.read_text().splitlines()
    assert line.startswith("akin: ") and "does not exist" in line


def test_a_port_that_other_processes_share_is_refused_and_not_joined(pair: Server, seeded_store: Path) -> None:
    for number in ("1", "2"):
        command = [sys.executable, "-m", "handlers.native", "--model-store", str(seeded_store)]
        command += ["--port", str(pair.port), "--processes", number]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        folder = pair.log_file.parent
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "cannot listen on 127.0.0.1" in done.stderr
    assert ask(pair).status_code == 200


def test_processes_whose_parent_is_killed_end_too(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path, ["--processes", "2"]) as server:
        orphans = children(server)
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))


def test_a_deployment_reaches_every_process(pair: Server, seeded_store: Path) -> None:
    done = deploy(pair, seeded_store, "--as", "twin")
    assert done.returncode == 0 and "in 2 processes" in done.stdout, done.stderr
    assert {ask(pair, "/predictions/twin").status_code for _ in range(20)} == {200}


def test_the_socket_of_a_killed_process_is_not_asked_for_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    control.Control(path_of(8080, 2), {}).server_close()
    assert processes.merged_metrics(8080, 1, lambda: b"# TYPE b gauge\nb 2.0\n") == (
        b'# TYPE b gauge\nb{process="1"} 2.0\n'
    )
    assert caplog.messages == []


def test_families_stand_once_and_every_sample_says_its_process() -> None:
    one = (
        '# HELP a_total Things.\n# TYPE a_total counter\na_total{kind="x{y}"} 1.0\n'
        "# HELP b Depth.\n# TYPE b gauge\nb 2.0\n"
    )
    assert merge({1: one, 2: one.replace("2.0", "5.0")}) == (
        "# HELP a_total Things.\n# TYPE a_total counter\n"
        'a_total{process="1",kind="x{y}"} 1.0\na_total{process="2",kind="x{y}"} 1.0\n'
        '# HELP b Depth.\n# TYPE b gauge\nb{process="1"} 2.0\nb{process="2"} 5.0\n'
    )


def test_one_that_comes_back_serves_what_was_deployed_meanwhile_and_nobody_notices(
    seeded_store: Path, tmp_path: Path
) -> None:
    """It begins with the same command line as before, which names the old model alone."""
    newer = write_tiny_encoder(tmp_path / "newer", dimension=24)
    with running_server(seeded_store, tmp_path / "run", ["--processes", "2"]) as server:
        deployed = deploy(server, tmp_path / "newer")
        assert deployed.returncode == 0, deployed.stderr
        before = children(server)
        os.kill(max(before), signal.SIGKILL)
        deadline = time.monotonic() + 30
        while max(before) in children(server):
            assert time.monotonic() < deadline
        while len(counts_or_none(server)) < 2:
            assert time.monotonic() < deadline, server.log
            answer = ask(server)
            assert (answer.status_code, answer.json().get("model")) == (200, newer.model_id)
        assert {ask(server).json()["model"] for _ in range(20)} == {newer.model_id}
