"""Train an encoder without labels:  akin pretrain --preset cpu --data FOLDER_OR_ARCHIVE… --minutes 60 --out runs/NAME

Reads   images: folders, tar, zip, .npy, STL-10's binaries (several may be named; they are joined)
Writes  runs/NAME/checkpoint.pt (every few minutes, atomically), metrics.jsonl, report.png
        A killed run goes on with `--resume --out runs/NAME`: the same schedule, data order and random numbers.
"""

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import knobs
from training.augment import Augmentation, Randomness
from training.backbone import Backbone, projection_head
from training.data import Pool, load_pool
from training.monitor import Monitor, health
from training.muon import Muon
from training.objectives import Step
from training.objectives.simclr import SimCLR


@dataclass(frozen=True)
class Pretrain:
    data: tuple[str, ...] = ("data",)  # folders, archives, .npy files or STL-10 binary folders
    out: str = "runs/simclr"  # where the run is kept
    resume: bool = False  # go on with the run that --out holds, with its own settings
    check: bool = False  # a short run through every step that says whether all is well

    stem: str = "standard"  # standard: 7×7, stride 2; small: 3×3, stride 1 (four times the work)
    hidden: int = 1024  # width of the projection head's hidden layer
    output: int = 128  # width of the projections
    head_norm: bool = True  # BatchNorm in the projection head
    temperature: float = 0.1
    decoupled: bool = True  # DCL: the positive pair leaves the denominator

    optimizer: str = "muon"  # muon: matrices by Muon, biases and BatchNorm by SGD; sgd: everything by SGD
    lr: float = 0.05  # peak, of the matrices
    lr_vectors: float = 0.06  # peak, of biases and BatchNorm with muon
    momentum: float = 0.95
    weight_decay: float = 0.01  # decoupled with muon, L2 with sgd
    warmup: float = 0.03  # share of the schedule that the learning rate rises; then a cosine to zero
    batch: int = 256  # images; each gives two views
    epochs: int = 100  # length of the schedule…
    minutes: float = 0.0  # …unless it is given in minutes of training

    view: Augmentation = field(default_factory=Augmentation)
    store: int = 96  # largest side kept in memory, in pixels; larger images are shrunk and cropped to it once
    limit: int = 0  # use the first so many images only (0: all)
    seed: int = 0
    precision: str = "bf16"  # bf16 autocast, or fp32
    compile: bool = False  # torch.compile the backbone and the head
    device: str = "auto"  # cuda where there is one, else cpu
    log_every: int = 20  # steps
    checkpoint_minutes: float = 3.0


CPU_VIEW = Augmentation(size=48, blur=0.0)
PRESETS = {
    # The article's recipe as printed: hot (learning rate 0.5 at batch 256), kept to be compared with.
    "literal": Pretrain(
        hidden=2048,
        output=512,
        head_norm=False,
        temperature=0.07,
        decoupled=False,
        optimizer="sgd",
        lr=0.5,
        momentum=0.9,
        weight_decay=1e-4,
        warmup=0.0,
        batch=256,
        epochs=100,
    ),
    "cpu": Pretrain(view=CPU_VIEW, minutes=60),
    "gpu": Pretrain(batch=512, hidden=2048, compile=True, view=replace(CPU_VIEW, size=64)),
}


@dataclass
class Run:
    """All that changes while training; what a checkpoint holds."""

    knobs: Pretrain
    model: SimCLR
    optimizers: list[torch.optim.Optimizer]
    peaks: list[float]
    step: int = 0
    seconds: float = 0.0  # of training, over all sittings
    images: int = 0  # seen, each counted once however many views it gives


