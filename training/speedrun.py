"""Eight minutes from random weights to a number:  akin speedrun --data D

Reads   images as `akin pretrain` does, and the labelled STL-10 that the features are judged with
Writes  one line, also as JSON to runs/speedrun/records.jsonl (or --out), and the run to a numbered folder beside it

The minutes are those of training: from the first batch on, compiling and augmentation included. Loading the images,
reading the log (every so many steps), writing the checkpoint at the end and judging are not counted.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training import knobs, pretrain
from training.ablate import plain, short_recipe
from training.judge import find_labelled, judge, read_labelled
from training.machine import made_with, pick_device


@dataclass(frozen=True)
class Speedrun:
    data: tuple[str, ...] = ("data",)  # images to train on, as for pretrain
    labels: str = ""  # a folder with labelled STL-10 to judge by; left out, the first of --data that is one
    out: str = "runs/speedrun"  # folder of the runs and of records.jsonl
    preset: str = "speedrun"  # recipe of pretrain
    minutes: float = 8.0  # of training
    epochs: int = 0  # length in epochs instead
    size: int = 64  # side at which features are judged, in pixels
    seed: int = 0  # of the run
    limit: int = 0  # train on the first so many images only (0: all)
    device: str = "auto"  # cuda where there is one, else cpu

    def __post_init__(self) -> None:
        if self.minutes <= 0 and self.epochs < 1:
            raise ValueError(f"minutes {self.minutes} make no run; give more than 0, or --epochs")
        if self.size < 1:
            raise ValueError(f"size {self.size} is no side; give at least 1 pixel")


@dataclass(frozen=True)
class Record:
    """A line of records.jsonl."""

    linear: float  # percent, inside the train labels
    knn20: float  # percent, inside the train labels
    images: int  # seen
    images_per_second: float
    minutes: float  # of training
    made: dict[str, str]  # machine, torch, commit
    date: str
    pool: int  # images to choose from
    judged: dict[str, Any]  # with which labels, and at which size
    preset: str
    knobs: dict[str, Any]

    def __str__(self) -> str:
        return (
            f"linear {self.linear:.1f}, 20-NN {self.knn20:.1f} inside the train labels at {self.judged['size']} px; "
            f"{self.images:,} images in {self.minutes:.1f} min, {self.images_per_second:,.0f} images/s; "
            f"{self.made['machine']}, torch {self.made['torch']}, commit {self.made['commit']}, {self.date}"
        )


def speedrun(config: Speedrun) -> Record:
    source = find_labelled(config.labels, config.data)
    device, records = pick_device(config.device), Path(config.out) / "records.jsonl"
    earlier = len(records.read_text().splitlines()) if records.exists() else 0
    folder = Path(config.out) / str(earlier + 1)
    recipe = short_recipe(config.preset, config.data, config.minutes, config.epochs, config.limit, config.device)
    recipe = replace(recipe, seed=config.seed, out=str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    pool = pretrain.pool_of(recipe, device, folder.parent)
    labelled = read_labelled(source, config.size)
    length = f"{recipe.minutes:g} min" if recipe.minutes else f"{recipe.epochs} epochs"
    print(f"{len(pool)} images, {length} on {device}; {folder / 'metrics.jsonl'} grows", flush=True)
    run = pretrain.start(recipe, device)
    pretrain.train(run, pool, folder, quiet=True)
    found = judge(run.kept, labelled, device)
    record = Record(
        linear=round(found.linear, 2),
        knn20=round(found.knn20, 2),
        images=run.images,
        images_per_second=round(run.images / run.seconds, 1),
        minutes=round(run.seconds / 60, 2),
        made=made_with(device),
        date=datetime.now(UTC).date().isoformat(),
        pool=len(pool),
        judged={"labels": str(source), "size": config.size},
        preset=config.preset,
        knobs=plain(recipe),
    )
    with records.open("a") as file:
        file.write(json.dumps(asdict(record)) + "\n")
    return record


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Speedrun(), argv, "akin speedrun", (__doc__ or "").splitlines()[0])
    with redirect_stdout(sys.stderr):  # what loading and training have to say; the record alone goes to stdout
        record = speedrun(config)
    print(record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
