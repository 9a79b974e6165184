"""Starting and stopping the native front: real processes, and one clear line for each that cannot start."""

import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest

from encoder.manifest import Manifest
from encoder.session import Encoder
from handlers.native import Settings
from index.gallery import Gallery
from tests.pictures import encode, scene
from tests.server import ROOT, read_answer, running_server, start
from tests.serving import JPEG, OTHER, PATH, connect, vector_of


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_request_under_way_finish_and_exits_with_zero(
    seeded_store: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with running_server(seeded_store, tmp_path) as server, connect(server) as connection:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(JPEG)}\r\n\r\n"
        )
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100")  # it is under way
        server.process.send_signal(number)
        connection.sendall(JPEG)
        assert read_answer(connection).status == 200
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log
        with pytest.raises(ConnectionRefusedError):
            connect(server)


def test_a_folder_of_images_is_embedded_and_searched_without_its_damaged_files(
    seeded_store: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "a.jpg").write_bytes(JPEG)
    (photos / "deep" / "b.png").write_bytes(OTHER)
    (photos / "broken.jpg").write_bytes(JPEG[:100])
    for added in ("2 images added", "0 images added"):  # the second start finds them there
        with running_server(seeded_store, tmp_path, ["--images", str(photos)]) as server:
            neighbors = httpx.post(server.url + PATH, params={"k": 9}, content=OTHER).json()["neighbors"]
            assert [neighbor["id"] for neighbor in neighbors] == ["deep/b.png", "a.jpg"]
            assert added in server.log and "broken.jpg" in server.log


