"""How fast we train: our step against the bare network, part by part, and our views against torchvision's.

    .venv-full/bin/python -m load_tests.bench_training --preset cpu --data data
    .venv-full/bin/python -m load_tests.bench_training --preset gpu --data data --steps 50

Takes every flag of `akin pretrain` beside its own (`akin pretrain --help` lists them). Reads the images that --data
names, the first 5,000 unless --limit says otherwise; without --data, noise. Writes var/bench-training.json.

A round measures, one after the other:
- the step as `akin pretrain` takes it: pixels gathered, views drawn, network and loss forward, backward, optimizer;
- the same step without its optimizers;
- the bare network: what its backbones are given in a step, as random tensors of the same shapes, memory format and
  autocast, through backbone and head, and back from random gradients. No images, no views, no loss. A momentum
  encoder's forward pass is part of it;
- the parts of the step, each waited for: on a GPU their sum is more than the step;
- one view of each image: our batch at a time, and torchvision's v2 transforms image by image on uint8 tensors, in
  this process and in a DataLoader with a worker a core.
Ratios are taken within a round, and a first round is not counted.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from load_tests import machine, report
from load_tests.arguments import at_least_one
from load_tests.bare import Bare, calls_of, random_images
from load_tests.per_image import WORKERS, in_workers, one_by_one, transforms
from load_tests.report import Row, Target
from training import knobs, pretrain
from training.augment import Randomness
from training.checkpoint import Run
from training.data import Pool, views
from training.machine import made_with, pick_device
from training.objectives import Batch, Step
from training.recipes import PRESETS, Pretrain

IMAGES = 5000
DONE = 0.0  # how far the schedule is: the learning rate is small, and the network stays about what it was
TO_BARE = Target("≥", 0.85)  # augmentation, loading and loss cost at most 15%
PARTS = ("gather", "views", "forward and loss", "backward", "optimizer", "what follows")
PER_IMAGE = 2048  # images a round that torchvision's transforms are timed on, at most


@dataclass(frozen=True)
class Settings:
    """The benchmark's own knobs, and those of the run that it measures."""

    recipe: Pretrain
    noise: bool  # no images were named
    rounds: int = 3
    steps: int = 4  # of each kind in each round
    out: Path = Path("var/bench-training.json")

    @classmethod
    def from_arguments(cls, argv: Sequence[str] | None) -> "Settings":
        about = f"{(__doc__ or '').partition(chr(10))[0]} Takes the flags of `akin pretrain` too."
        parser = argparse.ArgumentParser(prog="bench_training", description=about, allow_abbrev=False)
        add, shown = parser.add_argument, " (default: %(default)s)"
        add("--rounds", type=at_least_one, default=cls.rounds, help="how often everything is measured" + shown)
        add("--steps", type=at_least_one, default=cls.steps, help="of each kind a round; a GPU wants 50" + shown)
        add("--out", type=Path, default=cls.out, help="where the JSON goes" + shown)
        own, rest = parser.parse_known_args(argv)
        recipe = knobs.parse(Pretrain(), rest, "bench_training", about, PRESETS)
        noise = not any(flag.partition("=")[0] == "--data" for flag in rest)
        # A head start would freeze the backbone, and speed does not ask where weights come from.
        recipe = replace(recipe, limit=recipe.limit or IMAGES, init="")
        return cls(recipe, noise, **vars(own))


class Clock:
    """Seconds between calls; on a GPU of work that is done, not asked for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self()

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        before, self.last = getattr(self, "last", 0.0), perf_counter()
        return self.last - before


@dataclass(frozen=True)
class Round:
    """Images a second; views a second; and `parts`, milliseconds a step."""

    step: float
    without_optimizer: float
    bare: float
    parts: dict[str, float]
    batched: float
    one_by_one: float
    in_workers: float


class Bench:
    """What stays the same in all rounds."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        config = settings.recipe
        if len(pool) < config.batch:
            raise SystemExit(f"{len(pool)} images do not fill a batch of {config.batch}; set --batch or add images")
        self.steps, self.pool, self.clock = settings.steps, pool, Clock(pool.device)
        self.run = pretrain.start(config, pool.device)
        self.no_optimizer = replace(self.run, optimizers=[], peaks=[])
        self.batches = pool.batches(pretrain.orders(len(pool), self.run))
        some = next(self.batches)
        calls = calls_of(self.run, some)
        self.model = pretrain.prepared(self.run, DONE)
        bare = Bare(self.run.model, calls)
        self.bare = torch.compile(bare) if config.compile else bare
        self.random_images = random_images(calls, pool.device)
        self.alone = [canvas[:, :side, :side].cpu() for canvas, side in zip(some.canvas, some.side, strict=True)]

    def round(self) -> Round:
        config, each = self.run.knobs, transforms(self.run.knobs.view)
        wanted = self.run.model.views(config.view)
        random = Randomness(config.seed, self.run.step, self.pool.device)
        some, count = next(self.batches), min(PER_IMAGE, self.steps * config.batch)
        return Round(
            step=self._rate(config.batch, lambda: self._step(self.run)),
            without_optimizer=self._rate(config.batch, lambda: self._step(self.no_optimizer)),
            bare=self._rate(config.batch, self._bare_step),
            parts=self._parts(),
            batched=self._rate(len(wanted) * config.batch, lambda: views(some, wanted, random)),
            one_by_one=one_by_one(self.alone, each, count),
            in_workers=in_workers(self.alone, each, count),
        )

    def _rate(self, images: int, step: Callable[[], object]) -> float:
        """Images a second, where a step takes so many."""
        self.clock()
        for _ in range(self.steps):
            step()
        return self.steps * images / self.clock()

    def _step(self, run: Run) -> None:
        pretrain.train_step(run, self.model, next(self.batches), DONE)

    def _bare_step(self) -> None:
        precision, device = self.run.knobs.precision, self.pool.device
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            outputs = [output for output in self.bare(self.random_images) if output.requires_grad]
        self.run.model.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, [torch.randn_like(output) for output in outputs])

    def _parts(self) -> dict[str, float]:
        """Milliseconds a step of each of PARTS, of steps that are waited for at every part's end."""
        taken = dict.fromkeys(PARTS, 0.0)

        def end_of(part: str) -> None:
            taken[part] += self.clock() * 1e3 / self.steps

        def watched(batch: Batch) -> Step:
            end_of("views")
            step = self.model(batch)
            end_of("forward and loss")
            return step

        first, last = self.run.optimizers[0], self.run.optimizers[-1]
        hooks = (
            first.register_step_pre_hook(lambda *_: end_of("backward")),
            last.register_step_post_hook(lambda *_: end_of("optimizer")),
        )
        self.clock()
        for _ in range(self.steps):
            pixels = next(self.batches)
            end_of("gather")
            pretrain.train_step(self.run, watched, pixels, DONE)
            end_of("what follows")
        for hook in hooks:
            hook.remove()
        return taken


