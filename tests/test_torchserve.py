"""TorchServe for real: the native front's answers, bad requests, dying workers, tokens, and a clean end."""

import json
import os
import re
import signal
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from export.archive import Archive, write_archive
from handlers.torchserve.run import Settings
from index.gallery import Gallery
from tests.pictures import encode, scene
from tests.server import ROOT, Server, running_server, wait_until
from tests.serving import JPEG, OTHER, PATH, assert_refused, samples, vector_of
from tests.torchserving import is_running, running_torchserve, session_of, start, workers

MODEL_STORE = ROOT / "model_store"
PHOTO = encode(scene(1600, 1200), quality=92)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torchserve")


@pytest.fixture(scope="module")
def torchserve(folder: Path) -> Iterator[Server]:
    """One server for all tests that do not need their own: it must bear whatever each of them sends."""
    with running_torchserve(MODEL_STORE, folder) as server:
        yield server


@pytest.fixture(scope="module")
def native(torchserve: Server, folder: Path) -> Iterator[Server]:
    """The native front on the gallery that TorchServe has seeded."""
    with running_server(MODEL_STORE, folder / "native", ["--gallery", str(folder / "var/gallery")]) as server:
        yield server


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(MODEL_STORE)


def post(server: Server, **request: object) -> httpx.Response:
    return httpx.post(server.url + PATH, timeout=30, **request)  # type: ignore[arg-type]


def assert_same(one: dict, other: dict) -> None:
    """Two answers that agree in everything but how long they took."""
    assert one.keys() == other.keys()
    for key in one.keys() - {"embedding", "logits", "neighbors", "confidence", "timing_ms"}:
        assert one[key] == other[key]
    assert np.dot(one["embedding"], other["embedding"]) >= 0.9999
    np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-4)
    assert [near["id"] for near in one["neighbors"]] == [near["id"] for near in other["neighbors"]]


# The same answers as everywhere


@pytest.mark.parametrize("photo", [JPEG, OTHER, PHOTO], ids=["JPEG", "PNG", "2 megapixels"])
def test_a_photo_gets_the_answer_of_the_native_front(
    torchserve: Server, native: Server, encoder: Encoder, photo: bytes
) -> None:
    answer = post(torchserve, content=photo, headers={"akin-k": "5"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["akin-provider"] == "CPUExecutionProvider"
    assert_same(answer.json(), post(native, content=photo, params={"k": 5}).json())
    assert np.dot(answer.json()["embedding"], vector_of(encoder, photo)) >= 0.9999
    assert len(answer.json()["neighbors"]) == 5
    assert answer.json()["timing_ms"].keys() == {"decode", "embed", "search"}


def test_several_images_get_a_list_with_a_status_each(torchserve: Server, native: Server) -> None:
    form = {"one": JPEG, "two": JPEG[:200], "three": OTHER}
    first, damaged, last = post(torchserve, files=form, data={"k": "2"}).json()
    expected = post(native, files=form, data={"k": "2"}).json()
    assert damaged == expected[1] and damaged["status"] == 400
    assert_same(first, expected[0])
    assert_same(last, expected[2])


def test_options_come_as_headers_or_as_parts_of_a_form_and_parts_go_first(torchserve: Server) -> None:
    by_header = post(torchserve, content=JPEG, headers={"Akin-K": "1", "akin-fields": "neighbors"}).json()
    assert by_header.keys() == {"neighbors"} and len(by_header["neighbors"]) == 1
    by_part = post(
        torchserve, files={"image": JPEG}, data={"k": "3", "fields": "label,neighbors"}, headers={"akin-k": "1"}
    ).json()
    assert by_part.keys() == {"label", "neighbors"} and len(by_part["neighbors"]) == 3


def test_a_row_that_another_process_adds_is_found_by_the_next_search(
    torchserve: Server, folder: Path, encoder: Encoder
) -> None:
    manifest = encoder.manifest
    photo = encode(scene(70, 70, seed=99))
    with Gallery.open(folder / "var/gallery", manifest.model_digest, manifest.dimension) as gallery:
        assert gallery.count == 5000  # the seed, once, though two workers started together
        gallery.add(["new"], vector_of(encoder, photo)[None], ["cat"])
        for _ in range(6):  # whichever worker answers
            (nearest,) = post(torchserve, content=photo, headers={"akin-k": "1"}).json()["neighbors"]
            assert nearest["id"] == "new" and nearest["score"] == pytest.approx(1, abs=1e-4)
        gallery.remove(["new"])


def test_stages_are_histograms_for_prometheus(torchserve: Server) -> None:
    def count(stage: str) -> float:
        metrics = samples(httpx.get(f"http://127.0.0.1:{torchserve.port + 2}/metrics").text)
        return sum(
            value
            for name, value in metrics.items()
            if name.startswith("akin_stage_ms_count{") and f'stage="{stage}"' in name
        )

    before = {stage: count(stage) for stage in ("decode", "embed", "search")}
    assert before["decode"] > 0 and before["embed"] > 0
    post(torchserve, files={"one": JPEG, "two": OTHER}, data={"k": "1"})
    expected = {"decode": before["decode"] + 2, "embed": before["embed"] + 1, "search": before["search"] + 1}
    wait_until(lambda: {stage: count(stage) for stage in expected} == expected)  # they go through the worker's log


# What must not knock it over


@pytest.fixture
def served_on(torchserve: Server, encoder: Encoder) -> Iterator[None]:
    """After a bad request: the same workers, and the next good request right."""
    before = workers(torchserve)
    yield
    answer = post(torchserve, content=JPEG)
    assert answer.status_code == 200
    assert np.dot(answer.json()["embedding"], vector_of(encoder, JPEG)) >= 0.9999
    assert workers(torchserve) == before


@pytest.mark.usefixtures("served_on")
def test_parts_that_would_replace_each_other_are_refused_rather_than_lost(torchserve: Server) -> None:
    refused = post(torchserve, files=[("image", ("a", PHOTO)), ("image", ("b", PHOTO))])
    assert_refused(refused, 400, "name them image1, image2")


def test_models_cannot_be_registered_from_outside(torchserve: Server) -> None:
    management = f"http://127.0.0.1:{torchserve.port + 1}/models"
    assert httpx.post(management, params={"url": "encoder.mar", "model_name": "other"}).status_code == 405
    assert httpx.delete(f"{management}/encoder").status_code == 405
    assert post(torchserve, content=JPEG).status_code == 200


def test_a_killed_worker_takes_only_its_own_requests_with_it_and_comes_back(torchserve: Server) -> None:
    victim = min(workers(torchserve))
    stop = time.monotonic() + 1.5

    def keep_asking() -> list[int]:
        statuses = []
        while time.monotonic() < stop:
            statuses.append(post(torchserve, content=JPEG).status_code)
        return statuses

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(keep_asking) for _ in range(4)]
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
    statuses = [status for client in asking for status in client.result()]
    assert statuses.count(200) >= len(statuses) - 1

    wait_until(lambda: victim not in (now := workers(torchserve)) and [*now.values()] == ["READY"] * 2)
    assert [post(torchserve, content=JPEG).status_code for _ in range(6)] == [200] * 6


# Starting and stopping


def test_tokens_a_full_queue_and_an_interrupt_that_leaves_nothing_behind(seeded_store: Path, tmp_path: Path) -> None:
    arguments = ["--token-auth", "--workers", "1", "--queue", "1"]
    with running_torchserve(seeded_store, tmp_path, arguments) as server:
        assert post(server, content=JPEG).status_code == 400  # TorchServe's status for a missing token
        (keys,) = map(Path, re.findall(r"/\S+/key_file\.json", server.log))
        authorized = {"authorization": f"Bearer {json.loads(keys.read_text())['inference']['key']}"}
        neighbors = post(server, content=JPEG, headers={**authorized, "akin-k": "9"}).json()["neighbors"]
        assert {near["id"] for near in neighbors} == {"zero", "one", "two"}

        java, worker = session_of(server)
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(4) as clients:
            asked = [clients.submit(post, server, content=JPEG, headers=authorized) for _ in range(4)]
            wait_until(lambda: sum(answer.done() for answer in asked) == 2)
            os.kill(worker, signal.SIGCONT)  # one was with the worker, one waited
            assert sorted(answer.result().status_code for answer in asked) == [200, 200, 503, 503]

        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=30) == 0
        wait_until(lambda: not is_running(java) and not is_running(worker))
        assert not keys.parent.exists()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


