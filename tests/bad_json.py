"""Rows of the table of bad inputs whose body is JSON, a row of the index or a tensor: the native front's alone."""

import json
import tarfile
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from handlers.service import MAX_K
from tests.bad_case import Case, http
from tests.bad_pictures import bomb
from tests.pictures import encode, scene

DIMENSION, SIZE = 16, 32  # of the tiny encoder
JSON_TYPE = "content-type: application/json"
SEARCH, ROW, BULK = "/index/search", "/index/bad", "/index/bulk"
EMBEDDINGS, INFER = "/v1/embeddings", "/v2/models/encoder/infer"
VECTOR = [0.5] * DIMENSION
PICTURE = encode(scene(20, 20), "PNG")
PHOTO = b64encode(PICTURE).decode()
DEEP = 100_000
TWICE = "of a key given twice the later counts"
DIGITS = "9" * 5000


def case(name: str, path: str, body: Any, status: int, *words: str, method: str = "POST") -> Case:
    """A body of JSON: bytes as they are, anything else encoded."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    where = {SEARCH: "search", ROW: "row", EMBEDDINGS: "OpenAI", INFER: "OIP"}[path]
    return Case(f"{where}: {name}", lambda: http(data, JSON_TYPE, path=path, method=method), status, words)


def search(name: str, body: Any, *words: str, status: int = 400) -> Case:
    return case(name, SEARCH, body, status, *words)


def row(name: str, body: Any, *words: str, status: int = 400) -> Case:
    return case(name, ROW, body, status, *words, method="PUT")


def openai(name: str, body: Any, *words: str, status: int = 400) -> Case:
    return case(name, EMBEDDINGS, body, status, *words)


def infer(name: str, given: dict[str, Any], *words: str, status: int = 400) -> Case:
    """An input that differs in what is given from one that is right."""
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [PHOTO]} | given
    return case(name, INFER, {"inputs": [tensor]}, status, *words)


def vector(name: str, numbers: str | Sequence[Any], *words: str) -> tuple[Case, Case]:
    """A vector that no row can have, to search with and to store."""
    text = numbers if isinstance(numbers, str) else json.dumps(numbers)
    body = b'{"vector": %b}' % text.encode()
    return search(name, body, *words), row(name, body, *words)


def first(number: str) -> str:
    """A vector whose first number is the one given."""
    return f"[{', '.join([number, *['0.5'] * (DIMENSION - 1)])}]"


def tar_of(name: str, size: int = 0, link: str = "") -> bytes:
    """A tar with one file of zeros; with a link to another file in its place."""
    info = tarfile.TarInfo(name)
    info.size, info.linkname = size, link
    info.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(min(size, 1 << 20))


# A tensor of BYTES behind its JSON: 4 bytes, which say that 4 GB follow.
LYING = (
    json.dumps(
        {
            "inputs": [
                {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4}},
            ]
        }
    ).encode()
    + b"\xff\xff\xff\xff"
)

SYNTAX = tuple(
    make(name, body, *words)
    for name, body, words in (
        ("nothing", b"", ("not JSON",)),
        ("half of an object", b'{"vector": [0.5,', ("not JSON",)),
        ("a list", b"[]", ("a list", "object")),
        ("null", b"null", ("null", "object")),
        ("100,000 lists in each other", b"[" * DEEP, ("not JSON",)),
        ("100,000 objects in each other", b'{"a":' * DEEP, ("not JSON",)),
        ("no UTF-8", b'{"id": "\xff\xfe"}', ("not JSON",)),
        ("half of a character", b'{"id": "\\ud800"}', ("not JSON",)),
        ("UTF-16", '{"id": "zero"}'.encode("utf-16"), ("not JSON",)),
        ("NaN", b'{"k": NaN}', ("not JSON",)),
        ("a comment", b'{"k": 1} // one', ("not JSON",)),
        ("an integer of 5,000 digits", f'{{"k": {DIGITS}}}'.encode(), ("not JSON",)),
    )
    for make in (search, row, openai)
)

VECTORS = (
    *vector("NaN in it", first("NaN"), "not JSON"),
    *vector("Infinity in it", first("-Infinity"), "not JSON"),
    *vector("1e400 in it", first("1e400"), "not JSON"),
    *vector("an integer of 5,000 digits in it", first(DIGITS), "not JSON"),
    *vector("zeros", [0] * DIMENSION, "zero"),
    *vector("true in it", first("true"), "vector[0] is true", "16 numbers"),
    *vector("null in it", first("null"), "vector[0] is null", "16 numbers"),
    *vector("text in it", first('"1"'), "vector[0] is '1'", "16 numbers"),
    *vector("a list in it", first("[1]"), "vector[0] is a list", "16 numbers"),
    *vector("one number too few", VECTOR[1:], "15 numbers", "16"),
    *vector("one number too many", [*VECTOR, 1], "17 numbers", "16"),
    *vector("an object", "{}", "vector is an object", "16 numbers"),
    *vector("a text", '"0.5"', "vector is '0.5'", "16 numbers"),
)

SEARCHES = (
    *(
        search(f"k is {shown}", {"vector": VECTOR, "k": k}, f"k is {shown}", f"from 1 to {MAX_K}")
        for k, shown in (
            *((0, "0"), (-1, "-1"), (MAX_K + 1, "1001"), (1.5, "1.5")),
            *((True, "true"), ("5", "'5'"), (None, "null"), ([], "a list")),
        )
    ),
    search("numbers too large for any length", {"vector": [1e308] * DIMENSION}, "too long or too short"),
    search("numbers too small for any length", {"vector": [5e-324] * DIMENSION}, "too long or too short"),
    search("nothing to search for", {"k": 5}, "names none", "vector"),
    search("two things to search for", {"vector": VECTOR, "id": "zero"}, "vector and id"),
    search("an unknown key", {"id": "zero", "limit": 5}, "'limit'", "min_score"),
    search("an id that is no text", {"id": 5}, "id is 5", "string"),
    search("an id that is not there", {"id": "bogus"}, "'bogus'", status=404),
    search("an id that climbs", {"id": "../../../etc/passwd"}, "'../../../etc/passwd'", status=404),
    search("1,001 vectors", {"vectors": [VECTOR] * 1001}, "vectors is 1001", "1000"),
    search("no vectors", {"vectors": []}, "vectors is 0", "1000"),
    search("more neighbours than are sent", {"vectors": [VECTOR] * 11, "k": MAX_K}, "10000 neighbours"),
    search("a bad vector among good ones", {"vectors": [VECTOR, [1]]}, "vectors[1] has 1 numbers"),
    search("more commas than any search has", b'{"a": [' + b"," * 200_000 + b"]}", "commas", status=413),
    search("a min_score of 2", {"id": "zero", "min_score": 2}, "min_score is 2", "-1 to 1"),
    search("a filter that is no object", {"id": "zero", "filter": "x"}, "filter is 'x'", "write"),
    search("a filter with 17 fields", {"id": "zero", "filter": {f"f{n}": n for n in range(17)}}, "17", "16"),
    search("a filter with 1,001 values", {"id": "zero", "filter": {"f": [*range(1001)]}}, "1001", "1000"),
    search("a filter with a quote in its field", {"id": "zero", "filter": {"a' OR '1'='1": 1}}, "without quotes"),
    search("a filter that compares with nothing", {"id": "zero", "filter": {"year": {"near": 5}}}, "gte"),
    search(TWICE, b'{"id": "zero", "k": 5, "k": 0}', "k is 0"),
)

IMAGES = tuple(
    make(name, {key: image, **also}, *words, status=status)
    for name, image, status, words in (
        ("junk in base64", PHOTO[:8] + "!?" + PHOTO[8:], 400, ("not base64", "data:image/jpeg;base64")),
        ("base64 with line breaks", PHOTO[:76] + "\n" + PHOTO[76:], 400, ("not base64", "without line breaks")),
        ("base64 without its padding", "iVBORw0KGgo", 400, ("not base64",)),
        ("base64 of URLs", "_-" + PHOTO, 400, ("not base64",)),
        ("base64 with letters of elsewhere", "ｉＶＢＯ", 400, ("not base64",)),
        ("base64 of nothing", "", 400, ("empty",)),
        ("base64 of text", b64encode(b"hello there").decode(), 415, ("unsupported", "send JPEG")),
        ("base64 of base64", b64encode(PHOTO.encode()).decode(), 415, ("unsupported", "send JPEG")),
        ("base64 of half a picture", PHOTO[:200], 400, ("damaged PNG",)),
        ("base64 of a bomb", b64encode(bomb()).decode(), 413, ("13000 x 13000",)),
        ("a data URI of a script", "data:text/html;base64," + PHOTO, 415, ("'text/html'",)),
        ("a data URI that is not base64", "data:image/svg+xml,<svg/>", 400, ("without ;base64",)),
        ("a URL", "http://169.254.169.254/latest/meta-data/", 400, ("this server fetches none",)),
        ("a file", "file:///etc/passwd", 400, ("not base64",)),
    )
    for make, key, also in ((search, "image", {}), (row, "image", {}), (openai, "input", {"model": "encoder"}))
)

ROWS = (
    row("neither vector nor image", {"label": "cat"}, "neither", "vector"),
    row("both vector and image", {"vector": VECTOR, "image": PHOTO}, "both"),
    row("an image that is no text", {"image": 5}, "image is 5", "string"),
    row("an unknown key", {"vector": VECTOR, "lable": "cat"}, "'lable'", "label"),
    row("a label that is no text", {"vector": VECTOR, "label": 5}, "label is 5"),
    row("an empty label", {"vector": VECTOR, "label": ""}, "label ''", "non-empty"),
    row(TWICE, b'{"vector": %b, "label": "cat", "label": 5}' % json.dumps(VECTOR).encode(), "label is 5"),
    row("a label with a NUL", {"vector": VECTOR, "label": "a\0"}, "NUL"),
    row("a label of 1,025 bytes", {"vector": VECTOR, "label": "a" * 1025}, "1025 bytes", "1024"),
    row("metadata that is no object", {"vector": VECTOR, "metadata": [1]}, "metadata is a list", "object"),
    row("metadata of 70 KB", {"vector": VECTOR, "metadata": {"a": "b" * 70_000}}, "65535"),
    row(
        "metadata 500 deep",
        b'{"vector": %b, "metadata": %b}' % (json.dumps(VECTOR).encode(), b'{"a":' * 500 + b"1" + b"}" * 500),
        "metadata",
    ),
)


def put(name: str, path: str, status: int, *words: str, body: bytes = b"x", kind: str = "image/png") -> Case:
    """A row whose path, query or content type is wrong."""
    request = http(body, f"content-type: {kind}", path=path, method="PUT")
    return Case(f"row: {name}", lambda: request, status, words)


ADDRESSES = (
    put("no id", "/index/", 404, "names no id"),
    put("an id with a NUL", "/index/%00", 400, "NUL", body=PICTURE),
    put("an id that is no UTF-8", "/index/%ff%fe", 400, "not valid UTF-8", body=PICTURE),
    put("an id of 1,025 bytes", "/index/" + "a" * 1025, 400, "1025 bytes", "1024", body=PICTURE),
    put("an unknown option", f"{ROW}?lable=cat", 400, "'lable'", "label", body=PICTURE),
    put("a query that is no UTF-8", f"{ROW}?label=%ff", 400, "not valid UTF-8", body=PICTURE),
    put(
        "metadata in the query that is no JSON", f"{ROW}?metadata=x", 400, "metadata is 'x'", "not JSON", body=PICTURE
    ),
    put("an image that is none", ROW, 415, "unsupported", "send JPEG"),
    put("another content type", ROW, 415, "'text/html'", "application/json", kind="text/html"),
    put("a model that is not there", "/models/bogus/index/a", 404, "'bogus'", "'encoder'", body=PICTURE),
)


def bulk(name: str, kind: str, body: bytes, *words: str, status: int = 200) -> Case:
    """A stream, which answers with a line for each row."""
    return Case(f"bulk: {name}", lambda: http(body, f"content-type: {kind}", path=BULK), status, words)


NDJSON, TAR = "application/x-ndjson", "application/x-tar"
STREAMS = (
    bulk("lines that are no rows", NDJSON, b"[1]\n{\nnull\n", '"status":400', "line 1", "line 2", "line 3"),
    bulk("deep lines", NDJSON, b"[" * DEEP + b"\n" + b'{"a":' * DEEP, '"status":400', "line 1", "line 2"),
    bulk("a line without an id", NDJSON, b'{"vector": [1]}', "line 1", "id is null"),
    bulk("a vector too short", NDJSON, b'{"id": "a", "vector": [1]}', "1 numbers", '"id":"a","status":400'),
    bulk("no UTF-8", NDJSON, b"\xff\xfe\n", "line 1", "not JSON"),
    bulk("delete and more", NDJSON, b'{"id": "zero", "delete": 1}', '"id":"zero","status":400', "delete"),
    bulk("no tar", TAR, b"x" * 1024, '"status":400', "not a tar"),
    bulk("half a tar", TAR, tar_of("a.png", 5000)[:2000], '"status":400', "ends within"),
    bulk("a tar with a link to a file", TAR, tar_of("a.png", link="/etc/passwd"), '"status":415', "symbolic link"),
    bulk("a file of a terabyte", TAR, tar_of("a.png", 1 << 40)[:2048], '"status":413', "16777216"),
    bulk("a compressed tar", "application/gzip", b"\x1f\x8b", "'application/gzip'", "not compressed", status=415),
    bulk("no content type", "", b"x", "''", TAR, status=415),
)

OPENAI = (
    openai("no model", {"input": PHOTO}, "no model", "'encoder'"),
    openai("a model that is not there", {"model": "gpt-4", "input": PHOTO}, "'gpt-4'", "'encoder'", status=404),
    openai("a model that climbs", {"model": "../encoder", "input": PHOTO}, "'../encoder'", status=404),
    openai("no input", {"model": "encoder"}, "input is null"),
    openai("129 inputs", {"model": "encoder", "input": [PHOTO] * 129}, "129 images", "128"),
    openai("tokens", {"model": "encoder", "input": [1, 2]}, "input[0] is 1"),
    openai("dimensions it has not", {"model": "encoder", "input": PHOTO, "dimensions": 8}, "dimensions is 8", "16"),
    openai("an unknown argument", {"model": "encoder", "input": PHOTO, "n": 2}, "'n'", "input"),
    openai(TWICE, b'{"model": "encoder", "input": "%b", "input": 5}' % PHOTO.encode(), "input is 5"),
    openai("more commas than any request has", b"[" + b"," * 5000 + b"]", "4096 commas"),
)

TENSORS = (
    infer("another input", {"name": "x"}, "'x'", "'image'"),
    infer("another datatype", {"datatype": "FP32"}, "'FP32'", "UINT8"),
    infer("no datatype", {"datatype": None}, "datatype is null", "UINT8"),
    infer("no images", {"shape": [0]}, "0 images", "128"),
    infer("fewer than no images", {"shape": [-1]}, "-1 images", "128"),
    infer("a thousand million images", {"shape": [10**9]}, "1000000000 images", "128"),
    infer("a shape of many sides", {"shape": [1] * 1000}, "shape"),
    infer("a shape that is no list", {"shape": "1"}, "shape", "'1'"),
    infer("more images than the shape says", {"data": [PHOTO, PHOTO]}, "2 images", "says 1"),
    infer("junk in base64", {"data": ["!" + PHOTO]}, "not base64"),
    infer("a bomb", {"data": [b64encode(bomb()).decode()]}, "13000 x 13000", status=413),
    infer("numbers as files", {"data": [5]}, "base64 as a string"),
    infer("pixels of another size", {"datatype": "UINT8", "shape": [1, 8, 8, 3], "data": []}, "[N, 32, 32, 3]"),
    infer("pixels too few", {"datatype": "UINT8", "shape": [1, SIZE, SIZE, 3], "data": [0]}, "3072"),
    infer("pixels past 255", {"datatype": "UINT8", "shape": [1, SIZE, SIZE, 3], "data": [256]}, "0 to 255"),
    infer("pixels of 5,000 lists", {"datatype": "UINT8", "shape": [1, SIZE, SIZE, 3], "data": [[]] * 5000}, "3072"),
    infer("data elsewhere", {"parameters": {"binary_data_size": 10**12}}, "one of them"),
    infer("shared memory", {"parameters": {"shared_memory_region": "x"}}, "shared memory"),
    case("two inputs", INFER, {"inputs": [{}, {}]}, 400, "2 inputs"),
    case(TWICE, INFER, b'{"inputs": [{}], "inputs": 5}', 400, "inputs is 5"),
    case("no inputs", INFER, {"inputs": []}, 400, "inputs is a list", "1 at least"),
    case("k past its limit", INFER, {"inputs": [{}], "parameters": {"k": 10**6}}, 400, "k is 1000000", "1000"),
    case("no JSON", INFER, b"[" * DEEP, 400, "not JSON"),
    *(
        Case(
            f"OIP: {length[:12]} bytes of JSON",
            lambda length=length: http(b"{}", f"inference-header-content-length: {length}", path=INFER),
            400,
            (f"'{length[:12]}", "of the body's 2 bytes"),
        )
        for length in ("3", "-1", "x", DIGITS)
    ),
    Case(
        "OIP: BYTES whose length lies",
        lambda: http(LYING, f"inference-header-content-length: {len(LYING) - 4}", path=INFER),
        400,
        ("end within image 1 of 1",),
    ),
)

JSON = (*SYNTAX, *VECTORS, *SEARCHES, *IMAGES, *ROWS, *ADDRESSES, *STREAMS, *OPENAI, *TENSORS)
