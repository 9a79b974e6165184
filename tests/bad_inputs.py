"""The table of bad inputs: one row a request, with the status and the reason that it gets from each front.

Rows that begin with a picture reach TorchServe's handler as well, which must answer as the native front does. What
ends at TorchServe's Java server gets Java's answer; it is written down here as it is, not as it should be.
"""

import gzip
from collections.abc import Callable
from functools import partial

from PIL import Image

from handlers.service import MAX_K
from images.decode import MAX_BYTES, MAX_PIXELS, MAX_SIDE
from tests import bad_pictures as bad
from tests.bad_case import SAME, WAITS, Case, Differs, chunked, form, http
from tests.bad_json import JSON
from tests.bad_pictures import PHOTO, on_white, plain
from tests.pictures import encode, encode_with_orientation, scene
from tests.serving import JPEG, PATH

FORM = "content-type: multipart/form-data; boundary=x"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
SCRIPT = b"<script>alert(document.domain)</script>"
ZIP = b"PK\x03\x04" + bytes(60) + b"PK\x05\x06" + bytes(18)
OVER = 20 << 20  # bytes


def refused(name: str, picture: bytes | Callable[[], bytes], status: int, *words: str) -> Case:
    """A picture that neither front takes."""
    make = picture if callable(picture) else partial(bytes, picture)
    return Case(name, lambda: http(make()), status, words, SAME)


def taken(name: str, picture: bytes | Callable[[], bytes], like: bytes, cosine: float = 1.0) -> Case:
    """An unusual picture, and the plain one that it looks like."""
    make = picture if callable(picture) else partial(bytes, picture)
    return Case(name, lambda: http(make()), 200, ("embedding",), SAME, like, cosine)


