"""A folder becomes a gallery: each image found by itself, damage named, runs resumed where they stopped."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from encoder.session import Encoder
from images.decode import decode
from images.sources import Item, Source, open_source
from index.build import COMMIT_ROWS, EMBED_BATCH, Damaged, Summary, add_images
from index.gallery import Gallery
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
    assert summary == Summary(0, 0, (), summary.seconds)
