"""Sources: every container gives the same images in the same order, and damage costs one item."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from images import stl10
from images.decode import ImageError
from images.folders import parts
from images.sources import Item, Source, SourceError, decoded, open_source, pixels
from images.spec import PreprocessSpec
from tests.pictures import encode, scene

SPEC = PreprocessSpec(size=96)
REAL = Path(__file__).parent.parent.parent / "shared" / "data"
NAMES = ("deep/er/c.webp", "a.png", "b.jpg")
FILES = {
    "deep/er/c.webp": encode(scene(120, 90, 3), "WEBP"),
    "a.png": encode(scene(96, 96, 1), "PNG"),
    "b.jpg": encode(scene(500, 400, 2)),
}


def refuse(id: str, error: ImageError) -> None:
    raise AssertionError(f"{id}: {error}")


def write_folder(where: Path) -> Path:
    for name, data in FILES.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)
    return where


def write_zip(where: Path) -> Path:
    with zipfile.ZipFile(where / "images.zip", "w") as archive:
        archive.mkdir("deep")
        for name, data in FILES.items():
            archive.writestr(name, data)
    return where / "images.zip"


def write_tar(where: Path, name: str = "images.tar") -> Path:
    with tarfile.open(where / name, "w:gz" if name.endswith("gz") else "w") as archive:
        for member, data in FILES.items():
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return where / name


def write_tar_gz(where: Path) -> Path:
    return write_tar(where, "images.tar.gz")


CONTAINERS = [write_folder, write_zip, write_tar, write_tar_gz]


@pytest.mark.parametrize("write", CONTAINERS)
def test_every_container_gives_the_same_files(write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = open_source(write(tmp_path))
    assert {item.id: item.data for item in source} == FILES
    assert all(item.label is None for item in source), "and once more, from the start"


def test_a_folder_is_sorted_and_archives_keep_their_order(tmp_path: Path) -> None:
    assert [item.id for item in open_source(write_zip(tmp_path))] == list(NAMES)
    assert [item.id for item in open_source(write_tar(tmp_path))] == list(NAMES)
    folder = tmp_path / "folder"
    folder.mkdir()
    assert [item.id for item in open_source(write_folder(folder))] == sorted(NAMES)


def test_counts_are_known_where_they_are_cheap(tmp_path: Path) -> None:
    assert open_source(write_zip(tmp_path)).count == 3
    assert open_source(write_tar(tmp_path)).count is None
    folder = tmp_path / "folder"
    folder.mkdir()
    assert open_source(write_folder(folder)).count == 3


def test_names_with_a_leading_dot_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"x")
    assert [item.id for item in open_source(tmp_path)] == sorted(NAMES)


def test_names_that_climb_out_of_an_archive_are_only_ids(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"not to be read")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "evil.zip", "w") as archive:
        archive.writestr("../secret.png", FILES["a.png"])
    items = list(open_source(tmp_path / "in" / "evil.zip"))
    assert items == [Item("../secret.png", FILES["a.png"])]


# Labels, and the official binaries


@pytest.fixture(scope="module")
def labelled_zip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STL-10 train where it is there; otherwise drawn pictures under the same names."""
    if (REAL / "stl10-train.zip").exists():
        return REAL / "stl10-train.zip"
    where = tmp_path_factory.mktemp("labelled")
    (where / "class_names.txt").write_text("\n".join(stl10.CLASS_NAMES) + "\n")
    with zipfile.ZipFile(where / "stl10-train.zip", "w") as archive:
        for row in range(30):
            name = f"{row:05d}.{(row * 7 + 1) % 10}.webp"
            archive.writestr(name, encode(scene(96, 96, row), "WEBP", lossless=True))
    return where / "stl10-train.zip"


def first(source: Source, count: int = 20) -> list[tuple[np.ndarray, int | None]]:
    items = [item for item, _ in zip(source, range(count), strict=False)]
    return [(image, label) for _, image, label in decoded(items, SPEC, refuse)]


