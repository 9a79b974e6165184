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
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import knobs
from training.augment import Randomness, stream_seed
from training.backbone import Backbone, projection_head
from training.data import Pool, load_pool
from training.monitor import Monitor, health
from training.muon import Muon
from training.objectives import Step
from training.objectives.simclr import SimCLR
from training.recipes import PRESETS, Pretrain

DATA_ORDER = 2  # stream of random numbers, beside those of Randomness


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
    made: dict[str, str] = field(default_factory=dict)  # with what, as of the sitting's start


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
    else:
        everything = matrices + vectors
        optimizers = [
            torch.optim.SGD(everything, config.lr, config.momentum, weight_decay=config.weight_decay, fused=fused)
        ]
        peaks = [config.lr]
    return Run(config, model, optimizers, peaks, made=made_with(device))


def batches(pool: Pool, run: Run) -> Iterator[Tensor]:
    """Row numbers, (batch,) int64 on the pool's device, from the run's step on; each epoch in an order of its own."""
    per_epoch = len(pool) // run.knobs.batch  # the last, short batch is dropped
    while True:
        epoch, position = divmod(run.step, per_epoch)
        shuffle = torch.Generator().manual_seed(stream_seed(run.knobs.seed, epoch, DATA_ORDER))
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
        if logged:
            loss = float(result.loss.detach())  # waits for the device, so that the clock below is right
            if not math.isfinite(loss):
                raise SystemExit(diverged(run, out, f"the loss became {loss}"))
        now = time.monotonic()
        run.seconds, before = run.seconds + now - before, now
        if logged:
            rate = (run.images - mark[1]) / max(run.seconds - mark[0], 1e-9)
            mark = (run.seconds, run.images)
            row = {"step": run.step, "loss": loss, "images": run.images, "seconds": run.seconds, "progress": done}
            row |= {"images_per_second": rate, "lr": run.peaks[0] * factor} | health(run.model, result)
            now_done = progress(run, steps)
            left = run.seconds / now_done * (1 - now_done)
            monitor.log(row, "" if quiet else f"{left / 60:.1f} min left")
        if now - saved > 60 * config.checkpoint_minutes:
            save(run, out)
            monitor.draw()
            saved = now
    save(run, out)
    monitor.draw()


def diverged(run: Run, out: Path, sign: str) -> str:
    """What to say when training has blown up."""
    kept = "holds the last good state" if (out / "checkpoint.pt").exists() else "was not written yet"
    rate = run.optimizers[0].param_groups[0]["lr"]
    return (
        f"{sign} at step {run.step} (learning rate {rate:.3g}); lower --lr, lengthen --warmup, or raise "
        f"--temperature. {out / 'checkpoint.pt'} {kept}."
    )


def save(run: Run, out: Path) -> None:
    """Write the checkpoint so that a kill at any moment leaves the old one or the new one, whole; and never one
    of weights that are not finite."""
    if not all(bool(value.isfinite().all()) for value in run.model.state_dict().values()):
        raise SystemExit(diverged(run, out, "weights are no longer finite"))
    state: dict[str, Any] = {
        "knobs": json.dumps(asdict(run.knobs)),
        "model": run.model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "progress": {"step": run.step, "seconds": run.seconds, "images": run.images},
        "made": run.made,
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


def made_with(device: torch.device) -> dict[str, str]:
    """Machine, library and commit of the code that runs, for the record; the commit is empty outside git."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--exclude=*",
        "--abbrev=12",
    ]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # no git on this machine
        commit = ""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    return {"machine": f"{machine}, {platform.machine()}", "torch": str(torch.__version__), "commit": commit}


def refuse_other_settings(asked: Pretrain, run: Run) -> None:
    """A resumed run keeps its settings; a flag that asks for others would be ignored."""
    free = {"out", "resume", "check", "device"}  # these say how to go on, not what to train
    names = [field.name for field in fields(Pretrain) if field.name not in free]
    default = Pretrain()
    wishes = {name: getattr(asked, name) for name in names if getattr(asked, name) != getattr(default, name)}
    for name, wish in wishes.items():
        if wish != getattr(run.knobs, name):
            raise SystemExit(
                f"{asked.out} is a run with {name} {getattr(run.knobs, name)}, not {wish}: --resume goes on with the "
                "run's own settings; leave the other flags out, or start a new run in another --out"
            )


def pick_device(name: str) -> torch.device:
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Pretrain(), argv, "akin pretrain", (__doc__ or "").splitlines()[0], PRESETS)
    device, out = pick_device(config.device), Path(config.out)
    torch.set_float32_matmul_precision("high")  # TF32 where there is no autocast: augmentation and Muon
    if config.check:
        return check(config, device)
    if (out / "checkpoint.pt").exists() and not config.resume:
        raise SystemExit(f"{out} already holds a run; add --resume to go on with it, or name another --out")
    out.mkdir(parents=True, exist_ok=True)
    if config.resume:
        run = resume(out, device)
        refuse_other_settings(config, run)
    else:
        run = start(config, device)
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
    few = 8 * config.batch
    pool = load_pool(config.data, config.store, device, limit=min(config.limit or few, few))
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
            "the report is drawn": (out / "report.png").exists(),
        }
    for finding, well in findings.items():
        print(f"{'ok  ' if well else 'FAIL'} {finding}")
    print("all is well" if all(findings.values()) else "something is wrong: see FAIL above")
    return 0 if all(findings.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
