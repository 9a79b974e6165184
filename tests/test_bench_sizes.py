"""The accuracy-latency curve: work counted, turns taken, fronts found, and what is written and drawn."""

import json
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from encoder.manifest import Manifest
from export import __main__ as export_module
from load_tests import bench_sizes, curve
from load_tests.bench_sizes import Settings, latencies, names_of, served_size
from load_tests.curve import Candidate, Latency, Point, front, markdown, reference, to_json
from load_tests.gmac import gmac
from tests.small_run import SmallBackbone
from tests.tiny_stl10 import write_tiny_stl10
from training.backbone import Backbone
from training.labelled import read_split

ROOT = Path(__file__).parents[1]
STORE = ROOT / "model_store"


def point(ms: float, linear: float | None, knn20: float | None = 50.0, size: int = 64, served: bool = False) -> Point:
    return Point(Candidate("run", "small", size, 0.56, linear, knn20, served), Latency((ms,), (2 * ms,)))


def residual_stages(side: int) -> int:
    """Multiply-accumulates of ResNet-18 behind its stem, whose output is side × side: four convolutions of 3×3 in
    each stage; from the second on the first has half the channels to read and a 1×1 shortcut beside it."""
    total, channels = 4 * side**2 * 64 * 64 * 9, 64
    for _ in range(3):
        side, channels = side // 2, 2 * channels
        total += side**2 * channels * (channels // 2 * 9 + 3 * channels * 9 + channels // 2)
    return total


@pytest.mark.parametrize(
    ("stem", "size", "macs", "about"),
    [
        ("standard", 96, 48**2 * 64 * 3 * 49 + residual_stages(24), 0.333),
        ("standard", 64, 32**2 * 64 * 3 * 49 + residual_stages(16), 0.148),
        ("small", 64, 64**2 * 64 * 3 * 9 + residual_stages(32), 0.561),
    ],
)
def test_the_work_of_a_stem_is_the_sum_over_its_layers(stem: str, size: int, macs: int, about: float) -> None:
    assert gmac(Backbone(stem).eval(), size) * 1e9 == macs
    assert macs / 1e9 == pytest.approx(about, abs=5e-4)


def test_every_round_visits_all_graphs_in_turn_and_the_first_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ran = [0.0], []
    rounds = {"slow": iter([900.0, 8.0, 12.0, 10.0]), "quick": iter([900.0, 1.0, 2.0, 4.0])}  # ms of each visit

    def run(graph: str, image: np.ndarray) -> None:
        ran.append(graph)
        clock[0] += next(rounds[graph]) / 1e3

    monkeypatch.setattr(bench_sizes, "WARM_UP", 0)
    monkeypatch.setattr(bench_sizes, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_sizes, "open_session", lambda graph: graph.stem)
    monkeypatch.setattr(bench_sizes, "run", run)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    slow, quick = latencies([(Path("slow.onnx"), image), (Path("quick.onnx"), image)], rounds=3, runs=1)
    assert ran == ["slow", "quick"] * 4
    assert slow.p50_ms == pytest.approx((8, 12, 10)) and quick.p50_ms == pytest.approx((1, 2, 4))


def test_a_visit_times_each_run_behind_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, seconds = [0.0], count(1)

    def call() -> None:
        clock[0] += next(seconds)

    monkeypatch.setattr(bench_sizes, "WARM_UP", 2)
    monkeypatch.setattr(bench_sizes, "perf_counter", lambda: clock[0])
    assert bench_sizes.visit(call, runs=3).tolist() == [3000, 4000, 5000]


def test_a_ratio_of_times_is_the_median_of_the_rounds_ratios() -> None:
    # The machine was slow in the second round. The ratio of the medians would be 4 / 2 = 2.
    one = Point(point(1, 1).what, Latency((4.0, 30.0, 3.0), (5.0, 31.0, 4.0)))
    other = Point(point(1, 1).what, Latency((2.0, 20.0, 1.0), (2.0, 20.0, 1.0)))
    assert one.ms == 4 and one.ratio_to(other) == 2
    assert Point(one.what, Latency((4.0, 22.0, 1.0), ())).ratio_to(other) == 1.1


def test_the_front_is_what_no_other_point_beats() -> None:
    random = np.random.default_rng(0)
    points = [point(float(ms), float(linear)) for ms, linear in random.integers(1, 9, (40, 2))]
    kept = {(p.ms, p.score("linear")) for p in front(points, "linear")}

    def beaten(p: Point) -> bool:
        better = [(q.ms <= p.ms, q.score("linear") >= p.score("linear")) for q in points]
        different = [(q.ms, q.score("linear")) != (p.ms, p.score("linear")) for q in points]
        return any(both == (True, True) and other for both, other in zip(better, different, strict=True))

    assert kept == {(p.ms, p.score("linear")) for p in points if not beaten(p)}


def test_random_weights_are_on_no_front_and_the_served_one_is_the_reference() -> None:
    points = [point(1, None, None), point(3, 80), point(2, 70, served=True)]
    assert front(points, "linear") == [points[2], points[1]]
    assert reference(points) is points[2] and reference(points[:2]) is points[0]


def test_the_table_shows_each_point_with_its_spread_ratio_and_place() -> None:
    quick = Point(Candidate("a", "standard", 48, 0.0833), Latency((1.0, 1.2, 1.1), (1.5, 1.5, 1.4)))
    best = Point(Candidate("b", "small", 64, 0.561, 79.5, 78.74, True), Latency((3.3, 3.6, 3.3), (4.0, 4.4, 4.0)))
    assert markdown(to_json([quick, best])) == (
        "| encoder | stem | size | GMAC | int8 p50 ms | lowest to highest | p90 ms | × | linear | knn20 |  |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| a | standard | 48 | 0.08 | 1.10 | 1.00 to 1.20 | 1.50 | 0.33 |  |  |  |\n"
        "| b | small | 64 | 0.56 | 3.30 | 3.30 to 3.60 | 4.00 | 1.00 | 79.5 | 78.7 | served; front: linear, knn20 |"
    )


def test_the_curve_is_drawn_with_sizes_the_front_and_the_served_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [point(2, 70, 60, 48), point(3, 80, 71, 64, served=True), point(4, 79, 72, 80), point(1, None, None, 32)]
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    curve.draw(points, "made up", tmp_path / "curve.png")
    linear, knn20 = figures[0].axes
    assert [text.get_text() for text in linear.texts] == ["48", "64", "80"]  # no accuracy, no point
    drawn = {line.get_label(): line.get_xydata().tolist() for line in linear.get_lines()}
    assert drawn == {"Pareto front": [[2, 70], [3, 80]], "run, small stem": [[2, 70], [3, 80], [4, 79]]}
    assert knn20.get_lines()[0].get_xydata().tolist() == [[2, 60], [3, 71], [4, 72]]
    assert linear.collections[0].get_offsets().tolist() == [[3, 80]]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.format == "PNG"


def test_an_encoder_is_called_by_its_folder_where_that_is_one_encoders_name() -> None:
    paths = ["runs/a/checkpoint.pt", "runs/b/x.safetensors", "other/b/x.safetensors", "here.safetensors"]
    names = names_of([*paths, "random:small"])
    assert list(names.values()) == ["a", *paths[1:], "random:small"]


def test_the_served_size_is_that_of_the_manifest_beside_the_weights(tmp_path: Path) -> None:
    assert served_size(str(STORE / "encoder.safetensors")) == Manifest.read(STORE, "encoder").preprocess.size
    assert served_size(str(tmp_path / "checkpoint.pt")) is None


def test_weights_and_sizes_may_be_given_in_one_flag_or_several() -> None:
    chosen = Settings.from_arguments(["--weights", "a", "b", "--sizes", "48", "--weights", "c", "a", "--sizes", "64"])
    assert chosen.weights == ("a", "b", "c") and chosen.sizes == (48, 64)
    assert Settings.from_arguments([]) == Settings()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--weights", "random:tall"], "random:tall is not there; there are random:standard and random:small"),
        (["--rounds", "0"], "0 is less than 1"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench_sizes.main(flags)
    assert words in capsys.readouterr().err


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Flags for encoders of a few weights on a tiny STL-10, whose results go to var/ in tmp_path."""
    monkeypatch.setattr(export_module, "HELD_OUT", 40)
    monkeypatch.setattr(bench_sizes, "CALIBRATION", 20)
    monkeypatch.setattr(bench_sizes, "load_backbone", lambda weights, stem="standard": SmallBackbone(stem))
    data, var = write_tiny_stl10(tmp_path / "data", 120, 10), tmp_path / "var"
    flags = ["--data", str(data), "--rounds", "2", "--runs", "3", "--out", str(var / "s.json")]
    return [*flags, "--plot", str(var / "s.png"), "--weights", "runs/tried/checkpoint.pt", "random:small"]


def test_each_encoder_is_built_at_each_size_from_images_that_are_not_held_out(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(bench_sizes, "write_int8", lambda _, size, images, kind, file: seen.append((images, kind)))
    monkeypatch.setattr(bench_sizes, "accuracy", lambda file, split: {"linear": 70.0, "knn20": 60.0})
    settings = Settings.from_arguments([*small, "--sizes", "16", "24", "--calibrator", "entropy"])
    found = list(bench_sizes.candidates(settings, tmp_path))
    assert [(what.encoder, what.stem, what.size, what.linear) for what, _, _ in found] == [
        *(("tried", "standard", 16, 70), ("random:small", "small", 16, None)),
        *(("tried", "standard", 24, 70), ("random:small", "small", 24, None)),
    ]
    assert [image.shape for _, _, image in found] == [(1, 16, 16, 3)] * 2 + [(1, 24, 24, 3)] * 2
    assert len({graph for _, graph, _ in found}) == 4
    held_out, calibration = export_module.held_out_and_calibration(120, 20)
    images = read_split(settings.data, "train", 16).images
    assert np.array_equal(seen[0][0], images[calibration]) and not held_out[calibration].any()
    assert {kind for _, kind in seen} == {"entropy"}


def test_a_run_writes_its_table_its_picture_and_its_machine(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench_sizes.main([*small, "--sizes", "16"]) == 0
    written = json.loads((tmp_path / "var/s.json").read_text(encoding="utf-8"))
    tried, random = written.pop("rows")
    for row in (tried, random):
        assert len(row["rounds"]["p50_ms"]) == len(row["rounds"]["p90_ms"]) == 2
        assert 0 < row["int8_p50_ms"] <= row["int8_p90_ms"]
    # 3×3 of stride 2 from 3 to 8 channels, then 8 to 512.
    assert tried["gmac"] == pytest.approx((7 * 7 * 8 * 27 + 8 * 512) / 1e9, abs=5e-5)
    assert tried["linear"] > 30 and tried["knn20"] > 10  # chance is 10, and classes differ in colour
    assert random["linear"] is random["knn20"] is None
    assert written.keys() >= {"date", "commit", "cpu", "load_average", "versions", "rounds", "runs", "calibrator"}
    assert written["reference"] == "tried at 16"
    assert sorted(file.name for file in (tmp_path / "var").iterdir()) == ["s.json", "s.png"]
    assert "| tried | standard | 16 |" in capsys.readouterr().out
