"""Manners of a real server under load: who has left is not served, who comes too many is told when to come again."""

import asyncio
from pathlib import Path

import httpx
import pytest
from PIL import Image

from encoder.session import Encoder
from handlers.service import Service
from tests.pictures import encode
from tests.server import Server, running_server, wait_until
from tests.serving import JPEG, PATH, assert_refused, connect, front_with, post_head, samples, talk

LARGE = encode(Image.new("RGB", (5000, 5000), "teal"), "PNG")  # 75 KB, and a quarter of a second of decoding
REJECTED = 'akin_rejected_total{reason="%s"}'


def metrics(server: Server) -> dict[str, float]:
    return samples(httpx.get(server.url + "/metrics", timeout=30).text)


def until(server: Server, name: str, value: float) -> None:
    wait_until(lambda: metrics(server).get(name, 0) >= value, lambda: metrics(server))


def test_a_request_whose_client_has_left_while_it_waited_is_not_computed(seeded_store: Path, tmp_path: Path) -> None:
    with running_server(seeded_store, tmp_path, ["--threads", "1"]) as server:
        busy, left = connect(server), [connect(server) for _ in range(5)]
        form = b"".join(b"--x\r\n\r\n%b\r\n" % LARGE for _ in range(6)) + b"--x--\r\n"
        kind = "content-type: multipart/form-data; boundary=x"
        busy.sendall(post_head(kind, f"content-length: {len(form)}") + form)
        until(server, "akin_jobs_in_flight", 1)
        for connection in left:
            connection.sendall(post_head(f"content-length: {len(JPEG)}") + JPEG)
        until(server, "akin_jobs_in_flight", 6)
        for connection in left:
            connection.close()
        until(server, REJECTED % "client gone", 5)
        assert busy.recv(12) == b"HTTP/1.1 200"
        busy.close()
        assert metrics(server)['akin_requests_total{status="200"}'] == 1


def test_more_work_than_may_wait_gets_503_with_the_time_to_come_again_and_then_all_is_well(
    seeded_store: Path, tmp_path: Path
) -> None:
    async def flood(url: str) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post(PATH, content=LARGE) for _ in range(40)))

    with running_server(seeded_store, tmp_path, ["--threads", "1", "--max-wait-ms", "300"]) as server:
        for _ in range(2):  # until it knows what such a request takes
            httpx.post(server.url + PATH, content=LARGE, timeout=30)
        answers = asyncio.run(flood(server.url))
        good = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert good and len(good) + len(refused) == 40 and len(refused) > 20
        for answer in refused:
            assert_refused(answer, 503, "requests wait already", "send again")
            assert int(answer.headers["retry-after"]) >= 1
        assert metrics(server)[REJECTED % "queue full"] == len(refused)
        assert httpx.post(server.url + PATH, content=JPEG, timeout=30).status_code == 200


@pytest.mark.parametrize("path", [PATH, "/index/search?k=1"])
def test_more_bytes_than_may_be_held_get_503_and_are_let_go(
    seeded_store: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.exchange.MAX_HELD_BYTES", 100_000)

    async def pieces() -> object:
        for _ in range(30):
            yield bytes(10_000)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert_refused(await client.post(path, content=pieces()), 503, "100000 bytes", "send again")
        assert front.held_bytes == 0
        assert (await client.post(PATH, content=JPEG)).status_code == 200
        assert front.held_bytes == 0

    front = front_with(Service(Encoder.load(seeded_store)))
    talk(front, scenario)
