"""Which images are trained on, and how they stand in memory."""

import io
import re
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from images import stl10
from tests.pictures import encode, scene
from training import data
from training.augment import Augmentation, Randomness, view
from training.data import Pool, load_pool, views

CPU = torch.device("cpu")


def load(*paths: Path, store: int = 96, limit: int = 0, damaged: float = 0.1) -> Pool:
    return load_pool([str(path) for path in paths], store, CPU, limit, damaged)


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
    assert levels(load(tmp_path, damaged=0.4)) == [0, 1, 2]
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


# Any mixture, and never a test split


def png(level: int, size: int = 8) -> bytes:
    return encode(Image.fromarray(gray(level, size)), "PNG")


def write_zip(path: Path, *gray_levels: int) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for row, level in enumerate(gray_levels):
            archive.writestr(f"{row:05d}.0.png", png(level))


def write_tar(path: Path, *gray_levels: int) -> None:
    with tarfile.open(path, "w") as archive:
        for row, level in enumerate(gray_levels):
            info = tarfile.TarInfo(f"{row}.png")
            info.size = len(png(level))
            archive.addfile(info, io.BytesIO(png(level)))


def write_parquet(path: Path, *gray_levels: int) -> None:
    pq.write_table(pa.table({"image": [png(level) for level in gray_levels]}), path)


def write_cifar(folder: Path, *gray_levels: int) -> None:
    """Five batches of one image each, and a test batch of another."""
    folder.mkdir()
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, level in zip(names, gray_levels, strict=True):
        (folder / name).write_bytes(bytes([3]) + bytes([level]) * 3072)


def test_a_folder_of_anything_gives_all_its_images_and_no_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    write_cifar(tmp_path / "cifar-10-batches-bin", 11, 12, 13, 14, 15, 99)
    (tmp_path / "class_names.txt").write_text("gray\n")
    (tmp_path / "README.md").write_text("# Pictures")
    (tmp_path / "unpack.py").write_text("print()")
    (tmp_path / "LICENSE").write_text("MIT")
    write_tar(tmp_path / "m.tar", 21, 22)
    np.save(tmp_path / "pool.npy", np.stack([gray(31, 8)]))
    write_split(tmp_path / "stl10_binary", "test", [99])
    write_split(tmp_path / "stl10_binary", "train", [41])
    write_zip(tmp_path / "stl10-test.zip", 99, 99)
    write_zip(tmp_path / "stl10-train.zip", 51, 52)
    (tmp_path / "w").mkdir()
    write_parquet(tmp_path / "w" / "test-00000-of-00001.parquet", 99)
    write_parquet(tmp_path / "w" / "train-00000-of-00001.parquet", 61, 62)
    (tmp_path / "z.png").write_bytes(png(71))
    assert levels(load(tmp_path, store=96)) == [1, 11, 12, 13, 14, 15, 21, 22, 31, 51, 52, 41, 61, 62, 71]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"left out the test split in {tmp_path / 'cifar-10-batches-bin'}: it is for the final number alone",
        f"left out {tmp_path / 'stl10-test.zip'}: a test split is for the final number alone",
        f"left out the test split in {tmp_path / 'stl10_binary'}: it is for the final number alone",
        f"left out {tmp_path / 'w' / 'test-00000-of-00001.parquet'}: a test split is for the final number alone",
    ]


def test_a_test_split_that_is_named_itself_is_left_out_too(tmp_path: Path) -> None:
    write_zip(tmp_path / "stl10-test.zip", 99)
    with pytest.raises(SystemExit, match="no image could be read"):
        load(tmp_path / "stl10-test.zip")


def test_a_folder_named_test_further_up_does_not_hide_images(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write_parquet(tmp_path / "test" / "some.parquet", 5)
    assert levels(load(tmp_path / "test" / "some.parquet")) == [5]
    assert levels(load(tmp_path / "test")) == [5]


def test_a_path_that_is_not_there_stops_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"nowhere.zip does not exist; name a folder, .zip"):
        load(tmp_path / "nowhere.zip")


def test_the_limit_counts_into_a_tar_of_unknown_length(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", *range(10))
    assert levels(load(tmp_path / "a.tar", limit=4)) == [0, 1, 2, 3]
    assert levels(load(tmp_path / "a.tar")) == list(range(10))


def test_the_shared_data_gives_train_and_unlabeled_and_no_test_image(capsys: pytest.CaptureFixture[str]) -> None:
    shared = Path(__file__).parents[2] / "shared" / "data"
    if (shared / "stl10-test.zip").exists():
        counts = [source.count for source in data.unlabeled(shared)]
        assert counts == [5000, 45397]
        assert "left out" in capsys.readouterr().out


# Damage


def write_damaged(folder: Path, whole: int, damaged: int) -> None:
    for number in range(whole + damaged):
        (folder / f"{number:03d}.png").write_bytes(png(number)[: 40 if number >= whole else None])


def test_more_damage_than_allowed_stops_with_count_share_limit_and_the_way_out(tmp_path: Path) -> None:
    write_damaged(tmp_path, whole=7, damaged=3)
    assert len(load(tmp_path, damaged=0.3)) == 7
    expected = r"3 of 10 files cannot be read: 30.0%, where 25.0% are allowed; mend or remove them, or .* --damaged"
    with pytest.raises(SystemExit, match=expected):
        load(tmp_path, damaged=0.25)


def test_of_many_damaged_files_the_first_twenty_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_damaged(tmp_path, whole=1, damaged=27)
    load(tmp_path, damaged=1)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[:20]] == [f"left out {number:03d}.png" for number in range(1, 21)]
    assert said[20:] == ["left out 7 more", "27 files left out, 1 images kept"]


