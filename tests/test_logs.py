"""The log of a real server: a line for every request where they are wanted, as JSON, and nothing of what was sent."""

import json
from datetime import datetime
from pathlib import Path

import httpx

from tests.server import running_server
from tests.serving import JPEG, PATH


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


def test_without_being_asked_it_writes_no_line_for_a_request(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path) as server:
        before = server.log
        httpx.post(server.url + PATH, content=JPEG, timeout=30)
        httpx.post(server.url + PATH, content=b"noise", timeout=30)
        assert server.stop() == 0
        assert server.log == before
