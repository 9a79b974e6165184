"""Which images are trained on, and how they stand in memory."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from images import stl10
from tests.pictures import encode, scene
from training.augment import Augmentation, Randomness
from training.data import Pool, load_pool

CPU = torch.device("cpu")


def load(*paths: Path, store: int = 96, limit: int = 0) -> Pool:
    return load_pool([str(path) for path in paths], store, CPU, limit)


def gray(level: int, size: int) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def write_split(folder: Path, split: str, levels: list[int]) -> None:
    """STL-10's binary of plain gray images, each of its own level."""
    folder.mkdir(exist_ok=True)
    images = np.stack([gray(level, stl10.SIZE) for level in levels])
    images.transpose(0, 3, 2, 1).tofile(folder / f"{split}_X.bin")
    if split != "unlabeled":
        np.ones(len(levels), np.uint8).tofile(folder / f"{split}_y.bin")


def levels(pool: Pool) -> list[int]:
    return pool.canvas[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    "splits, expected",
    [
        (("unlabeled", "train", "test"), [10, 11, 12, 20, 21]),
        (("train", "test"), [20, 21]),
        (("unlabeled",), [10, 11, 12]),
    ],
)
@pytest.mark.parametrize("name_parent", [False, True])
def test_of_stl10_unlabeled_and_train_are_read_and_never_test(
    tmp_path: Path, splits: tuple[str, ...], expected: list[int], name_parent: bool
) -> None:
    gray_levels = {"unlabeled": [10, 11, 12], "train": [20, 21], "test": [30, 31, 32, 33]}
    folder = tmp_path / "stl10_binary"
    for split in splits:
        write_split(folder, split, gray_levels[split])
    assert levels(load(tmp_path if name_parent else folder)) == expected


def test_a_folder_with_nothing_but_the_test_split_gives_no_images(tmp_path: Path) -> None:
    write_split(tmp_path, "test", [30])
    with pytest.raises(SystemExit, match="no image could be read"):
        load(tmp_path)


def test_pixels_of_stl10_stand_upright(tmp_path: Path) -> None:
    picture = np.array(scene(96, 96))
    (tmp_path / "unlabeled_X.bin").write_bytes(picture.transpose(2, 1, 0).tobytes())
    assert torch.equal(load(tmp_path).canvas[0], torch.from_numpy(picture).permute(2, 0, 1))


def test_sources_are_joined_in_order_and_each_image_keeps_its_side(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.stack([gray(1, 64), gray(2, 64)]))
    write_split(tmp_path / "stl", "unlabeled", [3])
    pool = load(tmp_path / "small.npy", tmp_path / "stl")
    assert pool.canvas.shape == (3, 3, 96, 96)
    assert pool.canvas.dtype == torch.uint8
    assert pool.side.tolist() == [64, 64, 96]
    assert levels(pool) == [1, 2, 3]
    assert (pool.canvas[0, :, :64, :64] == 1).all()
    assert not pool.canvas[0, :, 64:].any()
    assert not pool.canvas[0, :, :, 64:].any()


def test_the_canvas_is_no_larger_than_the_largest_image(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.stack([gray(1, 64)]))
    assert load(tmp_path / "small.npy").canvas.shape == (1, 3, 64, 64)


def test_arrays_larger_than_the_store_or_not_square_are_brought_to_it(tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.stack([np.array(scene(80, 60))]))
    np.save(tmp_path / "large.npy", np.stack([np.array(scene(128, 128))]))
    pool = load(tmp_path / "wide.npy", tmp_path / "large.npy", store=48)
    assert pool.side.tolist() == [48, 48]


@pytest.mark.parametrize("limit", [1, 3, 4, 5])
def test_the_limit_takes_the_first_of_all_sources_together(tmp_path: Path, limit: int) -> None:
    for name, first in (("a", 1), ("b", 3)):
        np.save(tmp_path / f"{name}.npy", np.stack([gray(first, 8), gray(first + 1, 8)]))
    assert levels(load(tmp_path / "a.npy", tmp_path / "b.npy", limit=limit)) == [1, 2, 3, 4][:limit]


def test_damaged_files_are_named_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode(Image.fromarray(gray(number, 96)), "PNG"))
    (tmp_path / "cut.jpg").write_bytes(encode(scene(64, 64))[:200])
    (tmp_path / "noise.png").write_bytes(b"\x00" * 99)
    assert levels(load(tmp_path)) == [0, 1, 2]
    said = capsys.readouterr().out
    assert "left out cut.jpg: " in said
    assert "left out noise.png: " in said
    assert "2 files left out, 3 images kept" in said


def test_nothing_is_said_where_all_files_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0.png").write_bytes(encode(scene(32, 32), "PNG"))
    load(tmp_path)
    assert capsys.readouterr().out == ""


def test_archives_are_read_at_the_store_size(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.png", encode(scene(120, 90), "PNG"))
    assert load(tmp_path / "photos.zip", store=40).canvas.shape == (1, 3, 40, 40)


def test_where_no_image_can_be_read_it_stops_and_names_the_paths(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SystemExit, match=f"no image could be read from {tmp_path}"):
        load(tmp_path)


def test_both_views_of_an_image_are_of_that_image_and_differ(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.stack([np.array(scene(32, 32, seed=seed)) for seed in range(5)]))
    pool, rows = load(tmp_path / "x.npy"), torch.tensor([3, 0])
    views = pool.two_views(rows, Augmentation(size=16), Randomness(0, 0, CPU))
    assert views.shape == (4, 3, 16, 16)
    assert not torch.equal(views[0], views[2])
    assert not torch.equal(views[1], views[3])
    whole = Augmentation(size=32, scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)
    plain = pool.two_views(rows, whole, Randomness(0, 0, CPU))
    torch.testing.assert_close(plain, pool.canvas[[3, 0, 3, 0]].float() / 255, atol=1e-6, rtol=0)
