"""Change one thing, keep the rest:  akin ablate temperature|augmentation|batch|head|optimizer --data D --minutes M

Reads   images as `akin pretrain` does, and the labelled STL-10 that features are judged with
Writes  runs/ablate-NAME/ (or --out): a folder for each run, table.md, plot.png, and ablation.json with every number
        A killed sweep goes on with the same command. More --seeds or other --values join those that are there. A run
        that diverged says so in its row and counts as done; to try it again, delete its folder.

Takes values × seeds × minutes, plus half a minute to judge each run. Judging happens inside the train labels and is
not training: neither it nor loading counts in --minutes. Compiling does, where a preset asks for it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training import checkpoint, comparison, knobs, pretrain
from training.ablations import SWEEPS, recipes
from training.comparison import RANDOM, Outcome
from training.data import Pool
from training.judge import find_labelled, judge, read_labelled
from training.labelled import Split
from training.machine import made_with, pick_device
from training.recipes import PRESETS, Pretrain

SAME_ANYWAY = {"out", "device", "resume", "check"}  # where a run lies and runs, not what it is
JUDGING_MINUTES = 0.5  # of one run, on two CPU cores


@dataclass(frozen=True)
class Ablate:
    data: tuple[str, ...] = ("data",)  # images to train on, as for pretrain
    labels: str = ""  # a folder with labelled STL-10 to judge by; left out, the first of --data that is one
    out: str = ""  # folder of the runs; left out, runs/ablate-NAME
    preset: str = "cpu"  # recipe of pretrain that the values change
    values: tuple[str, ...] = ()  # try these; left out, all that the sweep knows
    seeds: int = 2  # runs of each value
    minutes: float = 8.0  # of training, each run
    epochs: int = 0  # length of each run in epochs instead
    size: int = 64  # side at which features are judged, in pixels
    limit: int = 0  # train on the first so many images only (0: all)
    device: str = "auto"  # cuda where there is one, else cpu

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.size < 1:
            raise ValueError(f"seeds {self.seeds} and size {self.size} have to be at least 1")
        if self.minutes <= 0 and self.epochs < 1:
            raise ValueError(f"minutes {self.minutes} make no run; give more than 0, or --epochs")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep, before it is made."""

    value: str
    config: Pretrain

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def result(self) -> Path:
        return self.folder / "result.json"


def short_recipe(
    preset: str, data: tuple[str, ...], minutes: float, epochs: int, limit: int = 0, device: str = "auto"
) -> Pretrain:
    """A preset for a run of `minutes`, or of `epochs` unless they are 0, that is judged at its end only."""
    if preset not in PRESETS:
        raise SystemExit(f"there is no preset {preset!r}; take one of {', '.join(PRESETS)}")
    recipe = replace(PRESETS[preset], data=data, limit=limit, device=device)
    recipe = replace(recipe, watch="", tensorboard=False, stop_on_collapse=False)
    return replace(recipe, minutes=0.0, epochs=epochs) if epochs else replace(recipe, minutes=minutes)


def trials_of(name: str, config: Ablate, out: Path) -> list[Trial]:
    """Random weights first, then every value; all of them with one seed before any with the next, so that a sweep
    that is stopped has something to say."""
    base = short_recipe(config.preset, config.data, config.minutes, config.epochs, config.limit, config.device)
    base = replace(base, log_every=max(1, base.log_every // 2))  # gradient norms are averages over logged steps
    wanted = {RANDOM: replace(base, method="simclr", init="")} | recipes(name, base, config.values)
    return [
        Trial(value, replace(recipe, seed=seed, out=str(out / f"{value}-seed{seed}")))
        for seed in range(config.seeds)
        for value, recipe in wanted.items()
    ]


def refuse_other_settings(trial: Trial, judged: Mapping[str, Any]) -> None:
    """A run that is there, finished or not, has to be the run that is asked for."""
    if trial.result.exists():
        there = Outcome.read(trial.result)
        kept, asked = there.knobs | {"judged": there.judged}, plain(trial.config) | {"judged": dict(judged)}
    elif (trial.folder / "checkpoint.pt").exists():
        saved = checkpoint.read(trial.folder, torch.device("cpu"))
        kept, asked = json.loads(saved["knobs"]), plain(trial.config)
    else:
        return
    before, now = dict(knobs.flat(kept)), dict(knobs.flat(asked))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key) and key not in SAME_ANYWAY:
            raise SystemExit(
                f"{trial.folder} is a run with {key} {before.get(key)}, not {now.get(key)}: ask for the same "
                "settings to go on, or name another --out"
            )


def refuse_other_sweep(name: str, out: Path) -> None:
    summary = out / "ablation.json"
    there = json.loads(summary.read_text())["ablation"] if summary.exists() else name
    if there != name:
        raise SystemExit(f"{out} holds the ablation {there}, not {name}; name another --out")


def plain(config: Pretrain) -> dict[str, Any]:
    """The knobs as JSON gives them back."""
    return json.loads(json.dumps(asdict(config)))


def carry_out(trial: Trial, pool: Pool, labelled: Split, judged: dict[str, Any]) -> Outcome:
    """Train, or go on training, and judge. A run that diverges says so instead of raising."""
    device = pool.device
    trial.folder.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, float] = {}
    diverged = ""
    begun = (trial.folder / "checkpoint.pt").exists()
    run = pretrain.resume(trial.folder, device) if begun else pretrain.start(trial.config, device)
    try:
        if trial.value != RANDOM:
            pretrain.train(run, pool, trial.folder, quiet=True)
    except SystemExit as reason:
        diverged = str(reason)
    else:
        numbers = judge(run.kept, labelled, device)._asdict() | gradient_norms(trial.folder)
        numbers |= {"images": run.images, "epochs": run.images / len(pool), "seconds": run.seconds}
    return Outcome(
        value=trial.value,
        seed=trial.config.seed,
        numbers=numbers,
        diverged=diverged,
        knobs=plain(trial.config),
        judged=judged,
        made=made_with(device),
        date=datetime.now(UTC).date().isoformat(),
    )