def start(config: Pretrain, device: torch.device) -> Run:
    torch.manual_seed(config.seed)
    head = projection_head(config.hidden, config.output, config.head_norm)
    model = SimCLR(Backbone(config.stem), head, config.temperature, config.decoupled)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    fused = device.type == "cuda"
    if config.optimizer == "muon":
        optimizers: list[torch.optim.Optimizer] = [
            Muon(matrices, config.lr, config.momentum, config.weight_decay),
            torch.optim.SGD(vectors, config.lr_vectors, 0.9, fused=fused),
        ]
        peaks = [config.lr, config.lr_vectors]
    elif config.optimizer == "sgd":
        everything = matrices + vectors
        optimizers = [
            torch.optim.SGD(everything, config.lr, config.momentum, weight_decay=config.weight_decay, fused=fused)
        ]
        peaks = [config.lr]
    else:
        raise SystemExit(f"unknown optimizer {config.optimizer!r}; use 'muon' or 'sgd'")
    return Run(config, model, optimizers, peaks)


def batches(pool: Pool, run: Run) -> Iterator[Tensor]:
    """Row numbers, (batch,) int64 on the pool's device, from the run's step on; each epoch in an order of its own."""
    per_epoch = len(pool) // run.knobs.batch  # the last, short batch is dropped
    while True:
        epoch, position = divmod(run.step, per_epoch)
        shuffle = torch.Generator().manual_seed(run.knobs.seed * 1_000_003 + epoch)
        order = torch.randperm(len(pool), generator=shuffle).to(pool.side.device)
        for start in range(position * run.knobs.batch, per_epoch * run.knobs.batch, run.knobs.batch):
            yield order[start : start + run.knobs.batch]


def progress(run: Run, steps: int) -> float:
    """How far the schedule is, from 0 to 1: by the clock where the run is given in minutes, else by steps."""
    return min(1.0, run.seconds / (60 * run.knobs.minutes) if run.knobs.minutes else run.step / steps)


def rate_factor(progress: float, warmup: float) -> float:
    """The learning rate's share of its peak: a linear rise, then a cosine to zero (SGDR, arXiv 1608.03983)."""
    if progress < warmup:
        return max(progress, 0.01 * warmup) / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def train_step(run: Run, model: Callable[[Tensor], Step], pool: Pool, rows: Tensor, factor: float) -> Step:
    for optimizer, peak in zip(run.optimizers, run.peaks, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
    device = pool.side.device
    views = pool.two_views(rows, run.knobs.view, Randomness(run.knobs.seed, run.step, device))
    views = views.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=run.knobs.precision == "bf16"):
        result = model(views)
    run.model.zero_grad(set_to_none=True)
    result.loss.backward()
    for optimizer in run.optimizers:
        optimizer.step()
    run.step += 1
    run.images += len(rows)
    return result


