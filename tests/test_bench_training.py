"""The training benchmark: what the bare network is, what each part and each ratio counts, and what is written."""

import json
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from load_tests import bench_training, per_image
from load_tests.bare import Bare, calls_of, random_images
from load_tests.bench_training import PARTS, Bench, Round, Settings, noise, rows_of
from load_tests.per_image import in_workers, one_by_one, transforms
from tests.tiny_stl10 import write_tiny_stl10
from training import pretrain
from training.augment import Augmentation, Randomness, view
from training.recipes import PRESETS, Pretrain

CPU = torch.device("cpu")
TINY = Pretrain(
    stem="standard", hidden=8, output=8, optimizer="sgd", batch=4, store=32, limit=8, view=Augmentation(size=32)
)
STILL = Augmentation(size=24, scale=(1, 1), ratio=(1, 1), flip=1, jitter=0, grayscale=1, blur=0)  # nothing by chance


def tiny_bench(**changes: object) -> Bench:
    recipe = replace(TINY, **changes)
    return Bench(Settings(recipe, noise=True, steps=2), noise(recipe.limit, recipe.store, CPU))


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("simclr", [(8, True)]),  # both views as one batch
        ("moco", [(4, True), (4, False)]),  # a query learns, its key comes from the momentum encoder
        ("byol", [(8, True), (8, False)]),
    ],
)
def test_the_bare_network_gets_what_the_backbones_of_a_step_get(method: str, calls: list[tuple[int, bool]]) -> None:
    run = pretrain.start(replace(TINY, method=method), CPU)
    found = calls_of(run, noise(4, 32, CPU).pixels(torch.arange(4)))
    assert [(call.shape, call.learns) for call in found] == [((n, 3, 32, 32), learns) for n, learns in calls]
    assert [call.backbone is run.model.backbone for call in found] == [learns for _, learns in calls]
    learning = {name for name, p in run.model.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in run.model.named_parameters() if p.requires_grad}

    run.model.zero_grad()
    outputs = Bare(run.model, found)(random_images(found, CPU))
    assert [output.requires_grad for output in outputs] == [call.learns for call in found]
    outputs[0].sum().backward()
    assert {name for name, p in run.model.named_parameters() if p.grad is not None} == learning


def test_the_bare_network_is_backbone_and_head() -> None:
    run = pretrain.start(TINY, CPU)
    bare = Bare(run.model, calls_of(run, noise(4, 32, CPU).pixels(torch.arange(4))))
    images = torch.rand(8, 3, 32, 32)
    assert torch.equal(bare([images])[0], run.model.head(run.model.backbone(images)))