def spoil_artifact(archive: Path) -> None:
    rewrite(archive, "model_store/encoder.int8.onnx", lambda content: content[:-1] + bytes([content[-1] ^ 1]))


def remove_a_room(archive: Path) -> None:
    rewrite(archive, "index/gallery.py", lambda content: None)


def rewrite(archive: Path, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change one file in the archive, or leave it out."""
    with zipfile.ZipFile(archive) as old:
        contents = {member: old.read(member) for member in old.namelist()}
    changed = change(contents.pop(name))
    with zipfile.ZipFile(archive, "w") as new:
        for member, content in (contents if changed is None else {**contents, name: changed}).items():
            new.writestr(member, content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_artifact, ["encoder.int8.onnx", "sha256", "akin export"]),
        # The checkout is on this test's PYTHONPATH: the workers must not find the room there.
        (remove_a_room, ["a worker died", "No module named 'index.gallery'"]),
    ],
)
def test_an_archive_that_cannot_be_served_is_refused_with_the_reason(
    seeded_store: Path, tmp_path: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    archive = write_archive(Archive(model_store=str(seeded_store), out=str(tmp_path / "encoder.mar")))
    spoil(archive)
    assert_start_fails(archive, tmp_path, ["--workers", "1"], words)


def test_a_missing_archive_is_refused_in_one_line(tmp_path: Path) -> None:
    assert_start_fails(tmp_path / "none.mar", tmp_path, [], ["none.mar", "akin archive"])


def test_a_port_in_use_is_refused_in_one_line(seeded_store: Path, tmp_path: Path) -> None:
    archive = write_archive(Archive(model_store=str(seeded_store), out=str(tmp_path / "encoder.mar")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(min(taken.getsockname()[1], 65531))
        assert_start_fails(archive, tmp_path, ["--port", port], ["127.0.0.1:", "in use", "--port"])


def assert_start_fails(archive: Path, folder: Path, arguments: list[str], words: list[str]) -> None:
    process, log_file = start(archive, folder, arguments)
    assert process.wait(timeout=60) == 1
    assert log_file.read_text().startswith("akin: ")
    for word in words:
        assert word in log_file.read_text()


@pytest.mark.parametrize(
    ("arguments", "tokens"),
    [
        ([], False),
        (["--host", "localhost"], False),
        (["--token-auth"], True),
        (["--host", "0.0.0.0"], True),
        (["--host", "192.0.2.7"], True),
    ],
)
def test_whatever_others_can_reach_asks_for_tokens(arguments: list[str], tokens: bool) -> None:
    assert Settings.from_arguments(arguments).tokens is tokens
