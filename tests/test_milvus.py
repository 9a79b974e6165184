"""The index on Milvus: what every index does, on Milvus Lite and on a real server, and what only a server can do."""

import socket
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from index import milvus
from index.errors import GalleryAway, GalleryError, RowRefused, WrongModel
from index.export import export_index
from index.face import Index
from index.filters import Filter
from index.gallery import Gallery
from index.milvus import MilvusGallery
from tests.index_behaviour import DIGEST, DIMENSION, IndexBehaviour, Reopen, fill, ids, rows
from tests.milvus_server import MilvusProcess, milvus_server

DEADLINE_S = 2.0
# Each character that a language might take for its own, and what looks like an escape.
LITERAL = [
    *map(chr, range(1, 256)),
    *"\u2028\ufeff日😀\U0010ffff",
    "\\u0041",
    "\\x41",
    "\\101",
    "\\n",
    '\\\\"',
    "'\"",
    "%",
    "{x}",
]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusProcess]:
    """One for all tests: each has a collection of its own."""
    with milvus_server(tmp_path_factory.mktemp("milvus") / "data") as process:
        yield process


def digest_for(name: str) -> str:
    return sha256(name.encode()).hexdigest()


def emptied(gallery: MilvusGallery) -> MilvusGallery:
    gallery.remove([record.id for batch in gallery.records() for record in batch])
    return gallery


