"""CIFAR-10's two official versions give the same images, and its pickles get to run nothing."""

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from images import cifar10
from images.sources import SourceError, open_source

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)  # two to each of the six batches
LABELS = [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9]
BATCHES = [*cifar10.BATCHES["train"], *cifar10.BATCHES["test"]]


def planes(images: np.ndarray) -> np.ndarray:
    """(N, 3072): red, green, blue, each row by row."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def write_binary(where: Path) -> Path:
    folder = where / "cifar-10-batches-bin"
    folder.mkdir()
    for batch, start in zip(BATCHES, range(0, 12, 2), strict=True):
        rows = slice(start, start + 2)
        records = np.column_stack([np.array(LABELS[rows], np.uint8), planes(IMAGES[rows])])
        (folder / f"{batch}.bin").write_bytes(records.tobytes())
    return folder


def python2_string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_batch(images: np.ndarray, labels: list[int], kind: bytes = b"u1") -> bytes:
    """A pickle as Python 2 and the numpy of 2009 wrote it: opcodes and names are those of the official files."""
    data = planes(images).tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + python2_string(b"b") + b"tR"
    shape = b"K" + bytes([len(images)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = b"cnumpy\ndtype\n(" + python2_string(kind) + b"K\x00K\x01tR"
    dtype += b"(K\x03" + python2_string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", len(data)) + data + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    name = python2_string(b"batch_label") + python2_string(b"training batch 1 of 5")
    entries = name + python2_string(b"labels") + numbers + python2_string(b"data") + array + state
    return b"\x80\x02}(" + entries + b"u."


def write_pickled(where: Path) -> Path:
    folder = where / "cifar-10-batches-py"
    folder.mkdir()
    for batch, start in zip(BATCHES, range(0, 12, 2), strict=True):
        (folder / batch).write_bytes(python2_batch(IMAGES[start : start + 2], LABELS[start : start + 2]))
    (folder / "batches.meta").write_bytes(b"not read")
    return folder


VERSIONS = [write_binary, write_pickled]


@pytest.mark.parametrize("write", VERSIONS)
@pytest.mark.parametrize(("split", "rows"), [("train", slice(0, 10)), ("test", slice(10, 12))])
@pytest.mark.parametrize("name_parent", [False, True])
def test_both_versions_give_images_upright_in_official_order(
    write: Callable[[Path], Path], split: str, rows: slice, name_parent: bool, tmp_path: Path
) -> None:
    folder = write(tmp_path)
    source = open_source(tmp_path if name_parent else folder, split)
    items = list(source)
    assert source.count == len(items) == len(LABELS[rows])
    assert np.array_equal(np.stack([item.data for item in items]), IMAGES[rows])
    assert [item.label for item in items] == LABELS[rows]
    assert [item.id for item in items][:2] == [f"{split}/00000", f"{split}/00001"]
    assert source.class_names == cifar10.CLASS_NAMES


def test_the_pickles_of_these_tests_are_what_numpy_reads_too() -> None:
    batch = pickle.loads(python2_batch(IMAGES[:2], LABELS[:2]), encoding="bytes")
    assert np.array_equal(batch[b"data"], planes(IMAGES[:2]))
    assert batch[b"labels"] == LABELS[:2]


def test_without_a_split_the_train_split_is_taken(tmp_path: Path) -> None:
    assert [item.label for item in open_source(write_binary(tmp_path))] == LABELS[:10]


def test_a_frog_is_the_seventh_class() -> None:
    assert cifar10.CLASS_NAMES.index("frog") == 6
    assert len(cifar10.CLASS_NAMES) == 10


def test_the_splits_that_are_there_are_found(tmp_path: Path) -> None:
    folder = write_binary(tmp_path)
    assert cifar10.splits(folder) == ("train", "test")
    (folder / "test_batch.bin").unlink()
    assert cifar10.splits(folder) == ("train",)
    assert cifar10.splits(tmp_path) == ()


# What is missing or damaged


@pytest.mark.parametrize("write", VERSIONS)
def test_a_missing_batch_is_named(write: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = write(tmp_path)
    next(folder.glob("data_batch_4*")).unlink()
    with pytest.raises(
        SourceError, match=r"data_batch_4 is not there, with .bin or without; torchvision.datasets.CIFAR10"
    ):
        open_source(folder, "train")
    assert open_source(folder, "test").count == 2


def test_a_split_that_cifar_does_not_have_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="CIFAR-10 has no split 'unlabeled', only train, test"):
        open_source(write_binary(tmp_path), "unlabeled")


@pytest.mark.parametrize("size", [0, 3072, 3073 + 3000])
def test_a_truncated_binary_is_refused_with_its_size(size: int, tmp_path: Path) -> None:
    file = write_binary(tmp_path) / "data_batch_2.bin"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(SourceError, match=f"data_batch_2.bin has {size} bytes, not a multiple of one record's 3073"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("size", [0, 40, 3000])
def test_a_truncated_pickle_is_refused(size: int, tmp_path: Path) -> None:
    file = write_pickled(tmp_path) / "data_batch_2"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(SourceError, match=r"data_batch_2 is no whole batch of CIFAR-10: .+; fetch it again"):
        open_source(tmp_path, "train")


@pytest.mark.parametrize("write", VERSIONS)
def test_a_label_beyond_the_ten_classes_is_refused(write: Callable[[Path], Path], tmp_path: Path) -> None:
    file = next(write(tmp_path).glob("data_batch_1*"))
    wrong = np.array([10], np.uint8).tobytes() + planes(IMAGES[:1]).tobytes()
    file.write_bytes(wrong if file.suffix else python2_batch(IMAGES[:1], [10]))
    with pytest.raises(SourceError, match="does not label 1 images from 0 to 9"):
        open_source(tmp_path, "train")


def test_labels_that_do_not_fit_their_images_are_refused(tmp_path: Path) -> None:
    (write_pickled(tmp_path) / "test_batch").write_bytes(python2_batch(IMAGES[:2], [1]))
    with pytest.raises(SourceError, match="does not label 2 images"):
        open_source(tmp_path, "test")


# What pickles can ask for


@pytest.mark.parametrize(
    ("asks", "name"),
    [
        (b"cposix\nsystem\n(S'echo > PATH'\ntR.", "posix.system"),
        (b'c__builtin__\neval\n(S\'open("PATH", "w")\'\ntR.', "__builtin__.eval"),
        (b"c__builtin__\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.", "__builtin__.getattr"),
        (b"cnumpy\nload\n(S'PATH'\ntR.", "numpy.load"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "_codecs.encode"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0cdtype.mro.im\x93.", "numpy.dtype.mro.im"),
    ],
)
def test_a_pickle_that_asks_for_anything_else_is_refused_by_name(asks: bytes, name: str, tmp_path: Path) -> None:
    written = tmp_path / "written"
    file = write_pickled(tmp_path) / "test_batch"
    file.write_bytes(asks.replace(b"PATH", str(written).encode()))
    with pytest.raises(SourceError, match=rf"test_batch asks for {name}, which no batch of CIFAR-10 needs"):
        open_source(tmp_path, "test")
    assert not written.exists()


def test_an_array_of_addresses_is_not_followed(tmp_path: Path) -> None:
    """numpy.ndarray((1,), 'O', bytes) takes the bytes for addresses of objects: numpy's own unpickling crashes."""
    forged = b"\x80\x02}(U\x04datacnumpy\nndarray\n(K\x01\x85U\x01OU\x08AAAAAAAAtRU\x06labels]K\x01au."
    (write_pickled(tmp_path) / "test_batch").write_bytes(forged)
    with pytest.raises(SourceError, match="no whole batch of CIFAR-10"):
        open_source(tmp_path, "test")


def test_an_array_of_another_kind_is_refused(tmp_path: Path) -> None:
    (write_pickled(tmp_path) / "test_batch").write_bytes(python2_batch(IMAGES[:2], LABELS[:2], kind=b"O8"))
    with pytest.raises(SourceError, match=r"its array is b'O8' of shape \(2, 3072\), not u1"):
        open_source(tmp_path, "test")