def rows_of(rounds: Sequence[Round]) -> list[Row]:
    """What is written and shown of the rounds, ratios being taken within each."""

    def row(name: str, unit: str, value: Callable[[Round], float], target: Target | None = None) -> Row:
        return Row(name, unit, tuple(value(each) for each in rounds), target)

    return [
        row("step", "images/s", lambda r: r.step),
        row("step without optimizer", "images/s", lambda r: r.without_optimizer),
        row("bare forward and backward", "images/s", lambda r: r.bare),
        row("step without optimizer to bare", "×", lambda r: r.without_optimizer / r.bare, TO_BARE),
        row("step to bare", "×", lambda r: r.step / r.bare),
        *(Row(f"step, {part}", "ms", tuple(each.parts[part] for each in rounds)) for part in PARTS),
        row("views, our batches", "images/s", lambda r: r.batched),
        row("views, torchvision image by image", "images/s", lambda r: r.one_by_one),
        row(f"views, torchvision in {WORKERS} workers", "images/s", lambda r: r.in_workers),
        row("our batches to torchvision image by image", "×", lambda r: r.batched / r.one_by_one),
        row(f"our batches to torchvision in {WORKERS} workers", "×", lambda r: r.batched / r.in_workers),
    ]


def caption(about: dict[str, Any], recipe: Pretrain) -> str:
    """One line: what was measured, where, when."""
    compiled = ", compiled" if recipe.compile else ""
    return (
        f"{recipe.method}, {recipe.stem} stem at {recipe.view.size} px, batch {recipe.batch}, {recipe.optimizer}, "
        f"{recipe.precision}{compiled}; {about['images']}. {about['device']}, torch {about['versions']['torch']}, "
        f"{about['workers']} cores for torchvision, load average {about['load_average']:g} before; medians over "
        f"{about['rounds']} × {about['steps']} steps. Commit {about['commit']}, {about['date'][:10]}."
    )


def noise(count: int, side: int, device: torch.device) -> Pool:
    """Images of independent pixels: a step takes as long on them."""
    canvas = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    return Pool(canvas.to(device), torch.full((count,), side, device=device))


def measure(settings: Settings) -> int:
    """Measure, print, write. Returns the exit code: 0 also where a target is missed."""
    recipe, device = settings.recipe, pick_device(settings.recipe.device)
    about = machine.describe(Path(sys.executable))
    about["versions"] |= {name: version(name) for name in ("torch", "torchvision")}
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=settings.out.parent) as cache:
        pool = (
            noise(recipe.limit, recipe.store, device)
            if settings.noise
            else pretrain.pool_of(recipe, device, Path(cache))
        )
        bench, rounds = Bench(settings, pool), []
        bench.round()  # warms up
        for number in range(1, settings.rounds + 1):
            rounds.append(bench.round())
            print(f"round {number} of {settings.rounds}", file=sys.stderr, flush=True)
    about |= {
        "device": made_with(device)["machine"],
        "images": f"{len(pool)} images of {'noise' if settings.noise else ', '.join(recipe.data)}",
        "workers": WORKERS,
        "rounds": settings.rounds,
        "steps": settings.steps,
        "recipe": asdict(recipe),
    }
    rows = rows_of(rounds)
    written = {**about, "rows": [row.to_json() for row in rows]}
    settings.out.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{report.markdown(rows, caption(about, recipe))}written to {settings.out}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return measure(Settings.from_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
