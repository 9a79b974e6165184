"""Rows of the table of bad inputs about what surrounds a picture: options, forms, types, sizes, paths, the wire.

Where TorchServe's Java server answers, that is written down here as it is, not as it should be.
"""

import gzip
from collections.abc import Callable
from functools import partial

from handlers.service import MAX_K
from images.decode import MAX_BYTES
from tests import bad_pictures as bad
from tests.bad_case import SAME, WAITS, Case, Differs, OnTorchServe, chunked, form, http
from tests.bad_pictures import plain
from tests.serving import JPEG, PATH

FORM = "content-type: multipart/form-data; boundary=x"
OVER = 20 << 20  # bytes


def option(name: str, value: str, *words: str) -> tuple[Case, ...]:
    """A nonsensical value of `k`, `fields` or `encoding`, in each of the places where it may stand."""
    short = value if len(value) < 20 else f"{value[:12]}..."
    text = value.encode()
    quoted = "".join(f"%{byte:02x}" for byte in text)
    parts = form((name, text), ("image", JPEG))
    rows = [
        Case(f"{name}={short} in the query", lambda: http(JPEG, path=f"{PATH}?{name}={quoted}"), 400, words),
        Case(f"{name}={short} in a form", lambda: http(parts, FORM), 400, words, SAME),
    ]
    if value.isascii() and "\0" not in value:
        rows.append(
            Case(f"{name}={short} in a header", lambda: http(JPEG, f"akin-{name}: {value}"), 400, words, SAME)
        )
    return tuple(rows)


OPTIONS = (
    *(
        row
        for k in ("-1", "1.5", "1000000000", "1e3", "x", "", "NaN")
        for row in option("k", k, f"k is {k!r}", str(MAX_K))
    ),
    *option("k", "9" * 5000, "k is '9999", "...'", str(MAX_K)),
    *option("k", "٣", "k is ", str(MAX_K)),
    *option("k", "5\0", "k is ", str(MAX_K)),
    *option("fields", "bogus", "unknown field 'bogus'", "embedding"),
    *option("fields", "", "unknown field ''", "embedding"),
    *option("fields", "embedding,,label", "unknown field ''", "embedding"),
    *option("fields", ",".join(f"field{n}" for n in range(200)), "unknown field 'field0'", "embedding"),
    *option("fields", "__class__", "unknown field '__class__'", "embedding"),
    *option("encoding", "latin-1", "encoding is 'latin-1'", "base64"),
    Case("a query that is no UTF-8", lambda: http(JPEG, path=f"{PATH}?k=%ff"), 400, ("k is ", str(MAX_K))),
    Case("k twice, of which the later counts", lambda: http(JPEG, path=f"{PATH}?k=2&k=x"), 400, ("k is 'x'",)),
)


def broken_form(
    name: str, status: int, word: str, body: bytes, boundary: str = "; boundary=x", torchserve: OnTorchServe = SAME
) -> Case:
    """A form that holds nothing to answer."""
    kind = f"content-type: multipart/form-data{boundary}"
    words = (word, "curl") if status == 400 else (word,)
    return Case(name, lambda: http(body, kind), status, words, torchserve)


MANY = 10_000
NO_IMAGE = Differs(400, "no image")
JAVA_TRIPS = Differs(500, "ErrorDataDecoderException")
FORMS = (
    broken_form("no boundary", 400, "no boundary", b"--x", "", Differs(415, "first bytes")),
    broken_form(
        "an empty boundary", 400, "no boundary", b"--x", "; boundary=", Differs(500, "StringIndexOutOfBounds")
    ),
    broken_form("a boundary of 5,000 bytes", 400, "broken", b"--x", "; boundary=" + "b" * 5000, NO_IMAGE),
    broken_form("a body without the boundary", 400, "broken", b"no boundary at all", torchserve=NO_IMAGE),
    broken_form("an empty body", 400, "before its closing boundary", b"", torchserve=NO_IMAGE),
    broken_form(
        "a part that never ends", 400, "before its closing boundary", b"--x\r\n\r\nnever ends", torchserve=JAVA_TRIPS
    ),
    broken_form(
        "a part's header without a colon", 400, "broken", b"--x\r\nname\r\n\r\n1\r\n--x--\r\n", torchserve=JAVA_TRIPS
    ),
    broken_form(
        "a part's header of 1 MB",
        400,
        "broken",
        b"--x\r\na: " + b"b" * (1 << 20) + b"\r\n\r\n1\r\n--x--\r\n",
        torchserve=JAVA_TRIPS,
    ),
    broken_form(
        "a part with 10,000 headers",
        400,
        "broken",
        b"--x\r\n" + b"a: b\r\n" * MANY + b"\r\n1\r\n--x--\r\n",
        torchserve=JAVA_TRIPS,
    ),
    broken_form("no image in it", 400, "no image", form(("k", b"1"))),
    broken_form("129 images", 413, "128 images", form(*((f"image{n}", b"x") for n in range(129)))),
    broken_form("10,000 images", 413, "128 images", form(*((f"image{n}", b"x") for n in range(MANY)))),
    broken_form("10,000 times k", 400, "no image", form(*[("k", b"1")] * MANY)),
)


