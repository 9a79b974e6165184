"""What every index does, done by the one of this machine: exact while it is small, and accelerated."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from index.face import Index
from index.gallery import Gallery
from tests.brute_index import BruteIndex
from tests.index_behaviour import DIGEST, DIMENSION, IndexBehaviour, Reopen


class TestSmall(IndexBehaviour):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        with Gallery.open(tmp_path, DIGEST, DIMENSION) as gallery:
            yield gallery

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda digest: Gallery.open(tmp_path, digest, DIMENSION)


class TestAccelerated(IndexBehaviour):
    score_tolerance = 0.02  # of 8-bit codes, learned from a hundred rows

    @pytest.fixture
    def index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
        monkeypatch.setattr("index.gallery.DELTA_LEAST", 4)
        with Gallery.open(tmp_path, DIGEST, DIMENSION, factory="HNSW16,SQ8", flat_below=8) as gallery:
            yield gallery

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda digest: Gallery.open(tmp_path, digest, DIMENSION, factory="HNSW16,SQ8", flat_below=8)


class TestEstimated(IndexBehaviour):
    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[Index]:
        with Gallery.open(tmp_path, DIGEST, DIMENSION, factory="IVF1,RaBitQfs4", flat_below=8) as gallery:
            yield gallery

    @pytest.fixture
    def reopen(self, tmp_path: Path) -> Reopen:
        return lambda digest: Gallery.open(tmp_path, digest, DIMENSION, factory="IVF1,RaBitQfs4", flat_below=8)


class TestBruteForce(IndexBehaviour):
    """The reference of other tests keeps the same rules."""

    @pytest.fixture
    def index(self) -> Index:
        return BruteIndex(DIGEST, DIMENSION)

    @pytest.fixture
    def reopen(self, index: Index) -> Reopen:
        def opened(digest: str) -> Index:
            from index.errors import WrongModel

            if digest != index.model_digest:
                raise WrongModel(f"this is of {index.model_digest}")
            return index

        return opened
