"""A newer model in the place of the one that answers: nothing is lost, and a bad one changes nothing."""

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from encoder.manifest import Manifest
from handlers.control import Command, Control, ControlError, path_of, paths_of
from handlers.deploy import deploy as model_deploy
from handlers.deploy import main
from tests.pictures import encode, scene
from tests.server import ROOT, Server, deploy, running_server
from tests.serving import JPEG, PATH, assert_refused, samples
from tests.tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="module")
def newer_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another dimension, without a seed."""
    folder = tmp_path_factory.mktemp("newer") / "model_store"
    write_tiny_encoder(folder, dimension=24)
    return folder


@contextmanager
def serving(store: Path, folder: Path, *arguments: str) -> Iterator[tuple[Server, httpx.Client]]:
    with running_server(store, folder, arguments) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield server, client


def version_in(store: Path) -> str:
    return Manifest.read(store).model_digest[:12]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_while_requests_pour_in_a_newer_model_takes_over_and_not_one_is_lost(
    processes: str, seeded_store: Path, newer_store: Path, tmp_path: Path
) -> None:
    with serving(seeded_store, tmp_path, "--processes", processes) as (server, client):
        stop = threading.Event()
        seen: Counter[tuple[int, int]] = Counter()  # status, dimension
        locked = threading.Lock()

        def ask() -> None:
            while not stop.is_set():
                with httpx.Client(base_url=server.url, timeout=30) as mine:  # at one process or the other
                    for _ in range(5):
                        answer = mine.post(PATH, content=JPEG)
                        with locked:
                            seen[answer.status_code, len(answer.json().get("embedding", ""))] += 1

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        for store in (newer_store, seeded_store, newer_store):
            done = deploy(server, store)
            assert done.returncode == 0, done.stderr
            assert version_in(store) in done.stdout
            assert client.post(PATH, content=JPEG).json()["model"] == f"tiny@{version_in(store)}"
        stop.set()
        for asker in askers:
            asker.join(30)
        assert set(seen) == {(200, 16), (200, 24)}
        counted = samples(client.get("/metrics").text)
        answered = [counted[name] for name in counted if re.match(r'akin_requests_total\{.*status="200"', name)]
        assert len(answered) == int(processes) and min(answered) > 0
        assert server.process.poll() is None and "Traceback" not in server.log


def test_a_newer_model_without_a_gallery_answers_409_for_neighbors_and_200_without(
    seeded_store: Path, newer_store: Path, tmp_path: Path
) -> None:
    with serving(seeded_store, tmp_path) as (server, client):
        assert len(client.post(PATH, params={"k": 2}, content=JPEG).json()["neighbors"]) == 2
        assert "no gallery: k > 0 gets 409" in deploy(server, newer_store).stdout
        assert_refused(client.post(PATH, params={"k": 2}, content=JPEG), 409, "send k=0", "--images")
        assert len(client.post(PATH, content=JPEG).json()["embedding"]) == 24
        assert "a gallery of 3 images; retired" in deploy(server, seeded_store).stdout
        assert len(client.post(PATH, params={"k": 2}, content=JPEG).json()["neighbors"]) == 2


def test_with_images_the_newer_model_gets_a_gallery_of_them(
    seeded_store: Path, newer_store: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        (photos / f"{number}.png").write_bytes(encode(scene(40, 40, number), "PNG"))
    with serving(seeded_store, tmp_path, "--images", str(photos)) as (server, client):
        assert "a gallery of 3 images" in deploy(server, newer_store).stdout
        answer = client.post(PATH, params={"k": 3}, content=encode(scene(40, 40, 1), "PNG")).json()
        assert len(answer["embedding"]) == 24 and answer["neighbors"][0]["id"] == "1.png"
        assert client.get("/thumbnails/1.png").headers["content-type"] == "image/webp"


def test_the_version_before_answers_to_its_name_where_it_is_kept(
    seeded_store: Path, newer_store: Path, tmp_path: Path
) -> None:
    old, new = version_in(seeded_store), version_in(newer_store)
    with serving(seeded_store, tmp_path) as (server, client):
        assert deploy(server, newer_store, "--keep").returncode == 0
        assert client.post(PATH, content=JPEG).json()["model"] == f"tiny@{new}"
        assert client.post(f"{PATH}/{old}?k=1", content=JPEG).json()["model"] == f"tiny@{old}"
        assert deploy(server, newer_store).returncode == 0
        assert_refused(client.post(f"{PATH}/{old}", content=JPEG), 404, old, new)


def test_another_model_comes_beside_the_one_there_is(seeded_store: Path, newer_store: Path, tmp_path: Path) -> None:
    with serving(seeded_store, tmp_path) as (server, client):
        assert_refused(client.post("/predictions/second", content=JPEG), 404, "'encoder'")
        assert deploy(server, newer_store, "--as", "second").returncode == 0
        assert len(client.post("/predictions/second", content=JPEG).json()["embedding"]) == 24
        assert len(client.post(PATH, content=JPEG).json()["embedding"]) == 16
    with serving(seeded_store, tmp_path / "again", "--also", f"second={newer_store}") as (_, client):
        assert len(client.post("/predictions/second", content=JPEG).json()["embedding"]) == 24


def test_a_model_that_fails_its_golden_vectors_is_refused_and_nothing_changes(
    seeded_store: Path, newer_store: Path, tmp_path: Path
) -> None:
    manifest = Manifest.read(newer_store)
    wrong = tuple(replace(pair, vector=tuple(-x for x in pair.vector)) for pair in manifest.golden)
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    (spoilt / "encoder.int8.onnx").write_bytes((newer_store / "encoder.int8.onnx").read_bytes())
    replace(manifest, golden=wrong).write(spoilt)
    with serving(seeded_store, tmp_path / "run") as (server, client):
        before = client.post(PATH, content=JPEG).json()["embedding"]
        refused = deploy(server, spoilt)
        assert refused.returncode == 1 and "golden vector" in refused.stderr
        missing = deploy(server, tmp_path / "nowhere")
        assert missing.returncode == 1 and "no model at" in missing.stderr
        np.testing.assert_array_equal(client.post(PATH, content=JPEG).json()["embedding"], before)


def test_without_a_server_it_says_where_it_looked(newer_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "handlers.deploy", str(newer_store), "--port", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "port 1" in refused.stderr and "var/run" in refused.stderr


MODEL = {"model": "tiny@0123456789ab", "version": "0123456789ab", "rows": None}


def fail(given: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("something is amiss")


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Starts stand-ins for the processes of a port, each with a command that fails; what they are told comes back."""
    monkeypatch.chdir(tmp_path)
    with ExitStack() as opened:

        def start(*failing: str) -> list[str]:
            told: list[str] = []

            def told_of(number: int, do: str, answer: dict[str, Any]) -> Command:
                def command(given: dict[str, Any]) -> dict[str, Any]:
                    told.append(f"{do} {number}")
                    return answer

                return command

            for number, bad in enumerate(failing, 1):
                answers = {"load": MODEL, "swap": {"retired": ["ba9876543210"]}, "discard": {}}
                commands = {do: told_of(number, do, answer) for do, answer in answers.items()} | {bad: fail}
                control = Control(path_of(8080, number), commands)
                threading.Thread(target=control.serve_forever, daemon=True).start()
                opened.callback(control.close)
            return told

        yield start


