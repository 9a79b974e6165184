"""What every index does, done by the one of this machine: exact while it is small, and accelerated."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.face import Index, Neighbor
from index.filters import Filter
from index.gallery import Gallery
from tests.index_behaviour import DIGEST, DIMENSION, IndexBehaviour, Reopen, fill

FLAT_BELOW = 8
PATIENCE_S = 30.0


class Settled(Gallery):
    """Searches only once the acceleration is up, which a build in a thread beside would else miss in most tests."""

    def search(
        self, vectors: np.ndarray, k: int, where: Filter | None = None, min_score: float | None = None
    ) -> list[list[Neighbor]]:
        deadline = time.monotonic() + PATIENCE_S
        while self.stats()["rebuilding"]:
            assert time.monotonic() < deadline, "the acceleration was not built"
            time.sleep(0.001)
        found = self.stats()  # anew: the one above may show the view before the swap
        assert (found["factory"] == "Flat") == (found["rows"] < FLAT_BELOW), found
        return super().search(vectors, k, where, min_score)


class TestSmall(IndexBehaviour):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
            yield gallery

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda digest: Gallery.open(tmp_path, digest, DIMENSION)


class Accelerated(IndexBehaviour):
    factory: str

    @pytest.fixture
    def index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
        monkeypatch.setattr("index.gallery.DELTA_LEAST", 4)
        with Settled.open(tmp_path, DIGEST, DIMENSION, factory=self.factory, flat_below=FLAT_BELOW) as gallery:
            yield gallery

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda digest: Settled.open(tmp_path, digest, DIMENSION, factory=self.factory, flat_below=FLAT_BELOW)

    def test_it_is_accelerated_as_it_was_told(self, index: Index) -> None:
        vectors = fill(index)
        index.search(vectors[:1], 1)
        assert index.stats()["factory"] == self.factory


class TestCoded(Accelerated):
    factory = "HNSW16,SQ8"
    score_tolerance = 0.02  # of 8-bit codes, learned from a hundred rows


class TestEstimated(Accelerated):
    factory = "IVF1,RaBitQfs4"