def halved(format: str, **options: object) -> Case:
    data = encode(scene(100, 75), format, **options)
    name = " ".join([*options, format])
    return refused(f"half a {name}", data[: len(data) // 2], 400, f"damaged {format}", "send a whole one")


def oriented(number: int) -> Case:
    data = encode_with_orientation(PHOTO, number, quality=95)
    return taken(f"orientation {number}", data, plain(bad.upright(data)), 0.999)


BOMBS = (
    refused("169 megapixels in 20 KB", bad.bomb, 413, "13000 x 13000", str(MAX_PIXELS)),
    refused("a PNG of 65000 x 65000", bad.png(65000, 65000), 413, "65000 x 65000", str(MAX_SIDE)),
    refused("a JPEG of 65000 x 65000", bad.jpeg_header(65000, 65000), 413, "65000 x 65000", str(MAX_SIDE)),
    refused("a WebP of 13000 x 13000", bad.webp_header(13000, 13000), 413, "13000 x 13000", "smaller version"),
    refused("a WebP of 8192 x 8191 in 34 bytes", bad.webp_of_one_colour(), 413, "8192 x 8191", "smaller version"),
    refused("a GIF of 65000 x 65000", bad.gif_header(65000, 65000), 413, "65000 x 65000", str(MAX_SIDE)),
    refused("a GIF's frame of 60000 x 60000", bad.gif_frame(60000, 60000), 413, "too large", "smaller version"),
    refused("a side of 16385", bad.png(MAX_SIDE + 1, 1), 413, f"{MAX_SIDE + 1} x 1 ", str(MAX_SIDE)),
    refused("a text of 100 MB in a PNG", lambda: bad.inflating(b"zTXt", b"Comment"), 400, "damaged PNG", "too large"),
    refused("a profile of 100 MB in a PNG", lambda: bad.inflating(b"iCCP", b"icc"), 400, "damaged PNG", "too large"),
    taken("100 MB of pixels too many in a PNG", bad.surplus_pixels, plain(PHOTO)),
    taken("a GIF of 50,000 frames", bad.many_frames, plain(PHOTO.quantize(64))),
    taken("two thousand million frames", bad.countless_frames, plain(PHOTO)),
)

DAMAGED = (
    refused("nothing", b"", 400, "empty", "0 bytes"),
    refused("noise", bytes(range(7, 256)) * 40, 415, "unsupported format", "first bytes"),
    refused("zeros, as many as are taken", lambda: bytes(MAX_BYTES), 415, "unsupported format", "first bytes"),
    halved("JPEG"),
    halved("JPEG", progressive=True),
    halved("PNG"),
    halved("WEBP"),
    halved("WEBP", lossless=True),
    halved("GIF"),
    refused("three bytes of a JPEG", b"\xff\xd8\xff", 400, "damaged JPEG"),
    refused("eight bytes of a PNG", b"\x89PNG\r\n\x1a\n", 400, "damaged PNG"),
    refused("six bytes of a GIF", b"GIF89a", 400, "damaged GIF"),
    refused("twelve bytes of a WebP", b"RIFF\x04\0\0\0WEBP", 400, "damaged WEBP"),
    refused("a PNG without an end", encode(PHOTO, "PNG")[:-40], 400, "damaged PNG"),
    refused("a PNG with a wrong checksum", bad.wrong_checksum(), 400, "damaged PNG"),
    refused("a PNG without pixels", bad.png(60, 44), 400, "damaged PNG"),
    refused("a PNG of no width", bad.png(0, 44), 400, "damaged PNG"),
    refused("a JPEG of no height", bad.jpeg_header(120, 0), 400, "damaged JPEG"),
)

FOREIGN = (
    *(refused(f"Pillow's {name}", data, 415, "unsupported", "send JPEG") for name, data in bad.FOREIGN.items()),
    refused("SVG", SVG, 415, "'SVG'"),
    refused("HTML", b"<!DOCTYPE html><html>" + SCRIPT, 415, "'HTML'"),
    refused("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", 415, "'HEIC'"),
    refused("a video", b"\0\0\0\x18ftypisom\0\0\0\0", 415, "'MP4 video'"),
    refused("an archive", ZIP, 415, "'ZIP'"),
    refused("a photo, compressed once more", gzip.compress(JPEG, mtime=0), 415, "'gzip'", "send JPEG"),
)

POLYGLOTS = (
    taken("a photo that is an archive too", bad.jpeg_and(ZIP), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("a photo that is a script too", bad.jpeg_and(SCRIPT), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("a PNG with a script in its comment", bad.with_chunk(b"tEXt", b"Comment\0" + SCRIPT), plain(PHOTO)),
    taken("a photo and 16 MB behind it", bad.padded, plain(bad.seen(bad.jpeg_and(b"")))),
    refused("a script that begins as a GIF", b"GIF89a=1;" + SCRIPT, 400, "damaged GIF"),
    refused("a document with a photo in it", b"%PDF-1.7\n" + JPEG, 415, "'PDF'"),
    refused("an archive with a photo in it", ZIP + JPEG, 415, "'ZIP'"),
)

UNUSUAL = (
    *map(oriented, range(1, 9)),
    taken("orientation 9, which there is not", encode_with_orientation(PHOTO, 9, "PNG"), plain(PHOTO)),
    taken("damaged EXIF", encode(PHOTO, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), plain(PHOTO)),
    taken("CMYK", encode(PHOTO.convert("CMYK"), quality=95), plain(PHOTO), 0.999),
    taken("grey", encode(PHOTO.convert("L"), "PNG"), plain(PHOTO.convert("L"))),
    taken("black and white", encode(PHOTO.convert("1"), "PNG"), plain(PHOTO.convert("1"))),
    taken("grey of 16 bits", bad.sixteen_bit_grey(), plain(PHOTO.convert("L"))),
    taken("colours of 16 bits", bad.sixteen_bit_colour(), plain(PHOTO)),
    taken("a palette", encode(PHOTO.quantize(64), "PNG"), plain(PHOTO.quantize(64))),
    taken(
        "a palette with a transparent colour",
        bad.transparent_palette(),
        on_white(bad.seen(bad.transparent_palette(), "RGBA")),
    ),
    taken("alpha", encode(bad.CLEAR, "PNG"), on_white(bad.CLEAR)),
    taken("alpha in a WebP", encode(bad.CLEAR, "WEBP", lossless=True, exact=True), on_white(bad.CLEAR)),
    taken("grey with alpha", encode(bad.CLEAR.convert("LA"), "PNG"), on_white(bad.CLEAR.convert("LA"))),
    taken("alpha that hides nothing", encode(PHOTO.convert("RGBA"), "PNG"), plain(PHOTO)),
    taken("an animated GIF", bad.animated("GIF"), plain(bad.seen(bad.animated("GIF")))),
    taken("an animated WebP", bad.animated("WEBP", lossless=True), plain(PHOTO)),
    taken("an animated PNG", bad.animated("PNG"), plain(PHOTO)),
    taken("several pictures in a JPEG", bad.animated("MPO", quality=95), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("a progressive JPEG", encode(PHOTO, quality=95, progressive=True), plain(bad.seen(bad.jpeg_and(b"")))),
    taken("one pixel", encode(Image.new("RGB", (1, 1), "teal"), "PNG"), plain(Image.new("RGB", (8, 8), "teal"))),
    taken(
        "a line of 16384 pixels",
        encode(Image.new("RGB", (MAX_SIDE, 1), "teal")),
        plain(Image.new("RGB", (8, 8), "teal")),
        0.999,
    ),
)


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
    name: str, status: int, word: str, body: bytes, boundary: str = "; boundary=x", torchserve: object = SAME
) -> Case:
    """A form that holds nothing to answer."""
    kind = f"content-type: multipart/form-data{boundary}"
    return Case(name, lambda: http(body, kind), status, (word,), torchserve)


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


def wire(name: str, request: bytes | Callable[[], bytes], status: int, *words: str, **more: object) -> Case:
    """A request as bytes."""
    return Case(name, request if callable(request) else partial(bytes, request), status, words, **more)


def of_type(kind: str, body: bytes = JPEG) -> Case:
    """A content type that is not taken."""
    words = ("content type", "image/*", "multipart/form-data")
    return wire(f"a body of {kind}", http(body, f"content-type: {kind}"), 415, *words, torchserve=SAME)


def coded(coding: str, body: bytes, *headers: str, path: str = PATH, torchserve: object = None) -> Case:
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
        plain(bad.seen(bad.jpeg_and(b""))),
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
        wire(f"{method} {PATH}", http(method=method), 405, method, "POST or PUT", torchserve=java)
        for method, java in (("GET", EMPTY), ("DELETE", EMPTY), ("PATCH", EMPTY))
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

PICTURES = (*BOMBS, *DAMAGED, *FOREIGN, *POLYGLOTS, *UNUSUAL)
TABLE = (*PICTURES, *OPTIONS, *FORMS, *TYPES, *SIZES, *PATHS, *WIRE, *SLOW, *JSON)