# Where pixels are kept


@pytest.mark.parametrize("per_chunk", [1, 3, 100])
def test_chunks_of_any_length_give_the_same_canvas(
    tmp_path: Path, per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", np.stack([np.array(scene(16, 16, seed)) for seed in range(7)]))
    np.save(tmp_path / "b.npy", np.stack([gray(9, 12)]))
    monkeypatch.setattr(data, "CHUNK", per_chunk * 3 * 16 * 16)
    pool = load(tmp_path)
    assert pool.side.tolist() == [16] * 7 + [12]
    for seed in range(7):
        assert torch.equal(pool.canvas[seed], torch.from_numpy(np.array(scene(16, 16, seed))).permute(2, 0, 1))


def test_decoded_images_are_not_held_beside_the_canvas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_zip(tmp_path / "z.zip", *range(150))
    monkeypatch.setattr(data, "CHUNK", 10 * 3 * 96 * 96)
    tracemalloc.start()  # sees numpy's memory, in which images are decoded, and not torch's
    try:
        pool = load(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pool.canvas.nbytes == 150 * 3 * 96 * 96
    assert peak < 0.5 * pool.canvas.nbytes


def test_pixels_that_would_fill_more_than_their_share_of_memory_are_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.stack([gray(level, 10) for level in range(4)]))  # 1,200 bytes
    paths, out = [str(tmp_path / "x.npy")], tmp_path / "run"
    monkeypatch.setattr(data, "free_memory", lambda device: 2400)
    assert type(load_pool(paths, 96, CPU, memory=0.5, cache=out)) is Pool
    assert not out.exists() and capsys.readouterr().out == ""
    monkeypatch.setattr(data, "free_memory", lambda device: 2399)
    assert type(load_pool(paths, 96, CPU, memory=0.5, cache=out)).__name__ == "StreamedPool"
    (line,) = capsys.readouterr().out.splitlines()
    assert re.match(r"0.0 GB of pixels are more than 50% of the 0.0 GB that are free on cpu: .*\(--memory", line)
    with pytest.raises(ValueError, match="no cache is named"):
        load_pool(paths, 96, CPU, memory=0.5)


def test_the_free_memory_is_that_of_this_machine_shared_by_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = data.free_memory(CPU)
    assert 1e7 < alone < 1e14
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert data.free_memory(CPU) == pytest.approx(alone / 4, rel=0.2)


# Batches and their views


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    np.save(tmp_path / "x.npy", np.stack([np.array(scene(32, 32, seed=seed)) for seed in range(5)]))
    return load(tmp_path / "x.npy")


def test_a_batch_holds_the_rows_that_were_ordered(pool: Pool) -> None:
    orders = [torch.tensor([3, 0]), torch.tensor([4, 4])]
    batches = list(pool.batches(iter(orders)))
    assert len(batches) == 2
    for pixels, rows in zip(batches, orders, strict=True):
        assert torch.equal(pixels.rows, rows)
        assert torch.equal(pixels.canvas, pool.canvas[rows])
        assert pixels.canvas.dtype == torch.uint8
        assert pixels.side.tolist() == [32, 32]


def test_both_views_of_an_image_are_of_that_image_and_differ(pool: Pool) -> None:
    pixels, small = pool.pixels(torch.tensor([3, 0])), Augmentation(size=16)
    first, second = views(pixels, (small, small), Randomness(0, 0, CPU))
    assert first.shape == second.shape == (2, 3, 16, 16)
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    whole = Augmentation(size=32, scale=(1, 1), ratio=(1, 1), flip=0, jitter=0, grayscale=0, blur=0)
    for plain in views(pixels, (whole, whole), Randomness(0, 0, CPU)):
        torch.testing.assert_close(plain, pool.canvas[[3, 0]].float() / 255, atol=1e-6, rtol=0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `view` is given."""
    counts: list[int] = []

    def counted(canvas: Tensor, side: Tensor, aug: Augmentation, random: Randomness) -> Tensor:
        counts.append(len(canvas))
        return view(canvas, side, aug, random)

    monkeypatch.setattr(data, "view", counted)
    return counts


def test_equal_views_are_drawn_in_one_call_as_one_batch_twice_as_large(pool: Pool, drawn: list[int]) -> None:
    pixels, aug = pool.pixels(torch.tensor([3, 0])), Augmentation(size=16)
    first, second = views(pixels, (aug, Augmentation(size=16)), Randomness(5, 1, CPU))
    assert drawn == [4]
    rows = torch.tensor([3, 0, 3, 0])
    at_once = view(pool.canvas[rows], pool.side[rows], aug, Randomness(5, 1, CPU))
    assert torch.equal(torch.cat([first, second]), at_once)


def test_views_of_several_sizes_come_in_the_order_that_was_wanted(pool: Pool, drawn: list[int]) -> None:
    large, small = Augmentation(size=24), Augmentation(size=8)
    got = views(pool.pixels(torch.tensor([1, 2])), (large, small, large, small, small), Randomness(0, 0, CPU))
    assert [tuple(each.shape) for each in got] == [(2, 3, size, size) for size in (24, 8, 24, 8, 8)]
    assert drawn == [4, 6]
    assert len({each.sum().item() for each in got}) == 5


def test_a_view_that_is_wanted_once_is_that_of_the_batch(pool: Pool) -> None:
    pixels, aug = pool.pixels(torch.tensor([1, 2, 4])), Augmentation(size=16)
    (alone,) = views(pixels, (aug,), Randomness(3, 3, CPU))
    assert torch.equal(alone, view(pixels.canvas, pixels.side, aug, Randomness(3, 3, CPU)))