def gradient_norms(folder: Path) -> dict[str, float]:
    """Over the steps that a run logged, warm-up and all."""
    metrics = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    norms = [row["gradient_norm"] for row in rows if "gradient_norm" in row]
    if not norms:
        return {}
    return {"gradient_norm": float(np.mean(norms)), "gradient_norm_median": float(np.median(norms))}


def report(name: str, trials: Sequence[Trial], out: Path) -> str:
    """Write down what has been found so far, of these trials and of what is there besides. Returns the table."""
    files = [trial.result for trial in trials]
    files += sorted(file for file in out.glob("*/result.json") if file not in files)
    outcomes = [Outcome.read(file) for file in files if file.exists()]
    text = comparison.table(SWEEPS[name], outcomes)
    (out / "table.md").write_text(text)
    (out / "ablation.json").write_text(json.dumps(comparison.summary(name, SWEEPS[name], outcomes), indent=1) + "\n")
    comparison.draw(SWEEPS[name], outcomes, out / "plot.png")
    return text


def estimate(name: str, config: Ablate, trials: Sequence[Trial]) -> str:
    """How long it will take, in words."""
    left = [trial for trial in trials if not trial.result.exists()]
    runs, to_do = (sum(trial.value != RANDOM for trial in some) for some in (trials, left))
    plan = f"{name}: values {runs // config.seeds}, seeds {config.seeds}, runs {runs}, to do {to_do}"
    if config.epochs:
        return f"{plan}; epochs each {config.epochs}"
    minutes = to_do * config.minutes + len(left) * JUDGING_MINUTES
    return f"{plan}; {config.minutes:g} min each, about {minutes:.0f} min with judging"


def ablate(name: str, config: Ablate) -> int:
    out = Path(config.out or f"runs/ablate-{name}")
    trials = trials_of(name, config, out)
    source = find_labelled(config.labels, config.data)
    judged = {"labels": str(source), "size": config.size}
    refuse_other_sweep(name, out)
    for trial in trials:
        refuse_other_settings(trial, judged)
    print(estimate(name, config, trials), flush=True)
    left = [trial for trial in trials if not trial.result.exists()]
    if left:
        out.mkdir(parents=True, exist_ok=True)
        pool = pretrain.pool_of(left[0].config, pick_device(config.device), out)
        largest = max(trial.config.batch for trial in left)
        if len(pool) < largest:
            raise SystemExit(f"{len(pool)} images do not fill a batch of {largest}; add images, or choose --values")
        labelled = read_labelled(source, config.size)
    for number, trial in enumerate(left, start=1):
        outcome = carry_out(trial, pool, labelled, judged)
        outcome.write(trial.result)
        report(name, trials, out)
        found = outcome.numbers
        said = f"diverged: {outcome.diverged}"
        if found:
            said = f"linear {found['linear']:.1f}, 20-NN {found['knn20']:.1f}"
        print(f"{number} of {len(left)}  {trial.folder.name}  {said}", flush=True)
    print(f"\n{report(name, trials, out)}\n{out}/table.md, plot.png and ablation.json hold it")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help"):
        sweeps = "\n".join(f"  {name:13} {sweep.about}: {' '.join(sweep.values)}" for name, sweep in SWEEPS.items())
        print(f"{(__doc__ or '').strip()}\n\n{sweeps}\n\n`akin ablate temperature --help` lists the flags.")
        return 0
    if name not in SWEEPS:
        raise SystemExit(f"there is no ablation {name!r}; there are {', '.join(SWEEPS)}")
    runs = len(SWEEPS[name].values)
    about = (
        f"Ablation: {SWEEPS[name].about}. Values: {', '.join(SWEEPS[name].values)}. Takes {runs} × seeds × minutes, "
        f"{runs * Ablate.seeds * Ablate.minutes:g} minutes as it stands, and half a minute to judge each run."
    )
    return ablate(name, knobs.parse(Ablate(), rest, f"akin ablate {name}", about))


if __name__ == "__main__":
    sys.exit(main())