def test_where_a_process_fails_to_swap_the_others_go_on_and_it_is_told(
    processes: Callable[..., list[str]], newer_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = processes("", "swap", "")
    assert main([str(newer_store)]) == 1
    assert told == ["load 1", "load 2", "load 3", "swap 1", "swap 3"]
    said = capsys.readouterr()
    assert "tiny@0123456789ab in 2 of 3 processes" in said.out and "retired ba9876543210" in said.out
    assert said.err.startswith("akin: 8080-2 does not answer with it: something is amiss; run this again")


def test_where_none_swaps_it_is_not_deployed(processes: Callable[..., list[str]], newer_store: Path) -> None:
    processes("swap", "swap")
    with pytest.raises(ControlError, match=r"8080-1 .* amiss; 8080-2 .* amiss"):
        model_deploy(8080, "encoder", newer_store)


def test_what_was_loaded_is_discarded_by_all_that_still_can(
    processes: Callable[..., list[str]], newer_store: Path
) -> None:
    told = processes("discard", "", "load")
    with pytest.raises(ControlError, match="something is amiss"):
        model_deploy(8080, "encoder", newer_store)
    assert told == ["load 1", "load 2", "discard 2", "discard 3"]


def test_a_socket_that_a_killed_process_left_is_no_hindrance(
    processes: Callable[..., list[str]], newer_store: Path
) -> None:
    processes("", "")
    Control(path_of(8080, 3), {}).server_close()
    done = model_deploy(8080, "encoder", newer_store)
    assert "in 2 processes" in done.line and done.failures == []
    assert not path_of(8080, 3).exists()


def test_the_control_socket_goes_with_the_server(
    seeded_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with running_server(seeded_store, tmp_path) as server:
        assert len(paths_of(server.port)) == 1
        assert server.stop() == 0
        assert paths_of(server.port) == []
