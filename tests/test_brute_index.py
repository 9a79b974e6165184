"""The index in memory that others are compared with keeps the rules itself."""

import pytest

from index.errors import WrongModel
from index.face import Index
from tests.brute_index import BruteIndex
from tests.index_behaviour import DIGEST, DIMENSION, IndexBehaviour, Reopen


class TestBruteIndex(IndexBehaviour):
    @pytest.fixture
    def index(self) -> Index:
        return BruteIndex(DIGEST, DIMENSION)

    @pytest.fixture
    def reopen(self, index: Index) -> Reopen:
        """It keeps nothing on disk: the same object is what would be opened."""

        def opened(digest: str) -> Index:
            if digest != index.model_digest:
                raise WrongModel(f"this is of {index.model_digest}, not {digest}")
            return index

        return opened
