"""Who may write: the token, where it comes from, and what a server that others can reach does without one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from encoder.session import Encoder
from handlers.native import Settings, _is_loopback
from handlers.service import RequestError, Service
from handlers.tokens import Access, TokenError, read_token
from tests.brute_index import BruteIndex
from tests.server import Server, read_answer, running_server, start
from tests.serving import JPEG, PATH, assert_refused, connect, front_with, talk

TOKEN = "a3f1c0ffee-token"
ROW = {"vector": [1.0] + [0.0] * 15}
NDJSON = {"content-type": "application/x-ndjson"}


@pytest.fixture(scope="module")
def guarded(seeded_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on all addresses, with a token from a file."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(TOKEN + "\n")
    arguments = ["--token-file", "token", "--host", "0.0.0.0"]
    with running_server(seeded_store, folder, arguments) as server:
        yield server


async def write_everything(client: httpx.AsyncClient, headers: dict[str, str]) -> list[httpx.Response]:
    """Every request that writes."""
    return [
        await client.put("/index/a", json=ROW, headers=headers),
        await client.put("/index/b", content=JPEG, headers=headers),
        await client.post("/index/bulk", content=b'{"id": "c", "delete": true}', headers=headers | NDJSON),
        await client.delete("/index/a", headers=headers),
    ]


def written(url: str, headers: dict[str, str]) -> list[httpx.Response]:
    """`write_everything` to a server."""

    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            return await write_everything(client, headers)

    return asyncio.run(run())


@pytest.mark.parametrize("given", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN}"])
def test_writes_with_the_token_are_done(guarded: Server, given: str) -> None:
    assert [answer.status_code for answer in written(guarded.url, {"authorization": given})] == [200] * 4


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": f"Bearer {TOKEN.upper()}"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
    ],
)
def test_any_other_write_is_401_and_changes_nothing(guarded: Server, headers: dict[str, str]) -> None:
    before = httpx.get(guarded.url + "/index").json()["rows"]
    for answer in written(guarded.url, headers):
        assert_refused(answer, 401, "Authorization: Bearer")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(guarded.url + "/index").json()["rows"] == before


def test_reads_need_no_token(guarded: Server) -> None:
    assert httpx.get(guarded.url + "/index").status_code == 200
    assert httpx.get(guarded.url + "/index/zero").status_code == 200
    assert httpx.post(guarded.url + "/index/search", json=ROW).status_code == 200
    assert httpx.post(guarded.url + PATH, params={"k": 1}, content=JPEG).status_code == 200


def test_the_token_is_nowhere_to_be_read(guarded: Server) -> None:
    written(guarded.url, {"authorization": f"Bearer {TOKEN}"})
    written(guarded.url, {"authorization": f"Basic {TOKEN}"})
    assert TOKEN not in guarded.log and "writes   with the token" in guarded.log
    assert TOKEN not in repr(Access(TOKEN.encode())) + str(Access(TOKEN.encode()))


def test_a_stream_is_refused_before_it_is_read(guarded: Server) -> None:
    with connect(guarded) as connection:
        connection.sendall(
            b"POST /index/bulk HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        assert read_answer(connection).status == 401


@pytest.mark.parametrize("method", [b"PUT", b"DELETE"])
def test_a_row_is_refused_before_it_is_read(guarded: Server, method: bytes) -> None:
    with connect(guarded) as connection:
        connection.sendall(method + b" /index/a HTTP/1.1\r\nhost: x\r\ncontent-length: 20000000\r\n\r\n")
        answer = read_answer(connection)  # and nothing of the body was sent
        assert answer.status == 401 and answer.headers["connection"] == "close"


def test_where_others_can_write_without_a_token_nobody_does(seeded_store: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in await write_everything(client, {"authorization": "Bearer x"}):
            assert_refused(answer, 403, "--token-file", "AKIN_TOKEN", "--open-writes", "127.0.0.1")
        assert (await client.post("/index/search", json=ROW)).status_code == 200
        assert (await client.get("/index")).json()["rows"] == 0

    service = Service(Encoder.load(seeded_store), BruteIndex("", 16))
    talk(front_with(service, access=Access(exposed=True)), scenario)


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--host", "0.0.0.0"], 403), (["--host", "0.0.0.0", "--open-writes"], 200)]
)
def test_a_server_on_all_addresses_takes_writes_only_where_that_was_said(
    seeded_store: Path, tmp_path: Path, arguments: list[str], status: int
) -> None:
    with running_server(seeded_store, tmp_path, arguments) as server:
        assert httpx.put(server.url + "/index/a", json=ROW).status_code == status
        assert ("refused" in server.log) == (status == 403)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(address: str, loopback: bool) -> None:
    assert _is_loopback(address) is loopback


def test_the_file_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AKIN_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("AKIN_TOKEN", "from-the-environment")
    assert read_token(None) == b"from-the-environment"
    (tmp_path / "token").write_text("  from-the-file\r\n")
    assert read_token(tmp_path / "token") == b"from-the-file"


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"two\nlines", "größe".encode(), b"x" * 1025, b"\0"])
def test_what_cannot_be_a_token_is_refused_without_showing_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(TokenError, match="printable ASCII") as refusal:
        read_token(tmp_path / "token")
    assert "two" not in str(refusal.value)


def test_an_empty_variable_is_no_way_to_leave_the_token_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIN_TOKEN", "")
    with pytest.raises(TokenError, match="AKIN_TOKEN has 0 bytes"):
        read_token(None)


def test_a_token_file_that_is_not_there_ends_the_start_in_one_line(seeded_store: Path, tmp_path: Path) -> None:
    process, log_file = start(seeded_store, tmp_path, ["--token-file", "missing"])
    assert process.wait(timeout=60) == 1
    assert log_file.read_text().startswith("akin: no token can be read from missing")
    assert len(log_file.read_text().splitlines()) == 1


def test_the_token_is_compared_whole() -> None:
    access = Access(b"secret")
    access.check_write({b"authorization": b"Bearer secret"})
    for wrong in (b"Bearer secre", b"Bearer secrets", b"Bearer ", b"Bearer \xff", b"secret"):
        with pytest.raises(RequestError):
            access.check_write({b"authorization": wrong})


def test_settings_read_the_knobs_of_writing() -> None:
    settings = Settings.from_arguments(["--token-file", "t", "--open-writes", "--thumbnails"])
    assert (settings.token_file, settings.open_writes, settings.thumbnails) == (Path("t"), True, True)