def test_another_process_adds_a_row_and_the_next_search_finds_it(seeded_store: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(seeded_store)
    manifest = encoder.manifest
    with running_server(seeded_store, tmp_path) as server:
        assert httpx.get(server.url + "/").json()["gallery_rows"] == 3
        with Gallery.open(tmp_path / "var/gallery", manifest.model_digest, manifest.dimension) as gallery:
            gallery.add(["new"], vector_of(encoder, JPEG)[None], ["dog"])
        found = httpx.post(server.url + PATH, params={"k": 1}, content=JPEG).json()["neighbors"]
        assert found[0]["id"] == "new" and found[0]["score"] == pytest.approx(1, abs=1e-5)


def test_what_akin_index_adds_to_a_folder_that_is_served_is_found_by_the_next_search(
    seeded_store: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(JPEG)
    with running_server(seeded_store, tmp_path, ["--images", "photos"]) as server:
        ask = partial(httpx.post, server.url + PATH, params={"k": 9}, content=OTHER, timeout=30)
        assert [near["id"] for near in ask().json()["neighbors"]] == ["a.jpg"]
        (photos / "new.png").write_bytes(OTHER)
        command = [sys.executable, ROOT / "akin.py", "index", "add", "photos", "--model-store", seeded_store]
        added = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert added.returncode == 0, added.stderr
        assert "1 images added" in added.stdout and "1 were already there" in added.stdout
        first, second = ask().json()["neighbors"]
        assert (first["id"], first["score"]) == ("new.png", pytest.approx(1, abs=1e-5)) and second["id"] == "a.jpg"
        thumbnail = httpx.get(server.url + "/thumbnails/new.png", timeout=30)
        assert thumbnail.headers["content-type"] == "image/webp"


def test_an_index_that_is_named_keeps_what_was_put_even_where_the_server_is_killed(
    seeded_store: Path, tmp_path: Path
) -> None:
    encoder = Encoder.load(seeded_store)
    arguments = ["--index", "here/rows", "--factory", "HNSW32,SQ8", "--ram", "500MB"]
    with running_server(seeded_store, tmp_path, arguments) as server:
        assert httpx.get(server.url + "/index").json()["rows"] == 0  # only the default one is seeded
        assert httpx.put(server.url + "/index/a", params={"label": "cat"}, content=JPEG).status_code == 200
        lines = b'{"id": "b", "vector": [%s]}\n' % b",".join([b"1"] * encoder.manifest.dimension)
        kind = {"content-type": "application/x-ndjson"}
        assert httpx.post(server.url + "/index/bulk", content=lines, headers=kind).json()["status"] == 200
        server.process.kill()
        server.process.wait()
    manifest = encoder.manifest
    with Gallery.open(tmp_path / "here/rows", manifest.model_digest, manifest.dimension) as gallery:
        assert [record.label for record in gallery.get(["a", "b"]) if record is not None] == ["cat", None]


def test_images_of_a_source_have_thumbnails_where_they_are_asked_for(seeded_store: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(JPEG)
    with running_server(seeded_store, tmp_path, ["--images", "photos", "--thumbnails"]) as server:
        assert httpx.get(server.url + "/thumbnails/a.jpg").headers["content-type"] == "image/webp"


def test_a_cluster_keeps_its_thumbnails_on_this_machine() -> None:
    here, there = Settings(index="var/rows"), Settings(index="milvus://host:19530")
    assert here.where == here.thumbnails_folder == Path("var/rows")
    assert there.where == "milvus://host:19530"
    assert there.thumbnails_folder.parent == Path("var/thumbnails")
    assert there.thumbnails_folder != Settings(index="milvus://other:19530").thumbnails_folder


def spoil_artifact(model_store: Path) -> None:
    content = bytearray((model_store / "encoder.int8.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (model_store / "encoder.int8.onnx").write_bytes(content)


def spoil_golden_vector(model_store: Path) -> None:
    manifest = Manifest.read(model_store)
    first, *others = manifest.golden
    opposite = replace(first, vector=tuple(-value for value in first.vector))
    replace(manifest, golden=(opposite, *others)).write(model_store)


def spoil_seed(model_store: Path) -> None:
    with (model_store / "gallery.npz").open("ab") as seed:
        seed.write(b"x")


def remove_everything(model_store: Path) -> None:
    shutil.rmtree(model_store)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_artifact, ["encoder.int8.onnx", "sha256", "akin export"]),
        (spoil_golden_vector, ["golden vector 0", "cosine -1.0"]),
        (spoil_seed, ["gallery.npz", "sha256", "akin export"]),
        (remove_everything, ["encoder.json", "akin export"]),
    ],
)
def test_a_spoilt_model_store_is_refused_in_one_line_that_names_file_and_way_out(
    seeded_store: Path, tmp_path: Path, spoil: Callable[[Path], None], words: list[str]
) -> None:
    spoilt = tmp_path / "model_store"
    shutil.copytree(seeded_store, spoilt)
    spoil(spoilt)
    assert_start_fails(spoilt, tmp_path / "run", [], words)


def test_a_port_in_use_is_refused_in_one_line(seeded_store: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_start_fails(
            seeded_store, tmp_path, ["--port", port], [f"127.0.0.1:{port}", "in use", "--port"]
        )


def test_a_folder_without_images_is_refused_in_one_line(seeded_store: Path, tmp_path: Path) -> None:
    assert_start_fails(
        seeded_store, tmp_path, ["--images", str(tmp_path / "none")], ["none", "does not exist"]
    )


def test_more_connections_than_the_system_allows_are_refused_in_one_line() -> None:
    limited = ["sh", "-c", 'ulimit -n 1024; exec "$0" "$@"', sys.executable, "-m", "handlers.native"]
    refused = subprocess.run([*limited, "--connections", "900"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "900 connections take 1156 open files; the limit is 1024" in line and "--connections" in line


def test_a_thousand_connections_leave_files_for_the_index_where_the_usual_limit_is_set(
    seeded_store: Path, tmp_path: Path
) -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))  # which the server inherits
    try:
        with running_server(seeded_store, tmp_path) as server, ExitStack() as inside:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, 2048), most))
            connections = [inside.enter_context(connect(server)) for _ in range(1000)]
            for connection in connections:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
                assert read_answer(connection).status == 200
            head = f"PUT /index/new HTTP/1.1\r\nhost: x\r\ncontent-length: {len(JPEG)}\r\n\r\n"
            connections[0].sendall(head.encode() + JPEG)
            assert read_answer(connections[0]).status == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))


def assert_start_fails(model_store: Path, folder: Path, arguments: list[str], words: list[str]) -> None:
    process, log_file = start(model_store, folder, arguments)
    assert process.wait(timeout=60) == 1
    (line,) = log_file.read_text().splitlines()
    assert line.startswith("akin: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--port", "99999"], "65535"),
        (["--threads", "0"], "1 to 1024"),
        (["--queue", "many"], "whole number"),
        (["--ram", "lots"], "2GB"),
        (["--index", "a", "--gallery", "b"], "not allowed with"),
    ],
)
def test_a_knob_out_of_range_is_refused_with_its_limit(arguments: list[str], word: str) -> None:
    command = [sys.executable, "-m", "handlers.native", *arguments]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert word in refused.stderr and "Traceback" not in refused.stderr


def test_serving_never_imports_torch() -> None:
    check = "import handlers.native, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, timeout=60).returncode == 0


def test_a_signal_before_it_is_ready_ends_it_with_zero(seeded_store: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    picture = encode(scene(1500, 1500), quality=95)
    for number in range(400):  # some seconds of work
        (photos / f"{number}.jpg").write_bytes(picture)
    process, log_file = start(seeded_store, tmp_path, ["--images", str(photos)])
    while process.poll() is None and "embedding" not in log_file.read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert "Traceback" not in log_file.read_text() and "akin serves" not in log_file.read_text()
