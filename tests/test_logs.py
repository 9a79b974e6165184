"""The log of a real server: a line for every request where they are wanted, as JSON, and nothing of what was sent."""

import json
import threading
import time
from datetime import datetime
from pathlib import Path

import httpx

from encoder.session import Encoder
from handlers.service import Service
from tests.server import running_server
from tests.serving import JPEG, PATH, connect, front_with, post_head, talk


def test_every_request_is_a_line_of_json_with_its_id_and_its_stages(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path, ["--log", "json", "--access-log"]) as server:
        good = httpx.post(server.url + PATH + "?k=1", content=JPEG, headers={"x-request-id": "mine"}, timeout=30)
        bad = httpx.post(server.url + PATH, content=b"noise", timeout=30)
        httpx.put(server.url + "/index/a%0Ab", content=JPEG, timeout=30)
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    first, second, third = lines
    assert first["request"] == "mine" and second["request"] == bad.headers["x-request-id"]
    assert (first["method"], first["path"], first["status"], first["bytes"]) == ("POST", PATH, 200, len(JPEG))
    assert set(first["stages_ms"]) == {"queue", "decode", "embed", "search"}
    assert first["ms"] >= good.json()["timing_ms"]["embed"]
    assert (second["status"], second["client"], second["level"]) == (415, "127.0.0.1", "info")
    assert third["path"] == "/index/a\nb"  # one line still
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)


def test_nobody_is_answered_or_leaves_without_a_line(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path, ["--log", "json", "--access-log"]) as server:
        httpx.get(server.url + "/healthz", timeout=30)
        httpx.get(server.url + "/nowhere", timeout=30)
        rows = {"content-type": "application/x-ndjson"}
        httpx.post(server.url + "/index/bulk", content=b'{"id": "a", "delete": true}\n', headers=rows, timeout=30)
        httpx.post(server.url + "/index/bulk", content=b"", headers={"content-type": "text/plain"}, timeout=30)
        with connect(server) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 400"
        with connect(server) as connection:
            connection.sendall(post_head("content-length: 100") + b"half")
        deadline = time.monotonic() + 30
        while len(lines := [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]) < 6:
            assert time.monotonic() < deadline, server.log
            time.sleep(0.02)
    assert [line["status"] for line in lines] == [200, 404, 200, 415, 400, 499]
    assert [line.get("path") for line in lines] == ["/healthz", "/nowhere", *["/index/bulk"] * 2, None, PATH]
    assert lines[4]["reason"].startswith("not well-formed HTTP/1.1")
    assert len({line["request"] for line in lines}) == 6


def test_the_bytes_of_a_request_are_noted_however_it_ends(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post(PATH, content=JPEG)
        busy, front.admission.capacity = front.admission.submit(gate.wait), 0  # from here on the queue is full
        await client.post(PATH, content=JPEG)
        lines = b'{"id": "a", "delete": true}\n'
        await client.post("/index/bulk", content=lines, headers={"content-type": "application/x-ndjson"})
        gate.set()
        await busy
        assert noted == [(200, len(JPEG)), (503, len(JPEG)), (409, 0)]
        assert front.held_bytes == 0

    gate = threading.Event()
    noted: list[tuple[int, int]] = []
    front = front_with(Service(Encoder.load(seeded_store)))
    front.access_log = lambda request, status, seconds: noted.append((status, request.size))
    talk(front, scenario)


def test_nothing_of_what_was_sent_is_in_the_log(seeded_store: Path, tmp_path: Path) -> None:
    secret = "9c1f0e55d2"
    with running_server(seeded_store, tmp_path, ["--log", "json", "--access-log"]) as server:
        given = {"authorization": f"Bearer {secret}", "x-secret": secret, "cookie": secret}
        with httpx.Client(base_url=server.url, headers=given, timeout=30) as client:
            client.post(f"{PATH}?k=1&fields={secret}", content=JPEG)
            client.post(PATH, content=secret.encode() * 100)
            client.post(PATH, files={secret: (secret, secret.encode())}, data={"k": secret})
            client.put("/index/one", content=JPEG, params={"label": secret})
            client.post("/index/search", json={"vector": [secret], "filter": {secret: secret}})
            client.post("/v1/embeddings", json={"input": secret, "model": "encoder", "user": secret})
            client.post("/index/bulk", content=secret.encode(), headers={"content-type": "application/x-ndjson"})
        assert server.stop() == 0
        assert server.log.count('"akin.access"') == 7
        assert secret not in server.log


def test_without_being_asked_it_writes_no_line_for_a_request(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path) as server:
        before = server.log
        httpx.post(server.url + PATH, content=JPEG, timeout=30)
        httpx.post(server.url + PATH, content=b"noise", timeout=30)
        assert server.stop() == 0
        assert server.log == before
