"""What must not knock the server over: bad images, options, forms and bodies, clients that go away."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from encoder.session import Encoder
from images.decode import MAX_BYTES
from tests.pictures import encode, scene
from tests.server import Server
from tests.serving import JPEG, OTHER, PATH, assert_refused, connect, post_head, read_answer, vector_of


@pytest.fixture(autouse=True)
def served_on(server: Server, seeded_store: Path) -> Iterator[None]:
    """After every bad request: the same process, no traceback in its log, the next good request right."""
    yield
    assert server.process.poll() is None
    answer = httpx.post(server.url + PATH, content=JPEG, timeout=30)
    assert answer.status_code == 200
    expected = vector_of(Encoder.load(seeded_store), JPEG)
    np.testing.assert_allclose(answer.json()["embedding"], expected, atol=1e-6)
    assert "Traceback" not in server.log


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A 1-bit grey PNG of these dimensions, whatever stands in it."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(pixels, 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def bomb() -> bytes:
    """169 megapixels in some 20 KB."""
    return png(13000, 13000, bytes(13000 * (1 + 13000 // 8)))


# Images, options and forms


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 400, "empty"),
        (bytes(range(7, 256)) * 40, 415, "unsupported"),
        (JPEG[: len(JPEG) // 2], 400, "damaged JPEG"),
        (OTHER[: len(OTHER) // 2], 400, "damaged PNG"),
        (bomb(), 413, "13000 x 13000"),
        (png(65000, 65000), 413, "65000 x 65000"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, "SVG"),
        (b"%PDF-1.7\n%", 415, "PDF"),
        (encode(scene(20, 20), "TIFF"), 415, "TIFF"),
    ],
    ids=["empty", "noise", "half JPEG", "half PNG", "bomb", "65000", "SVG", "PDF", "TIFF"],
)
def test_a_bad_image_is_refused_with_a_reason(
    client: httpx.Client, body: bytes, status: int, word: str
) -> None:
    assert_refused(client.post(PATH, content=body), status, word)


@pytest.mark.parametrize("k", ["-1", "1.5", "1000000000", "x", ""])
def test_a_bad_k_is_refused_with_its_value_and_the_limit(client: httpx.Client, k: str) -> None:
    assert_refused(client.post(PATH, params={"k": k}, content=JPEG), 400, f"k is {k!r}", "1000")
    assert_refused(client.post(PATH, headers={"akin-k": k}, content=JPEG), 400, f"k is {k!r}")
    assert_refused(client.post(PATH, data={"k": k}, files={"image": JPEG}), 400, f"k is {k!r}")


def test_k_of_zero_means_no_neighbors(client: httpx.Client) -> None:
    assert "neighbors" not in client.post(PATH, params={"k": "0"}, content=JPEG).json()


def test_an_unknown_field_is_refused(client: httpx.Client) -> None:
    assert_refused(client.post(PATH, params={"fields": "bogus"}, content=JPEG), 400, "'bogus'", "embedding")


@pytest.mark.parametrize("content_type", ["text/plain", "application/json", "video/mp4", "multipart/mixed"])
def test_another_content_type_is_refused_with_the_way_out(client: httpx.Client, content_type: str) -> None:
    refused = client.post(PATH, content=JPEG, headers={"content-type": content_type})
    assert_refused(refused, 415, content_type, "multipart/form-data")


@pytest.mark.parametrize(
    ("content_type", "body", "word"),
    [
        ("multipart/form-data", b"--x", "no boundary"),
        ("multipart/form-data; boundary=", b"--x", "no boundary"),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--x", "broken"),
        ("multipart/form-data; boundary=x", b"no boundary at all", "broken"),
        ("multipart/form-data; boundary=x", b"", "before its closing boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nnever ends", "before its closing boundary"),
        ("multipart/form-data; boundary=x", b"--x\r\nname\r\n\r\n1\r\n--x--\r\n", "broken"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="k"\r\n\r\n1\r\n--x--\r\n',
            "no image",
        ),
    ],
)
def test_a_broken_form_is_refused(client: httpx.Client, content_type: str, body: bytes, word: str) -> None:
    refused = client.post(PATH, content=body, headers={"content-type": content_type})
    assert_refused(refused, 400, word, "curl")


def test_too_many_images_in_a_form_are_refused(client: httpx.Client) -> None:
    files = [("image", ("x", b"x")) for _ in range(129)]
    assert_refused(client.post(PATH, files=files), 413, "128 images")


def test_an_unknown_model_is_refused_by_naming_the_one_there_is(client: httpx.Client) -> None:
    assert_refused(client.post("/predictions/bogus", content=JPEG), 404, "'bogus'", "'encoder'")
    assert_refused(client.post("/predictions/", content=JPEG), 404, "'encoder'")


@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
def test_another_method_is_refused(client: httpx.Client, method: str) -> None:
    refused = client.request(method, PATH)
    assert_refused(refused, 405, method, "POST")
    assert refused.headers["allow"] == "POST, PUT"


# Bodies over the cap, and clients that go away


def test_a_declared_body_over_the_cap_is_refused_before_it_is_sent(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(post_head("content-length: 20971520"))
        status, body = read_answer(connection)
    assert status == 413
    assert "20971520" in body["error"] and str(MAX_BYTES) in body["error"]


def test_a_chunked_body_is_refused_as_soon_as_it_exceeds_the_cap(server: Server) -> None:
    chunk = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    with connect(server) as connection:
        connection.sendall(post_head("transfer-encoding: chunked"))
        for _ in range(17):  # and never the last one
            connection.sendall(chunk)
        status, body = read_answer(connection)
    assert status == 413
    assert str(MAX_BYTES) in body["error"]


def chunks_of(size: int) -> Iterator[bytes]:
    for _ in range(size >> 16):
        yield bytes(1 << 16)


@pytest.mark.parametrize("body", [bytes(20 << 20), chunks_of(20 << 20)], ids=["declared", "chunked"])
def test_a_client_that_sends_all_of_it_first_still_reads_the_refusal(
    server: Server, body: bytes | Iterator[bytes]
) -> None:
    assert_refused(httpx.post(server.url + PATH, content=body, timeout=30), 413, str(MAX_BYTES))


def test_the_largest_body_is_read_and_judged_by_what_it_is(client: httpx.Client) -> None:
    assert_refused(client.post(PATH, content=bytes(MAX_BYTES)), 415)


def test_a_client_that_hangs_up_in_mid_body_leaves_no_trace(server: Server) -> None:
    before = server.log
    for _ in range(5):
        with connect(server) as connection:
            connection.sendall(post_head("content-length: 5000"))
            connection.sendall(JPEG[:100])
    assert server.log == before


def test_a_client_that_does_not_wait_for_the_answer_leaves_no_trace(server: Server) -> None:
    before = server.log
    for _ in range(5):
        with connect(server) as connection:
            connection.sendall(post_head(f"content-length: {len(JPEG)}") + JPEG)
    assert server.log == before


def test_a_slow_client_keeps_nobody_waiting(server: Server) -> None:
    with connect(server) as slow:
        slow.sendall(post_head(f"content-length: {len(JPEG)}"))
        slow.sendall(JPEG[:10])
        assert httpx.post(server.url + PATH, content=JPEG, timeout=30).status_code == 200
        slow.sendall(JPEG[10:])
        assert read_answer(slow)[0] == 200


def test_what_is_not_http_gets_400(server: Server) -> None:
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
