"""The encodings that an embedding can be answered in: how each is asked for, and how it is read."""

import json
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from load_tests.server import Content, Server, ServerError

TOLERANCE = 1e-5  # JSON's floats are rounded to six places


@dataclass(frozen=True)
class Encoding:
    """One way to ask."""

    read: Callable[[bytes], np.ndarray]  # an answer's body to (D,) float32
    content_type: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()


def _from_json(body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["embedding"], np.float32)


def _from_floats(body: bytes) -> np.ndarray:
    return np.frombuffer(body, "<f4")


def _from_npy(body: bytes) -> np.ndarray:
    return np.load(BytesIO(body), allow_pickle=False)


def _from_base64(body: bytes) -> np.ndarray:
    return np.frombuffer(b64decode(json.loads(body)["embedding"], validate=True), "<f4")


JSON_FLOATS = "JSON floats"
ENCODINGS = {
    JSON_FLOATS: Encoding(_from_json, "application/json"),
    "float32 bytes": Encoding(
        _from_floats, "application/octet-stream", headers=(("accept", "application/octet-stream"),)
    ),
    ".npy": Encoding(_from_npy, "application/x-npy", headers=(("accept", "application/x-npy"),)),
    "base64": Encoding(_from_base64, "application/json", query="?encoding=base64"),
}


def check(served: Server, path: str, image: bytes) -> None:
    """Every encoding gives the same vector, or `ServerError`: quick answers without content are no achievement."""
    vectors = {}
    for name, encoding in ENCODINGS.items():
        content = served.fetch(path + encoding.query, image, encoding.headers)
        vectors[name] = _vector(name, encoding, content)
    expected = vectors[JSON_FLOATS]
    for name, vector in vectors.items():
        if vector.shape != expected.shape or np.abs(vector - expected).max() > TOLERANCE:
            raise ServerError(f"the embedding as {name} is not the one as {JSON_FLOATS}")


def _vector(name: str, encoding: Encoding, content: Content) -> np.ndarray:
    if content.type != encoding.content_type:
        raise ServerError(f"asked for {name}, which is {encoding.content_type}, the server sent {content.type}")
    try:
        return encoding.read(content.body)
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"asked for {name}, the server sent what is none: {error!r}") from error