@pytest.fixture(scope="module")
def binaries(labelled_zip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first twenty images of the zip in the official layout, without an unlabeled split."""
    folder = tmp_path_factory.mktemp("data") / "stl10_binary"
    folder.mkdir()
    images = first(open_source(labelled_zip))
    np.stack([image for image, _ in images]).transpose(0, 3, 2, 1).tofile(folder / "train_X.bin")
    np.array([label + 1 for _, label in images if label is not None], np.uint8).tofile(folder / "train_y.bin")
    return folder


def test_a_labelled_zip_carries_labels_in_its_names(labelled_zip: Path) -> None:
    source = open_source(labelled_zip)
    assert source.class_names == stl10.CLASS_NAMES
    names = [item.id for item in source]
    assert [item.label for item in source] == [int(name.split(".")[1]) for name in names]
    assert {item.label for item in source} == set(range(10))


def test_the_official_binaries_and_the_zip_hold_the_same_images(labelled_zip: Path, binaries: Path) -> None:
    zipped, binary = first(open_source(labelled_zip)), first(open_source(binaries, "train"))
    assert len(binary) == 20
    for (image, label), (same_image, same_label) in zip(zipped, binary, strict=True):
        assert np.array_equal(image, same_image) and label == same_label
    assert open_source(binaries).class_names == stl10.CLASS_NAMES


def test_the_official_binaries_are_column_major_and_count_labels_from_one(tmp_path: Path) -> None:
    image = np.zeros((3, 96, 96), np.uint8)
    image[0, 5, 90] = 200  # red, column 5, row 90
    image.tofile(tmp_path / "train_X.bin")
    np.array([10], np.uint8).tofile(tmp_path / "train_y.bin")
    (item,) = open_source(tmp_path, "train")
    assert isinstance(item.data, np.ndarray) and item.data[90, 5].tolist() == [200, 0, 0]
    assert item.data.sum() == 200 and item.label == 9


def test_the_unlabeled_split_has_no_labels(tmp_path: Path) -> None:
    np.zeros((2, 3, 96, 96), np.uint8).tofile(tmp_path / "unlabeled_X.bin")
    source = open_source(tmp_path, "unlabeled")
    assert source.count == 2
    assert [(item.id, item.label) for item in source] == [
        ("unlabeled/00000", None),
        ("unlabeled/00001", None),
    ]


def test_stl10_is_found_one_folder_down_and_as_zips(labelled_zip: Path, binaries: Path) -> None:
    assert open_source(binaries.parent, "train").count == 20
    assert open_source(labelled_zip.parent, "train").count == open_source(labelled_zip).count


def test_a_split_that_is_not_there_is_refused_with_the_way_out(binaries: Path) -> None:
    with pytest.raises(SourceError, match=r"unlabeled_X.bin is not there; torchvision.datasets.STL10"):
        open_source(binaries, "unlabeled")
    with pytest.raises(SourceError, match="no split 'validation', only train, test, unlabeled"):
        open_source(binaries, "validation")


def test_a_binary_of_odd_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train_X.bin").write_bytes(bytes(1000))
    with pytest.raises(SourceError, match="1000 bytes"):
        open_source(tmp_path)


def test_labels_that_do_not_fit_their_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train_X.bin").write_bytes(bytes(3 * 96 * 96))
    (tmp_path / "train_y.bin").write_bytes(b"\0")
    with pytest.raises(SourceError, match="does not label 1 images from 1 to 10"):
        open_source(tmp_path)


def test_a_label_without_a_class_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "class_names.txt").write_text("cat\ndog\n")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("00000.2.png", FILES["a.png"])
    with pytest.raises(SourceError, match=r"carries label 2, but class_names\.txt has only 2 names"):
        list(open_source(tmp_path / "images.zip"))


# Arrays


def test_an_array_is_mapped_and_resized_like_any_image(tmp_path: Path) -> None:
    images = np.stack([np.asarray(scene(64, 64, seed)) for seed in range(3)])
    np.save(tmp_path / "pool.npy", images)
    source = open_source(tmp_path / "pool.npy")
    assert source.count == 3
    for item, image in zip(source, images, strict=True):
        assert isinstance(item.data, np.memmap)
        expected = Image.fromarray(image).resize((96, 96), Image.Resampling.BILINEAR)
        assert np.array_equal(pixels(item, SPEC), np.asarray(expected))
    assert [item.id for item in source] == ["0", "1", "2"]


@pytest.mark.parametrize("array", [np.zeros((4, 8, 8), np.uint8), np.zeros((4, 8, 8, 3), np.float32)])
def test_an_array_of_another_kind_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", array)
    with pytest.raises(SourceError, match="give uint8 of shape"):
        open_source(tmp_path / "pool.npy")


def test_an_array_of_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "pool.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(SourceError, match=r"not a \.npy file of numbers"):
        open_source(tmp_path / "pool.npy")


# Folders that hold archives and data sets


def write_mixed(where: Path) -> Path:
    """Single pictures, archives of every kind and CIFAR-10's folder in one folder."""
    write_folder(where)
    for folder in ("archives", "more"):
        (where / folder).mkdir()
    write_zip(where / "archives")
    write_tar_gz(where / "more")
    np.save(where / "pool.npy", np.stack([np.array(scene(96, 96, 7))]))
    batches = where / "more" / "cifar-10-batches-bin"
    batches.mkdir()
    for number in range(1, 6):
        (batches / f"data_batch_{number}.bin").write_bytes(bytes([9]) + bytes(3072))
    return where


def test_archives_in_a_folder_are_opened_in_sorted_order_with_their_path_before_their_ids(tmp_path: Path) -> None:
    source = open_source(write_mixed(tmp_path))
    assert [item.id for item in source] == [
        "a.png",
        *(f"archives/images.zip/{name}" for name in NAMES),
        "b.jpg",
        "deep/er/c.webp",
        *(f"more/cifar-10-batches-bin/train/{row:05d}" for row in range(5)),
        *(f"more/images.tar.gz/{name}" for name in NAMES),
        "pool.npy/0",
    ]
    assert source.count is None, "the tar does not say"
    (tmp_path / "more" / "images.tar.gz").unlink()
    assert open_source(tmp_path).count == 12


def test_classes_of_a_folder_are_those_of_all_its_parts_and_labels_follow(tmp_path: Path) -> None:
    for folder, names in (("x", "cat\ndog"), ("y", "owl\ncat")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "class_names.txt").write_text(names)
        with zipfile.ZipFile(tmp_path / folder / "z.zip", "w") as archive:
            archive.writestr("0.0.png", FILES["a.png"])
            archive.writestr("1.1.png", FILES["a.png"])
    source = open_source(tmp_path)
    labels = {item.id: item.label for item in source if item.id.endswith(".png")}
    assert source.class_names == ("cat", "dog", "owl")
    assert labels == {"x/z.zip/0.0.png": 0, "x/z.zip/1.1.png": 1, "y/z.zip/0.0.png": 2, "y/z.zip/1.1.png": 0}


def test_an_archive_that_holds_no_images_costs_only_itself(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    np.save(tmp_path / "vectors.npy", np.zeros((5, 512), np.float32))
    damaged: dict[str, str] = {}
    source = open_source(tmp_path)
    images = list(decoded(source, SPEC, lambda id, error: damaged.update({id: error.reason})))
    assert source.count == 5
    assert [image.id for image in images] == sorted(NAMES)
    assert "is not a source of images" in damaged["broken.zip"]
    assert "holds float32 of shape (5, 512)" in damaged["vectors.npy"]


def test_a_damaged_data_set_in_a_folder_is_an_error_and_not_one_file_less(tmp_path: Path) -> None:
    write_mixed(tmp_path)
    (tmp_path / "more" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(SourceError, match="data_batch_3 is not there"):
        open_source(tmp_path)


def test_what_a_data_set_was_unpacked_from_is_passed_over_and_alone_it_names_the_way_out(tmp_path: Path) -> None:
    packed = tmp_path / "more" / "cifar-10-binary.tar.gz"
    write_mixed(tmp_path)
    write_tar_gz(tmp_path).rename(packed)
    assert not any("binary.tar" in item.id for item in open_source(tmp_path))
    with pytest.raises(SourceError, match=r"is packed: run `tar xf` on it, and name the folder cifar-10-batches-bin"):
        open_source(packed)


def test_parts_of_a_data_set_are_itself_and_those_of_a_file_too(tmp_path: Path) -> None:
    batches = write_mixed(tmp_path) / "more" / "cifar-10-batches-bin"
    assert parts(batches) == [batches]
    assert parts(tmp_path / "a.png") == [tmp_path / "a.png"]
    assert [part.name for part in parts(tmp_path / "more")] == ["cifar-10-batches-bin", "images.tar.gz"]


# What is not there or damaged


@pytest.mark.parametrize("name", ["missing.zip", "missing"])
def test_a_path_that_does_not_exist_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"{name} does not exist"):
        open_source(tmp_path / name)


def test_a_file_that_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no images here")
    with pytest.raises(SourceError, match=r"notes\.txt is not a source of images; name a folder"):
        open_source(tmp_path / "notes.txt")


def test_damaged_files_are_named_and_skipped_and_the_order_holds(tmp_path: Path) -> None:
    for row in range(50):
        data = encode(scene(96, 96, row), "PNG")
        (tmp_path / f"{row:02d}.png").write_bytes(data[:100] if row % 10 == 3 else data)
    (tmp_path / "99.txt").write_text("not an image")
    damaged: dict[str, int] = {}
    images = list(
        decoded(open_source(tmp_path), SPEC, lambda id, error: damaged.update({id: error.status}), 4)
    )
    assert [image.id for image in images] == [f"{row:02d}.png" for row in range(50) if row % 10 != 3]
    assert np.array_equal(images[-1].pixels, np.asarray(scene(96, 96, 49)))
    assert damaged == {f"{row}3.png" if row else "03.png": 400 for row in range(5)} | {"99.txt": 415}


def test_a_damaged_member_of_a_zip_costs_only_itself(tmp_path: Path) -> None:
    path = write_zip(tmp_path)
    data = path.read_bytes()
    start = data.index(FILES["a.png"])
    path.write_bytes(data[: start + 50] + b"damage" + data[start + 56 :])
    damaged: list[str] = []
    assert len(list(decoded(open_source(path), SPEC, lambda id, error: damaged.append(id)))) == 2
    assert damaged == ["a.png"]


def test_a_file_that_vanishes_costs_only_itself(tmp_path: Path) -> None:
    source = open_source(write_folder(tmp_path))
    (tmp_path / "a.png").unlink()
    damaged: list[str] = []
    assert [d.id for d in decoded(source, SPEC, lambda id, error: damaged.append(id))] == sorted(NAMES)[1:]
    assert damaged == ["a.png"]


def test_a_tar_that_is_cut_off_gives_what_came_before_and_then_says_so(tmp_path: Path) -> None:
    path = write_tar_gz(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    images = decoded(open_source(path), SPEC, lambda id, error: None)
    with pytest.raises(SourceError, match=r"images.tar.gz is damaged from here on"):
        list(images)


def test_a_consumer_may_stop_early(tmp_path: Path) -> None:
    images = decoded(open_source(write_folder(tmp_path)), SPEC, refuse)
    assert next(images).id == sorted(NAMES)[0]
    images.close()  # type: ignore[attr-defined]  # ends the threads; a hang here would fail the test
