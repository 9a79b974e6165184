"""Pixels on disk: the same bytes as in memory, written once and whole, read ahead by workers."""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.pictures import encode, scene
from tests.two_processes import together
from training import data, stream
from training.augment import Augmentation, Randomness
from training.data import Pixels, Pool, load_pool, views
from training.distributed import rank
from training.stream import StreamedPool

CPU = torch.device("cpu")
COUNT, SIDE = 11, 24
# Python 3.12 warns of every fork in a process with threads, as torch's DataLoader does by default up to 3.13.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def write_images(where: Path) -> Path:
    """Pictures of two sides: seven arrays of 16 px, four files that are kept at 24."""
    images = where / "images"
    images.mkdir()
    np.save(images / "a.npy", np.stack([np.array(scene(16, 16, seed)) for seed in range(7)]))
    for seed in range(7, COUNT):
        (images / f"{seed:02d}.png").write_bytes(encode(scene(40, 30, seed), "PNG"))
    return images


class Case(NamedTuple):
    images: Path
    out: Path

    def load(self, memory: float = 0.0, limit: int = 0, damaged: float = 0.1) -> Pool:
        return load_pool([str(self.images)], SIDE, CPU, limit, damaged, memory, self.out)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(write_images(tmp_path), tmp_path / "run")


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that images are decoded."""
    calls: list[int] = []
    read = data.read

    def counted(*arguments: Any) -> Iterator[data.Chunk]:
        calls.append(len(calls))
        yield from read(*arguments)

    monkeypatch.setattr(data, "read", counted)
    return calls


def orders(count: int, batch: int = 4) -> Iterator[Tensor]:
    for seed in range(count):
        yield torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed))[:batch]


def same(a: Pixels, b: Pixels) -> bool:
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


# The same face and the same bytes


def test_streamed_pixels_are_byte_for_byte_those_in_memory(case: Case) -> None:
    memory, streamed = case.load(memory=1), case.load()
    assert type(memory) is Pool and type(streamed) is StreamedPool
    assert len(streamed) == len(memory) == COUNT
    assert streamed.device == memory.device == CPU
    everything = torch.arange(COUNT)
    assert streamed.pixels(everything).canvas.shape == (COUNT, 3, SIDE, SIDE)
    assert same(streamed.pixels(everything), memory.pixels(everything))
    assert streamed.pixels(everything).side.tolist() == memory.side.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_the_order_that_was_given(case: Case, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "workers", lambda batch: workers)
    memory, streamed = case.load(memory=1), case.load()
    batches = list(streamed.batches(orders(9)))
    assert len(batches) == 9
    for ours, theirs, rows in zip(batches, memory.batches(orders(9)), orders(9), strict=True):
        assert same(ours, theirs)
        assert torch.equal(ours.rows, rows)


def test_views_are_the_same_from_disk_as_from_memory(case: Case) -> None:
    wanted = (Augmentation(size=12), Augmentation(size=8, solarize=0.5))
    rows = torch.tensor([3, 9, 10])
    for ours, theirs in zip(
        views(case.load().pixels(rows), wanted, Randomness(0, 1, CPU)),
        views(case.load(memory=1).pixels(rows), wanted, Randomness(0, 1, CPU)),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_an_endless_order_is_drawn_only_a_little_ahead_and_stopping_ends_the_workers(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = 0

    def endless() -> Iterator[Tensor]:
        nonlocal drawn
        while True:
            drawn += 1
            yield torch.tensor([drawn % COUNT])

    processes: list[Any] = []
    begin = DataLoader.__iter__

    def watched(loader: DataLoader) -> Any:
        iterator = begin(loader)
        processes.extend(iterator._workers)
        return iterator

    monkeypatch.setattr(stream, "workers", lambda batch: 1)
    monkeypatch.setattr(DataLoader, "__iter__", watched)
    batches = case.load().batches(endless())
    assert [int(pixels.rows) for pixels in islice(batches, 3)] == [1, 2, 3]
    assert drawn <= 3 + stream.AHEAD
    (worker,) = processes
    assert worker.is_alive()
    batches.close()  # type: ignore[attr-defined]
    worker.join(timeout=10)
    assert not worker.is_alive()


def test_no_orders_give_no_batches(case: Case) -> None:
    assert list(case.load().batches(iter([]))) == []


def test_reading_draws_no_random_numbers_of_the_model(case: Case) -> None:
    pool = case.load()
    torch.manual_seed(0)
    list(pool.batches(orders(2)))
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))


def test_workers_are_no_more_than_cores_and_shared_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_room(room: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(room, 0, room))

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    with_room(10**12)
    assert stream.workers(1000) == stream.WORKERS
    with_room(2 * stream.AHEAD * 1000)
    assert stream.workers(1000) == 2
    with_room(1000)
    assert stream.workers(1000) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    with_room(10**12)
    assert stream.workers(1000) == 1


# Written once, and whole


def test_pixels_are_decoded_once_and_found_again(
    case: Case, decodes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = case.load()
    assert sorted(file.name for file in case.out.iterdir()) == ["pixels.json", "pixels.u8"]
    assert (case.out / "pixels.u8").stat().st_size == COUNT * 3 * SIDE * SIDE
    again = case.load()
    assert len(decodes) == 1
    assert same(first.pixels(torch.arange(COUNT)), again.pixels(torch.arange(COUNT)))
    assert "pixels.u8 is whole: nothing is decoded" in capsys.readouterr().out


def test_other_images_and_other_settings_are_decoded_anew(case: Case, decodes: list[int]) -> None:
    case.load()
    assert len(case.load(limit=5)) == 5
    assert len(decodes) == 2
    (case.images / "99.png").write_bytes(encode(scene(40, 40), "PNG"))
    assert len(case.load()) == COUNT + 1
    assert len(decodes) == 3
    (case.images / "99.png").write_bytes(encode(scene(40, 40, seed=1), "PNG"))
    os.utime(case.images / "99.png", (1, 1))  # a file of the same name, of another time
    case.load()
    assert len(decodes) == 4


@pytest.mark.parametrize("damage", ["cut", "gone", "json", "no json", "empty json"])
def test_what_is_not_whole_is_decoded_anew(case: Case, decodes: list[int], damage: str) -> None:
    expected = case.load().pixels(torch.arange(COUNT))
    pixels, story = case.out / "pixels.u8", case.out / "pixels.json"
    if damage == "cut":
        pixels.write_bytes(pixels.read_bytes()[:-1])
    elif damage == "gone":
        pixels.unlink()
    elif damage == "json":
        story.write_text("{")
    elif damage == "empty json":
        story.write_text("{}")
    else:
        story.unlink()
    assert same(case.load().pixels(torch.arange(COUNT)), expected)
    assert len(decodes) == 2


def test_a_kill_while_decoding_leaves_nothing_that_is_taken_for_whole(
    case: Case, decodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "CHUNK", 3 * SIDE * SIDE)  # an image

    def die_while_decoding() -> None:
        read = data.read

        def dying(*arguments: Any) -> Iterator[data.Chunk]:
            for number, chunk in enumerate(read(*arguments)):
                yield chunk
                if number == 5:
                    os.kill(os.getpid(), signal.SIGKILL)

        data.read = dying
        case.load()

    process = multiprocessing.get_context("fork").Process(target=die_while_decoding)
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert [file.name for file in case.out.iterdir()] == ["pixels.u8.part"]
    assert len(case.load()) == COUNT
    assert decodes == [0]
    assert not (case.out / "pixels.u8.part").exists()


def test_too_much_damage_leaves_no_pixels_behind(case: Case) -> None:
    (case.images / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SystemExit, match="1 of 12 files cannot be read"):
        case.load(damaged=0.05)
    assert list(case.out.iterdir()) == []
    assert len(case.load(damaged=0.1)) == COUNT


def test_a_disk_that_is_too_small_stops_before_decoding(
    case: Case, decodes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(SystemExit, match=r"do not fit on the disk of .+run, where 0.0 GB are free; name an --out"):
        case.load()
    assert decodes == []


# Several processes


def load_together() -> dict[str, Any]:
    """Of each process: its pixels, and whether it wrote the file."""
    images = Path(os.environ["AKIN_TEST_IMAGES"])
    written: list[str] = []
    write = stream.write

    def watched(*arguments: Any) -> None:
        written.append("here")
        write(*arguments)

    stream.write = watched
    pool = load_pool([str(images)], SIDE, CPU, memory=0, cache=images.parent / "run")
    mine = next(iter(pool.batches(iter([torch.tensor([rank(), 10])]))))
    return {"count": len(pool), "written": written, "canvas": mine.canvas, "rows": mine.rows}


def test_of_two_processes_the_first_decodes_and_both_read(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKIN_TEST_IMAGES", str(case.images))
    results = together(load_together)
    memory = case.load(memory=1)
    assert [result["written"] for result in results] == [["here"], []]
    for number, result in enumerate(results):
        assert result["count"] == COUNT
        assert result["rows"].tolist() == [number, 10]
        assert torch.equal(result["canvas"], memory.pixels(torch.tensor([number, 10])).canvas)