class MilvusBehaviour(IndexBehaviour):
    """What both engines have to be talked into."""

    refuses_other_models = False

    @pytest.fixture
    def index(self, address: str) -> Iterator[Index]:
        gallery = emptied(MilvusGallery.open(address, DIGEST, DIMENSION))
        yield gallery
        gallery.close()

    @pytest.fixture
    def reopen(self, address: str) -> Reopen:
        return lambda digest: MilvusGallery.open(address, digest, DIMENSION)

    def test_every_character_is_taken_literally(self, index: Index) -> None:
        names = list(dict.fromkeys(LITERAL))
        index.add(names, rows(len(names)), names, [{"text": name} for name in names])
        assert [record and record.id for record in index.get(names)] == names
        for some in (names[:31], names[31:128], names[128:]):
            for field in ("label", "text"):
                (found,) = index.search(rows(1), len(names), Filter.parse({field: some}))
                assert sorted(ids(found)) == sorted(some)
        for name in names[::20]:
            assert ids(index.search(rows(1), 9, Filter.parse({"text": name}))[0]) == [name]
        assert index.remove(names) == len(names) and index.count == 0

    def test_a_set_may_be_long_and_of_several_types(self, index: Index) -> None:
        fill(index)
        values = [*range(500, 1200), 7, 8.0, "9", True, *(f"v{number}" for number in range(290)), 0.5, False]
        (found,) = index.search(rows(1), 500, Filter.parse({"mixed": values}))
        # In turn a number, a string and whether it is odd; none where the last digit is 9.
        numbers = {number for number in range(120) if number % 10 != 9 and number % 3 == 2}
        assert {int(one.id) for one in found} == numbers
        (found,) = index.search(rows(1), 500, Filter.parse({"label": ["dog", *map(str, range(999))]}))
        assert {int(one.id) for one in found} == set(range(1, 120, 3))

    def test_names_and_digests_may_be_long_and_many(self, index: Index) -> None:
        names = [f"{'ü' * 500}{number:03d}" for number in range(80)]
        index.add(names, rows(80), [None] * 80, contents=[bytes([number]) * 32 for number in range(80)])
        assert [record and record.id for record in index.get(names[::-1])] == names[::-1]
        assert len(index.known_contents([bytes([number]) * 32 for number in range(100)])) == 80
        assert index.remove(names) == 80

    def test_rows_without_a_digest_are_not_known_by_none(self, index: Index) -> None:
        index.add(["a"], rows(1), [None])
        assert index.known_contents([b""]) == {}

    def test_vectors_of_another_dimension_are_refused(self, index: Index, address: str) -> None:
        with pytest.raises(WrongModel, match=f"dimension {DIMENSION}, .* gives {DIMENSION + 1}"):
            MilvusGallery.open(address, DIGEST, DIMENSION + 1)

    def test_more_neighbours_than_milvus_gives_are_refused_where_there_are_more(
        self, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(index, 12)
        monkeypatch.setattr(milvus, "MOST_NEIGHBORS", 10)
        with pytest.raises(RowRefused, match="at most 10"):
            index.search(rows(1), 11)
        assert len(index.search(rows(1), 10)[0]) == 10

    def test_queries_go_in_as_many_calls_as_they_need(self, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
        vectors = fill(index, 12)
        monkeypatch.setattr(milvus, "MOST_QUERIES", 5)
        names = [f"{number:03d}" for number in range(12)]
        assert [ids(found) for found in index.search(vectors, 1)] == [[name] for name in names]
        assert [ids(found) for found in index.search(vectors[:10], 1)] == [[name] for name in names[:10]]

    def test_many_copies_of_one_image_do_not_hide_another(
        self, index: Index, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = b"1" * 16, b"2" * 16
        index.add([*map(str, range(12)), "z"], rows(13), [None] * 13, contents=[*[one] * 12, other])
        monkeypatch.setattr(milvus, "MOST_NEIGHBORS", 10)
        known = index.known_contents([one, other, b"3" * 16])
        assert known.keys() == {one, other} and known[other] == "z" and known[one] != "z"

    def test_what_the_engine_refuses_is_not_taken_for_its_absence(self, index: Index) -> None:
        assert isinstance(index, MilvusGallery)
        with pytest.raises(GalleryError, match="failed") as refused:
            index._query("nonsense ===", ["id"], 1)
        assert refused.value.status == 500


class TestLite(MilvusBehaviour):
    @pytest.fixture
    def address(self, tmp_path_factory: pytest.TempPathFactory) -> str:
        return f"milvus://{tmp_path_factory.getbasetemp() / 'lite' / 'vectors.db'}"


class TestServer(MilvusBehaviour):
    @pytest.fixture
    def address(self, server: MilvusProcess) -> str:
        return server.address

    def test_a_model_whose_digest_begins_alike_is_refused(self, index: Index, reopen: Reopen) -> None:
        with pytest.raises(WrongModel, match="collection akin_d1d1d1d1d1d1"):
            reopen(DIGEST[:12] + "e2" * 26)


def test_a_server_that_is_not_there_is_away_within_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(GalleryAway, match=f"127.0.0.1:{port}"):
        MilvusGallery.open(f"milvus://127.0.0.1:{port}", DIGEST, DIMENSION, timeout_s=DEADLINE_S)
    assert time.monotonic() - started < 3 * DEADLINE_S


def test_a_server_that_stops_answering_is_away_and_comes_back_by_itself(server: MilvusProcess) -> None:
    gallery = MilvusGallery.open(server.address, digest_for("freeze"), DIMENSION, timeout_s=DEADLINE_S)
    vectors = fill(gallery, 5)
    server.freeze()
    try:
        for call in (lambda: gallery.search(vectors[:1], 1), lambda: gallery.add(["x"], rows(1), [None])):
            started = time.monotonic()
            with pytest.raises(GalleryAway, match="send again"):
                call()
            assert time.monotonic() - started < 3 * DEADLINE_S
    finally:
        server.thaw()
    assert found_again(gallery, vectors[0:1]) == ["000"]
    gallery.close()


def found_again(gallery: MilvusGallery, query: object, within_s: float = 60.0) -> list[str]:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return ids(gallery.search(query, 1)[0])  # type: ignore[arg-type]
        except GalleryAway:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.mark.long
def test_a_server_that_was_killed_and_started_again_has_every_acknowledged_row(tmp_path: Path) -> None:
    with milvus_server(tmp_path / "data") as process:
        gallery = MilvusGallery.open(process.address, DIGEST, DIMENSION, timeout_s=DEADLINE_S)
        vectors = fill(gallery, 100)
        process.kill()
        with pytest.raises(GalleryAway):
            gallery.search(vectors[:1], 1)
    with milvus_server(tmp_path / "data"):
        assert found_again(gallery, vectors[7:8], within_s=120) == ["007"]
        assert gallery.count == 100
        gallery.close()


def test_an_embedded_index_moves_to_a_server_and_goes_on_where_it_was_stopped(
    server: MilvusProcess, tmp_path: Path
) -> None:
    digest = digest_for("move")
    with Gallery.open(tmp_path, digest, DIMENSION) as source:
        vectors = fill(source, 120)
        target = MilvusGallery.open(server.address, digest, DIMENSION)
        target.add(["000", "other"], rows(2), ["cat", None], [{"n": 1}, {}])
        summary = export_index(source, target, batch=50)
        assert (summary.copied, summary.already_there) == (120, 0)
        again = export_index(source, target, batch=50)
        assert (again.copied, again.already_there) == (0, 120)
        assert target.count == 121 and target.remove(["other"]) == 1
        for one, other in zip(source.search(vectors[:20], 5), target.search(vectors[:20], 5), strict=True):
            assert ids(one) == ids(other) and one[0].metadata == other[0].metadata
        target.close()


def test_weaker_consistency_is_asked_for_in_the_address(server: MilvusProcess) -> None:
    gallery = MilvusGallery.open(f"{server.address}?consistency=session", digest_for("session"), DIMENSION)
    vectors = fill(gallery, 5)
    assert ids(gallery.search(vectors[2:3], 1)[0]) == ["002"]
    gallery.close()


@pytest.mark.parametrize(
    "address",
    ["milvus://", "milvus://:1", "milvus://host:port", "milvus://host:99999", "milvus://host:1?consistency=none"],
)
def test_an_address_that_is_none_is_refused_with_those_that_are(address: str) -> None:
    with pytest.raises(RowRefused, match="milvus://host:19530"):
        MilvusGallery.open(address, DIGEST, DIMENSION)