def test_random_images_have_the_memory_format_of_a_steps_views() -> None:
    run, given = pretrain.start(TINY, CPU), []
    run.model.backbone.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    random = random_images(calls_of(run, noise(4, 32, CPU).pixels(torch.arange(4))), CPU)
    assert [x.stride() for x in random] == [x.stride() for x in given]
    assert [x.dtype for x in random] == [x.dtype for x in given]
    assert random[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("optimizers", [1, 2])
def test_every_part_of_a_step_is_counted_once_and_in_order(optimizers: int) -> None:
    bench, seconds = tiny_bench(), count()
    bench.run.optimizers = [torch.optim.SGD(bench.run.model.parameters(), 0.1) for _ in range(optimizers)]
    bench.run.peaks = [0.1] * optimizers
    bench.clock = lambda: float(next(seconds))  # type: ignore[assignment]
    # The first look is before the first step; the parts of two steps follow.
    assert bench._parts() == {part: 1e3 * (n + n + len(PARTS)) / 2 for n, part in enumerate(PARTS, start=1)}
    before = bench.run.step
    bench._step(bench.run)  # nobody looks at the clock any more
    assert next(seconds) == 1 + 2 * len(PARTS) and bench.run.step == before + 1


def test_a_rate_is_all_images_over_all_the_time() -> None:
    bench, ticks = tiny_bench(), iter([0.0, 5.0])
    bench.clock = lambda: next(ticks)  # type: ignore[assignment]
    assert bench._rate(10, lambda: None) == 2 * 10 / 5


def test_only_the_whole_step_moves_the_weights() -> None:
    bench = tiny_bench()
    before = [p.detach().clone() for p in bench.run.model.parameters()]
    bench._step(bench.no_optimizer)
    bench._bare_step()
    assert all(torch.equal(p, q) for p, q in zip(bench.run.model.parameters(), before, strict=True))
    assert all(p.grad is not None for p in bench.run.model.parameters())
    bench._step(bench.run)
    assert not any(torch.equal(p, q) for p, q in zip(bench.run.model.parameters(), before, strict=True) if p.ndim > 1)


def a_round(step: float, without: float, bare: float, ours: float, theirs: float) -> Round:
    return Round(step, without, bare, {part: float(n) for n, part in enumerate(PARTS)}, ours, theirs, 2 * theirs)


def test_ratios_are_taken_within_each_round_and_then_their_median() -> None:
    # The machine was slow in the second round. The ratio of the medians would be 90 / 100 = 0.9.
    rounds = [a_round(80, 90, 100, 900, 300), a_round(8, 8, 10, 80, 20), a_round(85, 91, 130, 910, 455)]
    rows = {row.name: row for row in rows_of(rounds)}
    ratio = rows["step without optimizer to bare"]
    assert ratio.rounds == (0.9, 0.8, 0.7) and ratio.median == 0.8 and ratio.verdict == "missed"
    assert rows["step to bare"].median == 0.8
    assert rows["our batches to torchvision image by image"].rounds == (3, 4, 2)
    assert rows["step, views"].median == PARTS.index("views") and rows["step, views"].unit == "ms"
    assert [row.target for row in rows.values() if row.target] == [bench_training.TO_BARE]


def test_torchvisions_transforms_are_told_the_same_as_ours() -> None:
    # Without chance both draw one view: torchvision rounds after each axis and cuts off its gray, ours does neither.
    pixels = noise(6, 40, CPU)
    ours = view(pixels.canvas, pixels.side, STILL, Randomness(0, 0, CPU))
    theirs = torch.stack([transforms(STILL)(image) for image in pixels.canvas])
    assert theirs.shape == ours.shape and theirs.dtype == ours.dtype
    assert (theirs - ours).abs().max() < 3 / 255
    assert (ours.amax() - ours.amin()) > 0.2


def test_what_is_not_compared_is_said() -> None:
    with pytest.raises(SystemExit, match="turns, vertical flips and solarization are not compared"):
        transforms(Augmentation(rotate=0.5))


def test_views_of_single_images_are_counted_over_the_time_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    images, taken, ticks = list(torch.arange(3)), [], iter([1.0, 3.0, 5.0, 9.0])
    monkeypatch.setattr(per_image, "perf_counter", lambda: next(ticks))
    assert one_by_one(images, lambda x: (taken.append(int(x)), x)[1], 100) == 100 / 2
    assert taken == [n % 3 for n in range(100)]
    # One worker: 100 images are two batches of 64, and at least four are timed.
    assert in_workers([torch.zeros(1)], torch.neg, 100, workers=1) == 4 * 64 / 4


def test_a_benchmark_takes_the_flags_of_a_run() -> None:
    flags = ["--preset", "gpu", "--steps", "50", "--method", "byol", "--init", "x.pt", "--batch", "64"]
    chosen = Settings.from_arguments([*flags, "--data", "a", "b", "--view-size", "48"])
    assert (chosen.steps, chosen.rounds, chosen.noise) == (50, Settings.rounds, False)
    recipe = chosen.recipe
    assert (recipe.method, recipe.batch, recipe.data, recipe.view.size) == ("byol", 64, ("a", "b"), 48)
    assert recipe.stem == PRESETS["gpu"].stem and recipe.compile
    assert recipe.limit == bench_training.IMAGES and recipe.init == ""
    assert Settings.from_arguments([]).noise


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(SystemExit, match="3 images do not fill a batch of 4; set --batch or add images"):
        tiny_bench(limit=3)


def test_a_run_measures_and_writes_every_row_with_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_training, "in_workers", partial(in_workers, workers=1))
    data, out = write_tiny_stl10(tmp_path / "data", 10, 1), tmp_path / "var/training.json"
    sizes = ["--batch", "4", "--view-size", "24", "--store", "24", "--limit", "8", "--hidden", "8", "--output", "8"]
    quick = ["--steps", "1", "--rounds", "2", "--optimizer", "sgd", "--out", str(out), "--device", "cpu"]
    assert bench_training.main([*sizes, *quick, "--data", str(data)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in written.pop("rows")}
    assert all(len(row["rounds"]) == 2 and row["lowest"] >= 0 for row in rows.values())
    to_bare = [rows[name]["rounds"] for name in ("step without optimizer", "bare forward and backward")]
    ratios = rows["step without optimizer to bare"]
    assert ratios["rounds"] == [ours / bare for ours, bare in zip(*to_bare, strict=True)]
    assert ratios["target"] == "≥ 0.85"
    assert written.keys() >= {"date", "commit", "cpu", "load_average", "device", "images", "rounds", "steps"}
    assert written["recipe"]["batch"] == 4 and written["versions"].keys() >= {"torch", "torchvision"}
    assert written["images"] == f"8 images of {data}"
    assert list(out.parent.iterdir()) == [out]
    printed = capsys.readouterr().out
    assert sum(line.startswith("| ") for line in printed.splitlines()) == len(rows) + 2  # heading and its rule
    assert "simclr, standard stem at 24 px, batch 4, sgd, bf16" in printed