def wire(
    name: str,
    request: bytes | Callable[[], bytes],
    status: int,
    *words: str,
    torchserve: OnTorchServe = None,
    allow: str | None = None,
    drip: bytes = b"",
) -> Case:
    """A request as bytes."""
    make = request if callable(request) else partial(bytes, request)
    return Case(name, make, status, words, torchserve, allow, drip=drip)


def of_type(kind: str, body: bytes = JPEG) -> Case:
    """A content type that is not taken."""
    words = ("content type", "image/*", "multipart/form-data")
    return wire(f"a body of {kind}", http(body, f"content-type: {kind}"), 415, *words, torchserve=SAME)


def coded(coding: str, body: bytes, *headers: str, path: str = PATH, torchserve: OnTorchServe = None) -> Case:
    """A body that would have to be unpacked first."""
    request = http(body, f"content-encoding: {coding}", *headers, path=path)
    return wire(
        f"{len(body)} bytes of {coding} to {path}",
        request,
        415,
        f"'{coding}'",
        "send it as it is",
        torchserve=torchserve,
    )


GZIP_BOMB = gzip.compress(bytes(50 << 20), mtime=0)  # 50 KB
CHUNK = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
HEAD = f"POST {PATH} HTTP/1.1\r\nhost: akin\r\n".encode()
CODED = HEAD + b"transfer-encoding: chunked\r\n\r\n"

TYPES = (
    of_type("text/plain"),
    of_type("application/json"),
    of_type("application/json; charset=nan", b'{"k": NaN}'),
    of_type("application/json; charset=deep", b"[" * 100_000),
    of_type("video/mp4"),
    of_type("multipart/mixed; boundary=x", form(("image", JPEG))),
    wire(
        "JSON that calls itself a picture",
        http(b'{"image": 1}', "content-type: image/jpeg"),
        415,
        "'JSON'",
        torchserve=SAME,
    ),
    coded("gzip", GZIP_BOMB, torchserve=SAME),
    coded("gzip", gzip.compress(JPEG, mtime=0), torchserve=SAME),
    coded("deflate", JPEG, torchserve=SAME),
    coded("br", GZIP_BOMB, "content-type: application/json", path="/index/search"),
    coded("gzip", GZIP_BOMB, "content-type: application/json", path="/v1/embeddings"),
    coded("gzip", GZIP_BOMB, "content-type: application/json", path="/v2/models/encoder/infer"),
    coded("gzip", GZIP_BOMB, "content-type: application/x-ndjson", path="/index/bulk"),
)

TOO_LARGE = Differs(413)  # without a word
NOT_HTTP = Differs(400, "Invalid HTTP message")  # of whatever Java cannot parse, or will not
NO_MODEL = Differs(404, "not found")
EMPTY = Differs(400, "empty")  # every method predicts there

SIZES = (
    wire("20 MB declared and sent", lambda: http(bytes(OVER)), 413, str(OVER), str(MAX_BYTES), torchserve=TOO_LARGE),
    wire(
        "20 MB declared, none sent",
        http(b"", f"content-length: {OVER}"),
        413,
        str(OVER),
        str(MAX_BYTES),
        torchserve=TOO_LARGE,
    ),
    wire(
        "20 MB in chunks", lambda: chunked(bytes(OVER), 1 << 16), 413, f"more than {MAX_BYTES}", torchserve=TOO_LARGE
    ),
    wire(
        "17 MB of chunks without end", lambda: CODED + 17 * CHUNK, 413, f"more than {MAX_BYTES}", torchserve=TOO_LARGE
    ),
    wire(
        "a body that waits to be wanted",
        http(b"", f"content-length: {OVER}", "expect: 100-continue"),
        413,
        str(OVER),
        torchserve=TOO_LARGE,
    ),
    Case(
        "100,000 chunks of one byte",
        lambda: chunked(bad.padded(100_000), 1),
        200,
        ("embedding",),
        SAME,
        like=plain(bad.seen(bad.jpeg_and(b""))),
    ),
    wire("more headers than are taken", lambda: http(JPEG, f"a: {'b' * 20_000}"), 431, "16384", torchserve=NOT_HTTP),
    wire(
        "1,000 headers", http(JPEG, *(f"name-{n}: value-{n}" for n in range(1000))), 431, "16384", torchserve=NOT_HTTP
    ),
    wire(
        "a target longer than is taken", http(JPEG, path=PATH + "?" + "a" * 20_000), 414, "16384", torchserve=NOT_HTTP
    ),
)

