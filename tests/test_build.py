"""A folder becomes a gallery: each image found by itself, damage named, runs resumed where they stopped."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from encoder.session import Encoder
from images.decode import decode
from images.sources import Item, Source, open_source
from images.thumbnails import thumbnail
from index.build import COMMIT_ROWS, EMBED_BATCH, LOOKUP_ROWS, Damaged, Summary, add_images
from index.contents import content_digest
from index.errors import GalleryFull
from index.face import Index
from index.gallery import Gallery
from index.thumbnails import Thumbnails
from tests.brute_index import BruteIndex
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    store = tmp_path_factory.mktemp("model_store")
    write_tiny_encoder(store)
    return Encoder.load(store)


@pytest.fixture
def gallery(encoder: Encoder, tmp_path: Path) -> Iterator[Gallery]:
    manifest = encoder.manifest
    with Gallery.open(tmp_path / "gallery", manifest.model_digest, manifest.dimension) as opened:
        yield opened


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(2 * EMBED_BATCH + 5):
        file = folder / f"{number % 3}" / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(scene(40, 50, number)))
    return folder


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def test_every_image_of_a_folder_is_found_by_its_own_vector(
    encoder: Encoder, gallery: Gallery, photos: Path
) -> None:
    summary = add_images(gallery, encoder, open_source(photos))
    files = sorted(photos.rglob("*.jpg"))
    assert (summary.added, summary.already_there, summary.damaged) == (len(files), 0, ())
    decoded = [decode(file.read_bytes(), encoder.manifest.preprocess) for file in files]
    found = gallery.search(encoder.embed(np.stack(decoded)).vectors, 1)
    assert [neighbors[0].id for neighbors in found] == [file.relative_to(photos).as_posix() for file in files]
    assert all(neighbors[0].score == pytest.approx(1.0, abs=1e-5) for neighbors in found)


def test_damaged_files_are_counted_named_and_skipped(
    encoder: Encoder, gallery: Gallery, photos: Path
) -> None:
    (photos / "cut.jpg").write_bytes(encode(scene(200, 200))[:900])
    (photos / "notes.txt").write_text("not a picture")
    summary = add_images(gallery, encoder, open_source(photos))
    assert summary.added == gallery.count == 2 * EMBED_BATCH + 5
    assert [image.id for image in summary.damaged] == ["cut.jpg", "notes.txt"]
    assert "2 damaged and skipped" in str(summary) and "'notes.txt': " in str(summary)


def test_a_second_run_adds_only_what_is_new(encoder: Encoder, gallery: Gallery, photos: Path) -> None:
    add_images(gallery, encoder, open_source(photos))
    (photos / "new.png").write_bytes(encode(scene(64, 64, 999), "PNG"))
    summary = add_images(gallery, encoder, open_source(photos))
    assert (summary.added, summary.already_there) == (1, 2 * EMBED_BATCH + 5)


def test_labels_are_stored_by_the_name_of_their_class(encoder: Encoder, gallery: Gallery) -> None:
    images = pixels(3)
    items = [Item("a", images[0], 1), Item("b", images[1], 0), Item("c", images[2], None)]
    add_images(gallery, encoder, Source(lambda: iter(items), None, ("cat", "dog")))
    found = gallery.search(encoder.embed(images).vectors, 1)
    assert [(neighbors[0].id, neighbors[0].label) for neighbors in found] == [
        ("a", "dog"),
        ("b", "cat"),
        ("c", None),
    ]


def test_a_run_that_is_stopped_leaves_what_was_committed_and_goes_on_from_there(
    encoder: Encoder, gallery: Gallery
) -> None:
    images = pixels(2 * COMMIT_ROWS)
    items = [Item(f"{number}", image) for number, image in enumerate(images)]

    def stopped() -> Iterator[Item]:
        yield from items[: COMMIT_ROWS + 200]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_images(gallery, encoder, Source(stopped, None))
    assert gallery.count == COMMIT_ROWS
    summary = add_images(gallery, encoder, Source(lambda: iter(items), len(items)))
    assert (summary.added, summary.already_there) == (COMMIT_ROWS, COMMIT_ROWS)


def test_a_name_that_is_not_text_costs_one_image(encoder: Encoder, gallery: Gallery) -> None:
    items = [Item("caf\udce9.jpg", pixels(1)[0]), Item("good", pixels(1)[0])]
    summary = add_images(gallery, encoder, Source(lambda: iter(items), 2))
    assert summary.added == 1
    assert summary.damaged == (Damaged("caf\udce9.jpg", "its name is not valid UTF-8; rename the file"),)
    str(summary).encode()


def test_an_empty_source_adds_nothing(encoder: Encoder, gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    summary = add_images(gallery, encoder, open_source(tmp_path / "empty"))
    assert summary == Summary(0, 0, 0, 0, (), summary.seconds)


def source_of(*items: Item) -> Source:
    return Source(lambda: iter(items), len(items))


def tally(summary: Summary) -> tuple[int, int, int, int]:
    return summary.added, summary.replaced, summary.already_there, summary.copies


def contents(index: Index) -> dict[str, bytes | None]:
    return {row.id: row.content for rows in index.records() for row in rows}


@pytest.mark.parametrize("apart", [1, 10, LOOKUP_ROWS + 1, COMMIT_ROWS + 300])
def test_the_same_image_under_another_name_is_a_copy_wherever_it_comes(
    encoder: Encoder, gallery: Gallery, apart: int
) -> None:
    images = pixels(apart)
    items = [Item(f"{number}", image) for number, image in enumerate(images)]
    summary = add_images(gallery, encoder, source_of(*items, Item("copy", images[0])))
    assert tally(summary) == (apart, 0, 0, 1)
    assert gallery.count == apart
    assert gallery.get(["copy"]) == [None]
    assert "1 copies of others skipped" in str(summary)
    assert tally(add_images(gallery, encoder, source_of(Item("copy", images[0])))) == (0, 0, 0, 1)


def test_a_file_that_changed_takes_the_place_of_its_row(encoder: Encoder, gallery: Gallery, photos: Path) -> None:
    add_images(gallery, encoder, open_source(photos))
    new = encode(scene(60, 60, 999))
    (photos / "0" / "000.jpg").write_bytes(new)
    summary = add_images(gallery, encoder, open_source(photos))
    assert tally(summary) == (0, 1, 2 * EMBED_BATCH + 4, 0)
    assert "1 replaced" in str(summary)
    (row,) = gallery.get(["0/000.jpg"])
    assert row is not None
    assert row.content == content_digest(new)
    expected = encoder.embed(decode(new, encoder.manifest.preprocess)[None]).vectors[0]
    assert row.vector == pytest.approx(expected, abs=1e-6)


def test_a_file_that_became_a_copy_of_another_is_no_longer_what_it_was(encoder: Encoder, gallery: Gallery) -> None:
    one, other = pixels(2)
    add_images(gallery, encoder, source_of(Item("a", one), Item("b", other)))
    assert tally(add_images(gallery, encoder, source_of(Item("a", other), Item("b", other)))) == (0, 1, 1, 0)
    assert contents(gallery) == {"a": content_digest(other), "b": content_digest(other)}
    assert tally(add_images(gallery, encoder, source_of(Item("a", other), Item("b", other)))) == (0, 0, 2, 0)


def test_a_row_that_knows_no_image_stays_as_it_is(encoder: Encoder, gallery: Gallery) -> None:
    vector = np.eye(16, dtype=np.float32)[:1]
    gallery.add(["a"], vector, ["mine"])
    assert tally(add_images(gallery, encoder, source_of(Item("a", pixels(1)[0])))) == (0, 0, 1, 0)
    (row,) = gallery.get(["a"])
    assert row is not None
    assert (row.label, row.content) == ("mine", None)
    assert np.array_equal(row.vector, vector[0])


def test_copies_of_a_damaged_image_are_damaged_too(encoder: Encoder, gallery: Gallery) -> None:
    cut = encode(scene(200, 200))[:900]
    summary = add_images(gallery, encoder, source_of(Item("a", cut), Item("b", cut), Item("c", pixels(1)[0])))
    assert tally(summary) == (1, 0, 0, 0)
    assert [image.id for image in summary.damaged] == ["a", "b"]


def test_a_name_that_is_too_long_for_an_id_costs_one_image(encoder: Encoder, gallery: Gallery) -> None:
    one, other = pixels(2)
    summary = add_images(gallery, encoder, source_of(Item("x" * 1025, one), Item("x" * 1024, other)))
    assert tally(summary) == (1, 0, 0, 0)
    assert summary.damaged[0].reason == "its name has 1025 bytes, the limit is 1024; shorten the path"


def test_any_index_can_be_filled(encoder: Encoder, photos: Path) -> None:
    index = BruteIndex(encoder.manifest.model_digest, encoder.manifest.dimension)
    assert tally(add_images(index, encoder, open_source(photos))) == (2 * EMBED_BATCH + 5, 0, 0, 0)
    assert tally(add_images(index, encoder, open_source(photos))) == (0, 0, 2 * EMBED_BATCH + 5, 0)
    assert contents(index) == {
        file.relative_to(photos).as_posix(): content_digest(file.read_bytes()) for file in photos.rglob("*.jpg")
    }


def test_what_is_there_is_looked_up_in_batches(
    encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = BruteIndex(encoder.manifest.model_digest, encoder.manifest.dimension)
    add_images(index, encoder, open_source(photos))
    asked: list[int] = []
    known = index.known_contents
    monkeypatch.setattr(index, "known_contents", lambda digests: asked.append(len(digests)) or known(digests))
    add_images(index, encoder, open_source(photos))
    assert asked == [LOOKUP_ROWS, 2 * EMBED_BATCH + 5 - LOOKUP_ROWS]


def test_thumbnails_are_made_with_the_rows(
    encoder: Encoder, gallery: Gallery, photos: Path, tmp_path: Path
) -> None:
    with Thumbnails.open(tmp_path / "gallery") as thumbnails:
        add_images(gallery, encoder, open_source(photos), thumbnails=thumbnails)
        data = (photos / "1" / "001.jpg").read_bytes()
        assert thumbnails.get("1/001.jpg", content_digest(data)) == thumbnail(data)
        assert thumbnails.contents(list(contents(gallery))) == contents(gallery)


def test_images_that_were_added_without_get_thumbnails(encoder: Encoder, gallery: Gallery, tmp_path: Path) -> None:
    images = pixels(3)
    items = [Item("a", images[0]), Item("b", images[1]), Item("vector", images[2])]
    gallery.add(["vector"], np.eye(16, dtype=np.float32)[:1], [None])
    add_images(gallery, encoder, source_of(*items))
    with Thumbnails.open(tmp_path / "gallery") as thumbnails:
        thumbnails.put([("a", content_digest(images[1]), b"stale"), ("b", content_digest(images[1]), b"there")])
        assert tally(add_images(gallery, encoder, source_of(*items), thumbnails=thumbnails)) == (0, 0, 3, 0)
        assert thumbnails.get("a", content_digest(images[0])) == thumbnail(images[0])
        assert thumbnails.get("b", content_digest(images[1])) == b"there"
        assert list(thumbnails.contents(["a", "b", "vector"])) == ["a", "b"]


def test_a_run_ends_with_the_error_of_the_index(encoder: Encoder, gallery: Gallery) -> None:
    def full(*_: object, **__: object) -> None:
        raise GalleryFull("the disk is full")

    gallery.add = full  # type: ignore[method-assign]
    with pytest.raises(GalleryFull):
        add_images(gallery, encoder, source_of(Item("a", pixels(1)[0])))
