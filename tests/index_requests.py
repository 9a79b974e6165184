"""What the tests of the index over HTTP share: rows, streams, and how to read the answers."""

import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from encoder.session import Encoder
from handlers.exchange import Front
from handlers.service import Service
from index.errors import GalleryError
from tests.brute_index import BruteIndex
from tests.serving import front_with

SEARCH = "/index/search"
BULK = "/index/bulk"
NDJSON = {"content-type": "application/x-ndjson"}
TAR = {"content-type": "application/x-tar"}
DIMENSION = 16  # of the tiny encoder


def unit(*places: int) -> list[float]:
    """A vector of ones at these places."""
    return [float(place in places) for place in range(DIMENSION)]


def put(client: httpx.Client, id: str, vector: list[float], **fields: Any) -> None:
    answer = client.put(f"/index/{quote(id)}", json={"vector": vector, **fields})
    assert answer.status_code == 200, answer.text


def found(answer: httpx.Response) -> list[str]:
    """The ids of the neighbours."""
    assert answer.status_code == 200, answer.text
    return [neighbor["id"] for neighbor in answer.json()["neighbors"]]


def line(id: Any, **fields: Any) -> bytes:
    return json.dumps({"id": id, **fields}).encode() + b"\n"


def row(number: int, **fields: Any) -> bytes:
    """A line with a vector of its own."""
    return line(f"{number:05}", vector=vector(number).tolist(), **fields)


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIMENSION)


def results(answer: httpx.Response) -> list[tuple[str | None, int]]:
    """The id and status of each line of the answer."""
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/x-ndjson", answer.text
    lines = [json.loads(text) for text in answer.text.splitlines()]
    assert all(("error" in entry) == (entry["status"] != 200) for entry in lines)
    return [(entry["id"], entry["status"]) for entry in lines]


def errors(answer: httpx.Response) -> list[str]:
    return [entry["error"] for entry in map(json.loads, answer.text.splitlines()) if "error" in entry]


def count(client: httpx.Client) -> int:
    return client.get("/index").json()["rows"]


def packed(files: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Observed(BruteIndex):
    """An index that remembers its transactions, and may fail at one of them."""

    def __init__(self, fail_at: int | None = None, error: GalleryError | None = None) -> None:
        super().__init__("", DIMENSION)
        self.sizes: list[int] = []
        self.fail_at, self.error = fail_at, error
        self.pulled = 0  # lines that the client had sent when the transaction began
        self.ahead: list[int] = []

    def add(self, ids: Any, *rows: Any) -> None:
        if len(self.sizes) == self.fail_at and self.error is not None:
            raise self.error
        self.sizes.append(len(ids))
        self.ahead.append(self.pulled - sum(self.sizes))
        time.sleep(0.02)  # whoever reads on meanwhile is caught by `ahead`
        super().add(ids, *rows)


def served(seeded_store: Path, index: BruteIndex) -> Front:
    return front_with(Service(Encoder.load(seeded_store), index))