PATHS = (
    wire(
        "a model that is not there",
        http(JPEG, path="/predictions/bogus"),
        404,
        "'bogus'",
        "'encoder'",
        torchserve=NO_MODEL,
    ),
    wire("no model", http(JPEG, path="/predictions/"), 404, "''", "'encoder'", torchserve=NO_MODEL),
    wire(
        "a version that is not there",
        http(JPEG, path=f"{PATH}/9.9"),
        404,
        "'9.9'",
        torchserve=Differs(404, "does not exist"),
    ),
    wire(
        "a model's name of 10,000 bytes",
        http(JPEG, path="/predictions/" + "a" * 10_000),
        404,
        "'encoder'",
        torchserve=NOT_HTTP,
    ),
    *(
        wire(f"{method} {path}", http(path=path, method=method), 404, *words, torchserve=java)
        for method, path, words, java in (
            ("POST", "/predictions/../../../../etc/passwd", ("no model '..'", "'encoder'"), NO_MODEL),
            ("POST", "/predictions/..%2f..%2fetc%2fpasswd", ("no model '..'", "'encoder'"), NO_MODEL),
            ("POST", "/predictions/%2e%2e%2fencoder", ("no model '..'", "'encoder'"), NO_MODEL),
            ("POST", "/predictions/encoder%00", ("no model", "'encoder'"), NO_MODEL),
            ("POST", "/predictions/%ff%fe", ("no model", "'encoder'"), NO_MODEL),
            ("GET", "/page/../../../../etc/passwd", ("Not Found", "GET /page/.."), None),
            ("GET", "/page/..%2fpages.py", ("Not Found", "GET /page/.."), None),
            ("GET", "/models/..%2f..%2fetc/index", ("Not Found",), None),
            ("GET", "/models/../index", ("no model '..'", "'encoder'"), None),
            ("GET", "/index/..%2f..%2f..%2fetc%2fpasswd", ("'../../../etc/passwd'", "PUT /index/ID"), None),
            ("GET", "/index/../../../etc/passwd", ("'../../../etc/passwd'", "PUT /index/ID"), None),
            ("DELETE", "/index/..%2f..%2fserver.log", ("'../../server.log'",), None),
            ("GET", "/thumbnails/..%2f..%2f..%2fetc%2fpasswd", ("'../../../etc/passwd'",), None),
            ("GET", "/thumbnails/%00", ("'\\x00'",), None),
            ("GET", "/v2/models/..%2fencoder", ("Not Found",), None),
            ("GET", "/v1/models/../../etc/passwd", ("'../../etc/passwd'", "encoder"), None),
            ("GET", "//etc/passwd", ("Not Found",), None),
        )
    ),
    *(
        wire(
            f"{method} {PATH}", http(method=method), 405, method, "POST or PUT", torchserve=EMPTY, allow="POST, PUT"
        )
        for method in ("GET", "DELETE", "PATCH")
    ),
)

WIRE = (
    wire("TLS", b"\x16\x03\x01 hello\r\n\r\n", 400, "not well-formed HTTP/1.1", torchserve=NOT_HTTP),
    wire(
        "HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        400,
        "not well-formed HTTP/1.1",
        torchserve=Differs(500, "ArrayIndexOutOfBounds"),
    ),
    wire(
        "a length and chunks",
        HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "mend",
        torchserve=EMPTY,
    ),
    wire("two lengths", HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", 400, "mend", torchserve=NOT_HTTP),
    wire("a length below zero", HEAD + b"content-length: -5\r\n\r\n", 400, "mend", torchserve=WAITS),
    wire(
        "a length of 5,000 digits",
        HEAD + b"content-length: " + b"9" * 5000 + b"\r\n\r\n",
        400,
        "mend",
        torchserve=NOT_HTTP,
    ),
    wire("a chunk of no length", CODED + b"zz\r\n", 400, "mend", torchserve=NOT_HTTP),
    wire("a NUL in a header", HEAD + b"a: b\0c\r\n\r\n", 400, "mend", torchserve=NOT_HTTP),
)

SLOW = (
    wire("headers that trickle", HEAD + b"a: ", 408, "headers are not whole", "0.5 s", torchserve=WAITS, drip=b"b"),
    wire(
        "a body that trickles",
        HEAD + b"content-length: 9999\r\n\r\n",
        408,
        "of the body",
        "0.5 s",
        torchserve=WAITS,
        drip=b"b",
    ),
    wire("chunks that trickle", CODED, 408, "of the body", "0.5 s", torchserve=WAITS, drip=b"1\r\nb\r\n"),
    wire(
        "a form that trickles",
        HEAD + FORM.encode() + b"\r\ncontent-length: 9999\r\n\r\n--x\r\n",
        408,
        "of the body",
        torchserve=WAITS,
        drip=b"a",
    ),
)

HTTP = (*OPTIONS, *FORMS, *TYPES, *SIZES, *PATHS, *WIRE, *SLOW)
