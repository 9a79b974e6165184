"""Labelled splits come with the server's pixels, official folds as they are, and data sets by their names."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images.decode import decode
from images.spec import PreprocessSpec
from images.stl10 import CLASS_NAMES
from tests.pictures import encode, scene
from tests.tiny_stl10 import tinted_scene, write_tiny_stl10
from training.labelled import Split, data_name, official_folds, read_split

REAL = Path(__file__).parents[2] / "shared" / "data"
LABELS = np.arange(20) % 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stl10(tmp_path_factory.mktemp("stl10"))


def write_zip(folder: Path, files: dict[str, bytes]) -> Path:
    """`folder` with a train split in stl10-train.zip, as ../shared/data has it."""
    folder.mkdir(exist_ok=True)
    (folder / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    with zipfile.ZipFile(folder / "stl10-train.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder


def write_cifar10(folder: Path) -> Path:
    """CIFAR-10's binaries with one image of each class in every batch, its label all over it."""
    binaries = folder / "cifar-10-batches-bin"
    binaries.mkdir(parents=True)
    records = np.repeat(np.arange(10, dtype=np.uint8)[:, None], 1 + 3 * 32 * 32, axis=1)
    for batch in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        records.tofile(binaries / f"{batch}.bin")
    return folder


@pytest.mark.parametrize(
    ("format", "options"), [("WEBP", {"lossless": True}), ("JPEG", {"quality": 90}), ("PNG", {})]
)
@pytest.mark.parametrize(("size", "picture"), [(96, (96, 96)), (64, (96, 96)), (32, (320, 200))])
def test_evaluation_sees_byte_for_byte_the_pixels_that_the_server_sees(
    tmp_path: Path, format: str, options: dict[str, object], size: int, picture: tuple[int, int]
) -> None:
    photos = [encode(scene(*picture, seed), format, **options) for seed in range(3)]
    folder = write_zip(tmp_path, {f"{row:05d}.{row + 4}.webp": photo for row, photo in enumerate(photos)})
    images, labels = read_split(folder, "train", size)
    assert np.array_equal(images, np.stack([decode(photo, PreprocessSpec(size=size)) for photo in photos]))
    assert labels.tolist() == [4, 5, 6]


def test_binaries_and_files_of_the_same_images_give_the_same_pixels(data: Path, tmp_path: Path) -> None:
    pictures = [Image.fromarray(tinted_scene(row % 10, row)) for row in range(3)]
    files = {f"{row:05d}.{row}.webp": encode(picture, "PNG") for row, picture in enumerate(pictures)}
    from_files, from_binaries = (read_split(folder, "train", 64) for folder in (write_zip(tmp_path, files), data))
    assert np.array_equal(from_files.images, from_binaries.images[:3])
    assert from_files.labels.tolist() == from_binaries.labels[:3].tolist()


def test_a_damaged_image_is_named_and_nothing_is_measured(tmp_path: Path) -> None:
    folder = write_zip(tmp_path, {"00000.1.webp": encode(scene(96, 96), "PNG"), "00001.2.webp": b"RIFF, then noise"})
    with pytest.raises(SystemExit, match=r"00001\.2\.webp of the evaluation set cannot be read"):
        read_split(folder, "train", 32)


def test_images_without_labels_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = write_zip(tmp_path, {"00000.1.webp": encode(scene(96, 96), "PNG")})
    (folder / "class_names.txt").unlink()
    with pytest.raises(SystemExit, match=r"1 of 1 train images have no label; .*class_names\.txt"):
        read_split(folder, "train", 32)


def test_rows_of_a_split_keep_images_and_labels_together() -> None:
    split = Split(np.arange(6, dtype=np.uint8)[:, None], np.arange(6) * 10).rows(np.array([4, 1]))
    assert split.images[:, 0].tolist() == [4, 1] and split.labels.tolist() == [40, 10]


def test_cifar10_is_an_evaluation_set_with_splits_of_its_own_and_no_folds(tmp_path: Path) -> None:
    folder = write_cifar10(tmp_path)
    train, test = (read_split(folder, split, 32) for split in ("train", "test"))
    assert train.images.shape == (50, 32, 32, 3) and test.images.shape == (10, 32, 32, 3)
    assert np.array_equal(train.images[:, 5, 7, 1], train.labels) and test.labels.tolist() == [*range(10)]
    assert official_folds(folder, train.labels) == []


def test_data_sets_are_called_by_their_names_and_other_folders_by_theirs(data: Path, tmp_path: Path) -> None:
    assert data_name(data) == data_name(data / "stl10_binary") == "STL-10"
    assert data_name(write_zip(tmp_path / "zips", {})) == "STL-10"
    assert data_name(write_cifar10(tmp_path / "other")) == "CIFAR-10"
    assert data_name(tmp_path) == tmp_path.name


@pytest.mark.parametrize("beside", ["", "stl10_binary"])
def test_folds_are_read_in_order_with_the_binaries_or_beside_the_zips(tmp_path: Path, beside: str) -> None:
    write_tiny_stl10(tmp_path, train=20, test=10)
    folds = [np.arange(10) + 10, np.arange(10)[::-1]]
    (tmp_path / beside / "fold_indices.txt").write_text("\n".join(" ".join(map(str, fold)) for fold in folds) + "\n")
    found = official_folds(tmp_path, LABELS)
    assert [fold.tolist() for fold in found] == [fold.tolist() for fold in folds]


def test_without_a_list_of_folds_there_are_none(data: Path) -> None:
    assert official_folds(data, LABELS) == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("0 1 2 3 4 5 6 7 8 20", "fold 0 does not name different rows of 20 train images, it goes from 0 to 20"),
        ("-1 1 2 3 4 5 6 7 8 9", "it goes from -1 to 9"),
        ("0 0 1 2 3 4 5 6 7 8 9", "does not name different rows"),
        ("0 1 2 3 4 5 6 7 8 10", "fold 0 has no image of class 9"),
        ("0 1 two", "is no list of row numbers .*'two'.*remove it"),
    ],
)
def test_folds_that_do_not_fit_the_train_split_are_refused(tmp_path: Path, line: str, complaint: str) -> None:
    (tmp_path / "fold_indices.txt").write_text(line)
    with pytest.raises(SystemExit, match=complaint):
        official_folds(tmp_path, LABELS)


def test_the_ten_official_folds_have_a_hundred_images_of_every_class(tmp_path: Path) -> None:
    """Of the real STL-10 where it is there, else of one whose folds are drawn likewise."""
    if (REAL / "stl10-train.zip").exists():
        folder = REAL
        with zipfile.ZipFile(REAL / "stl10-train.zip") as archive:
            labels = np.array([int(name.split(".")[1]) for name in archive.namelist()])
        assert data_name(REAL) == "STL-10"
    else:
        folder, labels = tmp_path, np.arange(5000) % 10
        rows = [np.random.default_rng(fold).permutation(500)[:100, None] * 10 + np.arange(10) for fold in range(10)]
        text = "\n".join(" ".join(map(str, fold.ravel())) for fold in rows)
        (folder / "fold_indices.txt").write_text(text)
    folds = official_folds(folder, labels)
    assert [np.bincount(labels[fold]).tolist() for fold in folds] == [[100] * 10] * 10
