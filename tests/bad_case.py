"""A row of the table of bad inputs: the bytes of one request, what each front must answer, and how to find out."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np

from encoder.session import Encoder
from tests.server import Answer, read_answer
from tests.serving import PATH, vector_of

PATIENCE_SECONDS = 30.0  # after which a test gives up on the server
DRIP_SECONDS = 0.02


@dataclass(frozen=True)
class Differs:
    """TorchServe's own answer: its Java server's, or our handler's to what Java has made of the request."""

    status: int
    word: str = ""


SAME: Literal["same"] = "same"  # TorchServe's handler answers as the native front does
WAITS: Literal["waits"] = "waits"  # TorchServe has no limit here, and says nothing for as long as the client stays
OnTorchServe = Literal["same", "waits"] | Differs | None  # None: the native front alone has such a route


@dataclass(frozen=True)
class Case:
    """One request, and what becomes of it."""

    name: str
    request: Callable[[], bytes]  # as it goes over the wire
    status: int
    words: tuple[str, ...] = ()  # in the answer, on the native front and from TorchServe's handler
    torchserve: OnTorchServe = None
    allow: str | None = None  # the header of that name
    like: bytes | None = None  # a plain picture, whose embedding the answer has
    cosine: float = 1.0  # to it, at least; 1: the same but for rounding
    drip: bytes = b""  # sent again and again, behind the request, until an answer comes


def http(body: bytes = b"", *headers: str, path: str = PATH, method: str = "POST") -> bytes:
    """A request with its body whole, and a content-length unless `headers` say how long it is."""
    lines = [f"{method} {path} HTTP/1.1", "host: akin", *headers]
    if not any(line.startswith(("content-length:", "transfer-encoding:")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(body: bytes, size: int, *headers: str) -> bytes:
    """A request whose body comes in chunks of `size` bytes."""
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    coded = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return http(coded + b"0\r\n\r\n", "transfer-encoding: chunked", *headers)


def form(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body with the boundary x."""
    head = b'--x\r\ncontent-disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    return b"".join(head % (name.encode(), data) for name, data in parts) + b"--x--\r\n"


def converse(port: int, case: Case) -> Answer:
    """Send the request and read the answer, as a client that sends all of it first."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        with suppress(ConnectionError):  # an answer may have come before the end of what was sent
            connection.sendall(case.request())
            if case.drip:
                _drip(connection, case.drip)
        return read_answer(connection)


def ask(port: int, request: bytes) -> Answer:
    """The answer to a good request."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(request)
        return read_answer(connection)


def assert_answered(answer: Answer, case: Case, encoder: Encoder) -> None:
    """The status and the reason of the case; where all is well, the embedding of the picture that it looks like."""
    assert answer.status == case.status, answer.body[:500]
    assert answer.headers.get("allow") == case.allow
    text = answer.body.decode() if answer.status == 200 else reason_of(answer, case)
    for word in case.words:
        assert word in text
    if case.like is not None:
        got, expected = np.array(answer.json["embedding"]), vector_of(encoder, case.like)
        if case.cosine == 1:
            np.testing.assert_allclose(got, expected, atol=1e-6)
        else:
            assert got @ expected >= case.cosine


def reason_of(answer: Answer, case: Case) -> str:
    """The text of an error, in our own form or in that of the protocol to which the path belongs."""
    assert answer.headers["content-type"] == "application/json"
    body, target = answer.json, case.request().split(b" ", 2)[1]
    if not target.startswith((b"/v1/", b"/v2/")):
        assert body["status"] == answer.status
        assert isinstance(body["error"], str)
    return body["error"]["message"] if isinstance(body["error"], dict) else body["error"]


def _drip(connection: socket.socket, piece: bytes) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not select.select([connection], [], [], DRIP_SECONDS)[0]:
        assert time.monotonic() < deadline, "no answer"
        connection.sendall(piece)
