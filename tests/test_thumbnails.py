"""Thumbnails show the image that their row came from, or nothing."""

import threading
from collections.abc import Iterator
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images.decode import ImageError
from images.sniff import sniff
from images.thumbnails import thumbnail
from index.contents import content_digest
from index.errors import GalleryCorrupt, GalleryReadOnly
from index.thumbnails import FILE_NAME, Thumbnails
from tests.pictures import encode, encode_with_orientation, scene


@pytest.fixture
def thumbnails(tmp_path: Path) -> Iterator[Thumbnails]:
    with Thumbnails.open(tmp_path) as opened:
        yield opened


def digest(number: int) -> bytes:
    return content_digest(f"{number}".encode())


def pixels_of(webp: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(webp)).convert("RGB")).astype(int)


def test_a_thumbnail_is_the_centred_square_of_its_image_in_128_pixels() -> None:
    picture = scene(300, 200, 1)
    small = thumbnail(encode(picture, "PNG"))
    assert sniff(small) == "WEBP"
    expected = np.asarray(picture.crop((50, 0, 250, 200)).resize((128, 128), Image.Resampling.BILINEAR)).astype(int)
    assert pixels_of(small).shape == (128, 128, 3)
    assert np.abs(pixels_of(small) - expected).mean() < 6  # what WebP loses
    assert len(small) < 10_000


def test_pixels_give_the_thumbnail_of_their_file() -> None:
    picture = scene(200, 300, 2)
    assert thumbnail(np.asarray(picture)) == thumbnail(encode(picture, "PNG"))


def test_a_thumbnail_is_upright() -> None:
    picture = scene(160, 160, 3)
    turned = pixels_of(thumbnail(encode_with_orientation(picture, 6, "PNG")))
    expected = pixels_of(thumbnail(encode(picture.transpose(Image.Transpose.ROTATE_270), "PNG")))
    assert np.abs(turned - expected).mean() < 5  # WebP halves the resolution of colour, along another side each


def test_what_is_no_image_has_no_thumbnail() -> None:
    with pytest.raises(ImageError) as refused:
        thumbnail(b"no picture")
    assert refused.value.status == 415


def test_only_the_image_that_a_thumbnail_was_made_of_gets_it(thumbnails: Thumbnails) -> None:
    thumbnails.put([("a", digest(1), b"one"), ("b", digest(2), b"two")])
    assert thumbnails.get("a", digest(1)) == b"one"
    assert thumbnails.get("b", digest(2)) == b"two"
    assert thumbnails.get("a", digest(2)) is None
    assert thumbnails.get("a", None) is None
    assert thumbnails.get("c", digest(1)) is None


def test_a_new_thumbnail_takes_the_place_of_the_old_one(thumbnails: Thumbnails) -> None:
    thumbnails.put([("a", digest(1), b"one")])
    thumbnails.put([("a", digest(2), b"two")])
    assert thumbnails.get("a", digest(1)) is None
    assert thumbnails.get("a", digest(2)) == b"two"


def test_dropped_thumbnails_are_gone_and_others_stay(thumbnails: Thumbnails) -> None:
    thumbnails.put([(f"{number}", digest(number), b"webp") for number in range(1200)])
    thumbnails.drop([f"{number}" for number in range(1, 1200)] + ["nobody"])
    assert thumbnails.get("0", digest(0)) == b"webp"
    assert thumbnails.get("1199", digest(1199)) is None
    assert thumbnails.contents([f"{number}" for number in range(1200)]) == {"0": digest(0)}


def test_they_outlive_the_process_that_made_them(thumbnails: Thumbnails, tmp_path: Path) -> None:
    thumbnails.put([("a", digest(1), b"one")])
    thumbnails.close()
    assert not (tmp_path / f"{FILE_NAME}-wal").exists()
    with Thumbnails.open(tmp_path) as again:
        assert again.get("a", digest(1)) == b"one"


def test_asking_and_dropping_make_no_file(thumbnails: Thumbnails, tmp_path: Path) -> None:
    assert thumbnails.get("a", digest(1)) is None
    assert thumbnails.contents(["a"]) == {}
    thumbnails.drop(["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_deleted_beside_its_readers_only_costs_the_thumbnails(tmp_path: Path) -> None:
    with Thumbnails.open(tmp_path) as writer:
        writer.put([("a", digest(1), b"one")])
    with Thumbnails.open(tmp_path) as reader:
        assert reader.get("a", digest(1)) == b"one"
        (tmp_path / FILE_NAME).unlink()
        assert reader.get("a", digest(1)) is None


def test_a_damaged_file_shows_nothing_and_a_write_says_the_way_out(tmp_path: Path, thumbnails: Thumbnails) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database at all" * 1000)
    assert thumbnails.get("a", digest(1)) is None
    with pytest.raises(
        GalleryCorrupt, match=r"thumbnails\.sqlite is damaged .*move it away and add the images again"
    ):
        thumbnails.put([("a", digest(1), b"one")])


def test_a_place_that_cannot_be_written_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with Thumbnails.open(tmp_path / "file" / "gallery") as nowhere:
        assert nowhere.get("a", digest(1)) is None
        with pytest.raises(GalleryReadOnly, match=r"thumbnails\.sqlite cannot be written \(.*leave --thumbnails out"):
            nowhere.put([("a", digest(1), b"one")])


def test_any_thread_may_put_get_and_drop(thumbnails: Thumbnails) -> None:
    failures: list[str] = []

    def work(worker: int) -> None:
        for number in range(30):
            name = f"{worker}-{number}"
            thumbnails.put([(name, digest(number), name.encode())])
            if thumbnails.get(name, digest(number)) != name.encode():
                failures.append(name)
            thumbnails.drop([name] if number % 2 else [])

    workers = [threading.Thread(target=work, args=[worker]) for worker in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    left = thumbnails.contents([f"{worker}-{number}" for worker in range(8) for number in range(30)])
    assert len(left) == 8 * 15


def _put_many(folder: Path, worker: int) -> None:
    with Thumbnails.open(folder) as opened:
        for number in range(20):
            opened.put([(f"{worker}-{number}", digest(number), b"webp")])


def test_several_processes_write_side_by_side(tmp_path: Path, thumbnails: Thumbnails) -> None:
    spawn = get_context("spawn")
    writers = [spawn.Process(target=_put_many, args=[tmp_path, worker]) for worker in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(thumbnails.contents([f"{worker}-{number}" for worker in range(3) for number in range(20)])) == 60