def train(run: Run, pool: Pool, out: Path, quiet: bool = False) -> None:
    """Train to the end of the schedule, logging and writing checkpoints on the way."""
    config = run.knobs
    if len(pool) < config.batch:
        raise SystemExit(f"{len(pool)} images do not fill a batch of {config.batch}; set --batch or add images")
    steps = config.epochs * (len(pool) // config.batch)
    model: Callable[[Tensor], Step] = torch.compile(run.model) if config.compile else run.model
    monitor, saved, before = Monitor(out, run.step), time.monotonic(), time.monotonic()
    mark = (run.seconds, run.images)
    for rows in batches(pool, run):
        done = progress(run, steps)
        if done >= 1:
            break
        factor = rate_factor(done, config.warmup)
        result = train_step(run, model, pool, rows, factor)
        logged = run.step % config.log_every == 0 or run.step == 1
        row = (
            {"step": run.step, "loss": float(result.loss.detach())} if logged else {}
        )  # float() waits for the device
        now = time.monotonic()
        run.seconds, before = run.seconds + now - before, now
        if logged:
            rate = (run.images - mark[1]) / max(run.seconds - mark[0], 1e-9)
            mark = (run.seconds, run.images)
            row |= {"images": run.images, "seconds": run.seconds, "progress": done, "images_per_second": rate}
            row |= {"lr": run.peaks[0] * factor} | health(run.model, result)
            left = run.seconds / done * (1 - done) if done > 0 else float("nan")
            monitor.log(row, "" if quiet else f"{left / 60:.1f} min left")
            if not math.isfinite(row["loss"]):
                raise SystemExit(
                    f"the loss became {row['loss']} at step {run.step} (learning rate {row['lr']:.3g}); lower --lr, "
                    f"lengthen --warmup, or raise --temperature. The last checkpoint in {out} is from before."
                )
        if now - saved > 60 * config.checkpoint_minutes:
            save(run, out)
            monitor.draw()
            saved = now
    save(run, out)
    monitor.draw()


def save(run: Run, out: Path) -> None:
    """Write the checkpoint so that a kill at any moment leaves the old one or the new one, whole."""
    state: dict[str, Any] = {
        "knobs": json.dumps(asdict(run.knobs)),
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "progress": {"step": run.step, "seconds": run.seconds, "images": run.images},
        "made": made_with(),
    }
    fresh = out / "checkpoint.pt.part"
    with fresh.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(out / "checkpoint.pt")


def resume(out: Path, device: torch.device) -> Run:
    path = out / "checkpoint.pt"
    if not path.exists():
        raise SystemExit(f"there is no {path} to go on with; leave out --resume to start a run")
    state = torch.load(path, map_location=device, weights_only=True)
    run = start(knobs.from_json(Pretrain(), json.loads(state["knobs"])), device)
    run.model.load_state_dict(state["model"])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run.step, run.seconds = state["progress"]["step"], state["progress"]["seconds"]
    run.images = state["progress"]["images"]
    return run


def made_with() -> dict[str, str]:
    """Machine, library and commit, for the record of a run."""
    git = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "machine": f"{machine}, {platform.machine()}",
        "torch": str(torch.__version__),
        "commit": git.stdout.strip(),
    }


def pick_device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Pretrain(), argv, "akin pretrain", __doc__.splitlines()[0], PRESETS)
    device, out = pick_device(config.device), Path(config.out)
    torch.set_float32_matmul_precision("high")  # TF32 where there is no autocast: augmentation and Muon
    if config.check:
        return check(config, device)
    if (out / "checkpoint.pt").exists() and not config.resume:
        raise SystemExit(f"{out} already holds a run; add --resume to go on with it, or name another --out")
    out.mkdir(parents=True, exist_ok=True)
    run = resume(out, device) if config.resume else start(config, device)
    pool = load_pool(run.knobs.data, run.knobs.store, device, run.knobs.limit)
    print(
        f"{len(pool)} images, {device}, from step {run.step}; {out / 'metrics.jsonl'} grows as it runs",
        flush=True,
    )
    train(run, pool, out)
    print(f"{out / 'checkpoint.pt'}: {run.step} steps, {run.images} images in {run.seconds / 60:.1f} min")
    return 0


def check(config: Pretrain, device: torch.device) -> int:
    """One short epoch through every step: data, views, loss, gradients, checkpoint, resume, report."""
    config = replace(
        config, check=False, minutes=0, epochs=1, batch=min(config.batch, 32), log_every=1, compile=False
    )
    pool = load_pool(config.data, config.store, device, limit=8 * config.batch)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run = start(config, device)
        train(run, pool, out, quiet=True)
        rows = Monitor(out, run.step).rows()
        again = resume(out, device)
        findings = {
            f"{len(pool)} images read": len(pool) >= config.batch,
            "the loss is finite": all(math.isfinite(row["loss"]) for row in rows),
            "every parameter gets a gradient": all(p.grad is not None for p in run.model.parameters()),
            "features differ between images": rows[-1]["feature_spread"] > 1e-4,
            "the checkpoint brings the weights back": all(
                torch.equal(a, b) for a, b in zip(run.model.parameters(), again.model.parameters(), strict=True)
            ),
            "the report is drawn": (out / "report.png").stat().st_size > 0,
        }
    for finding, well in findings.items():
        print(f"{'ok  ' if well else 'FAIL'} {finding}")
    print("all is well" if all(findings.values()) else "something is wrong: see FAIL above")
    return 0 if all(findings.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
