"""The record of a run: rows, TensorBoard's files and the report."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from training.monitor import PANELS, POINTS, Monitor, curve


def row(step: int) -> dict[str, float]:
    return dict.fromkeys(PANELS, 1.0 / step) | {"step": step, "images": 8 * step, "images_per_second": 10.0}


def test_rows_are_kept_one_a_line(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for step in (1, 2):
        monitor.log(row(step), "")
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [row(1), row(2)]
    assert monitor.rows() == [row(1), row(2)]


def test_rows_after_the_checkpoint_are_dropped_when_a_run_goes_on(tmp_path: Path) -> None:
    killed = Monitor(tmp_path)
    for step in range(1, 8):
        killed.log(row(step), "")
    assert [kept["step"] for kept in Monitor(tmp_path, step=5).rows()] == [1, 2, 3, 4, 5]


def test_a_line_that_a_kill_cut_is_dropped(tmp_path: Path) -> None:
    killed = Monitor(tmp_path)
    killed.log(row(1), "")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    again = Monitor(tmp_path, step=9)
    again.log(row(2), "")
    assert again.rows() == [row(1), row(2)]


def test_a_remark_puts_a_line_on_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path)
    monitor.log(row(1), "")
    assert capsys.readouterr().out == ""
    monitor.log(row(2) | {"knn20": 41.26}, "3.0 min left")
    line = capsys.readouterr().out
    for part in ("loss 0.5000", "10 images/s", "20-NN 41.3%", "3.0 min left"):
        assert part in line
    without = row(3)
    del without["knn20"]
    monitor.log(without, "2.9 min left")
    assert "20-NN" not in capsys.readouterr().out


def events(out: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every scalar in the event files, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_the_same_values_at_once(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        monitor.log(row(step), "")
    before_the_end = events(tmp_path)
    monitor.close()
    assert events(tmp_path) == before_the_end
    assert before_the_end.keys() == row(1).keys() - {"step"}
    for key, points in before_the_end.items():
        assert [step for step, _ in points] == [1, 2, 3]
        assert [value for _, value in points] == pytest.approx([row(step)[key] for step in (1, 2, 3)])


def test_what_only_some_rows_have_stands_at_its_steps_in_tensorboard(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, tensorboard=True)
    for step in (1, 2, 3):
        monitor.log({"step": step, "loss": 1.0} | ({"knn20": 40.0} if step == 2 else {}), "")
    monitor.close()
    assert events(tmp_path)["knn20"] == [(2, 40.0)]


def test_tensorboard_forgets_the_rows_after_the_checkpoint_too(tmp_path: Path) -> None:
    killed = Monitor(tmp_path, tensorboard=True)
    for step in (1, 2, 3, 4):
        killed.log({"step": step, "loss": 1.0}, "")
    killed.close()
    again = Monitor(tmp_path, step=2, tensorboard=True)
    again.log({"step": 3, "loss": 5.0}, "")
    again.close()
    assert events(tmp_path)["loss"] == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_nothing_is_written_for_tensorboard_unless_asked(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.log(row(1), "")
    monitor.close()
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_the_package_a_line_says_so_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monitor = Monitor(tmp_path, tensorboard=True)
    monitor.log(row(1), "")
    monitor.log(row(2), "")
    monitor.close()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert "tensorboard is not installed" in said[0]
    assert monitor.rows() == [row(1), row(2)]


def colors(path: Path) -> int:
    """How many different colours a picture has."""
    with Image.open(path) as picture:
        return len(picture.convert("RGB").getcolors(1 << 24) or [])


def test_the_report_is_one_picture_of_the_whole_run(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    for step in range(1, 20):
        monitor.log(row(step), "")
    monitor.draw()
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.size[0] > 1000
    assert colors(tmp_path / "report.png") > 10  # something is drawn


def test_the_report_is_drawn_of_rows_that_lack_some_numbers_or_all(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path)
    monitor.draw()
    for step in range(1, 5):
        monitor.log({"step": step, "images": 8 * step, "loss": 1.0 / step}, "")
    monitor.draw()
    assert colors(tmp_path / "report.png") > 10


def test_a_curve_is_of_the_rows_that_have_its_number() -> None:
    rows = [{"images": 8}, {"images": 16, "knn20": 40.0}, {"images": 24}, {"images": 32, "knn20": 50.0}]
    assert curve(rows, "knn20") == ([16.0, 32.0], [40.0, 50.0])
    assert curve(rows, "loss") == ([], [])


def test_a_long_curve_is_averaged_down_without_losing_its_end() -> None:
    count = 10 * POINTS + 7
    images, values = curve([{"images": n, "loss": float(n)} for n in range(count)], "loss")
    assert POINTS <= len(values) < 2 * POINTS
    assert images == values
    assert values[0] == pytest.approx(4.5)  # the mean of 0 to 9
    assert values[-1] == pytest.approx(count - 4)  # of the last seven
