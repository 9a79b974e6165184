"""The photos that benchmarks send."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from load_tests import photos
from load_tests.pictures import encode, scene


def test_the_first_readable_image_of_a_folder_is_sent_as_a_small_jpeg(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("no image")
    (tmp_path / "b.png").write_bytes(encode(scene(300, 200), "PNG"))
    photo = photos.small_photo(tmp_path)
    picture = Image.open(BytesIO(photo.data))
    assert (picture.format, picture.size) == ("JPEG", (96, 96))
    assert photo.origin == f"96 × 96 JPEG q90 of the first image in {tmp_path.name}"


def test_a_generated_photo_is_called_generated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(photos, "STL10", tmp_path / "not-there.zip")
    assert photos.small_photo(None) == photos.Photo(encode(scene(96, 96), quality=90), "96 × 96 JPEG q90, generated")
