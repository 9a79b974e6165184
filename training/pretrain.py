"""Train an encoder without labels:  akin pretrain --preset cpu --data FOLDER_OR_ARCHIVE… --minutes 60 --out runs/NAME

Reads   images: folders, tar, zip, parquet, .npy, STL-10's or CIFAR-10's files (several may be named; they are joined)
Writes  runs/NAME/checkpoint.pt (every few minutes, atomically), metrics.jsonl, report.png, tensorboard/
        A killed run goes on with `--resume --out runs/NAME`: the same schedule, data order and random numbers.

Several GPUs: `torchrun --nproc-per-node 4 akin.py pretrain …` with the same flags; --batch is that of all together.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training import knobs
from training.augment import Randomness, stream_seed
from training.backbone import Backbone
from training.checkpoint import Run, load_backbone, read, require_finite, restore, save
from training.data import Pixels, Pool, load_pool, views
from training.diary import Diary
from training.distributed import agreed, joined, processes, rank, share, world
from training.machine import made_with, pick_device
from training.methods import build
from training.monitor import Monitor
from training.muon import Muon
from training.norms import with_synchronised_norm
from training.objectives import Batch, Step
from training.objectives.momentum import follow, frozen_copy
from training.provenance import story_of
from training.recipes import PRESETS, Pretrain
from training.schedule import head_start, progress, rate, view

# Streams of random numbers, beside those of Randomness.
DATA_ORDER = 2
OTHER_PROCESS = 3

Model = Callable[[Batch], Step]


def start(config: Pretrain, device: torch.device, resuming: bool = False) -> Run:
    """A run that has not taken a step; one that is to be restored needs no weights from --init."""
    torch.set_float32_matmul_precision("high")  # TF32 where there is no autocast: augmentation and Muon
    torch.manual_seed(config.seed)
    backbone = Backbone(config.stem, config.norm)
    begun_with = begin_with(backbone, config.init) if config.init and not resuming else {}
    model = build(config, backbone)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = with_synchronised_norm(model)
    average = frozen_copy(model.backbone) if config.ema else None
    optimizers, peaks = optimizers_of(config, model, fused=device.type == "cuda")
    return Run(config, model, optimizers, peaks, average, made=made_with(device), begun_with=begun_with)


def begin_with(backbone: Backbone, weights: str) -> dict[str, Any]:
    """Take over the weights of an earlier encoder, which has to be of the same kind. Returns its story."""
    earlier = load_backbone(weights)
    for kind in ("stem", "norm"):
        theirs, ours = getattr(earlier, kind), getattr(backbone, kind)
        if theirs != ours:
            raise SystemExit(f"{weights} holds a backbone with {kind} {theirs}, not {ours}; add --{kind} {theirs}")
    backbone.load_state_dict(earlier.state_dict())
    return story_of(Path(weights))


def optimizers_of(config: Pretrain, model: nn.Module, fused: bool) -> tuple[list[torch.optim.Optimizer], list[float]]:
    """The optimizers of everything that learns, and their peak learning rates."""
    learning = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in learning if p.ndim > 1]
    vectors = [p for p in learning if p.ndim <= 1]
    if config.optimizer == "muon":
        return [
            Muon(matrices, config.lr, config.momentum, config.weight_decay),
            torch.optim.SGD(vectors, config.lr_vectors, 0.9, fused=fused),
        ], [config.lr, config.lr_vectors]
    if config.optimizer == "adamw":
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, config.lr, weight_decay=config.weight_decay, fused=fused)], [config.lr]
    everything = matrices + vectors
    return [torch.optim.SGD(everything, config.lr, config.momentum, weight_decay=config.weight_decay, fused=fused)], [
        config.lr
    ]


def orders(images: int, run: Run) -> Iterator[Tensor]:
    """Row numbers, (batch,) int64, of every step from the run's on; each epoch in an order of its own."""
    batch, step = run.knobs.batch, run.step
    per_epoch = images // batch  # the last, short batch is dropped
    while True:
        epoch, position = divmod(step, per_epoch)
        shuffle = torch.Generator().manual_seed(stream_seed(run.knobs.seed, epoch, DATA_ORDER))
        order = torch.randperm(images, generator=shuffle)
        for start in range(position * batch, per_epoch * batch, batch):
            yield order[start : start + batch]
            step += 1


def prepared(run: Run, done: float) -> Model:
    """The model as it is called: in a head start its backbone is frozen, else everything learns."""
    run.model.backbone.requires_grad_(not head_start(run.knobs, done))
    model: nn.Module = torch.compile(run.model, dynamic=False) if run.knobs.compile else run.model  # type: ignore[assignment]
    return joined(model)


def train_step(run: Run, model: Model, pixels: Pixels, done: float) -> Step:
    """One step on this process's share of a batch. done: how far the schedule is, 0 to 1."""
    config, factor = run.knobs, rate(run.knobs, done)
    for optimizer, peak in zip(run.optimizers, run.peaks, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
    device = pixels.canvas.device
    seed = config.seed if rank() == 0 else stream_seed(config.seed, rank(), OTHER_PROCESS)
    drawn = views(pixels, run.model.views(view(config, done)), Randomness(seed, run.step, device))
    batch = Batch(tuple(x.contiguous(memory_format=torch.channels_last) for x in drawn), pixels.rows)
    run.model.before_step(done)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        result = model(batch)
    run.model.zero_grad(set_to_none=True)
    result.loss.backward()
    for optimizer in run.optimizers:
        optimizer.step()
    run.model.after_step()
    if run.average is not None:
        follow(run.average, run.model.backbone, config.ema, statistics=True)
    run.step += 1
    run.images += config.batch
    return result


def train(run: Run, pool: Pool, out: Path, quiet: bool = False) -> None:
    """Train to the end of the schedule, logging and writing checkpoints on the way."""
    config = run.knobs
    if len(pool) < config.batch:
        raise SystemExit(f"{len(pool)} images do not fill a batch of {config.batch}; set --batch or add images")
    steps = config.epochs * (len(pool) // config.batch)
    diary = Diary(run, out, pool.device, quiet) if rank() == 0 else None
    model: Model | None = None
    frozen = False
    saved = before = time.monotonic()
    for pixels in pool.batches(share(rows) for rows in orders(len(pool), run)):
        done = agreed(progress(config, steps, run.step, run.seconds))
        if done >= 1:
            break
        if model is None or frozen != head_start(config, done):
            model, frozen = prepared(run, done), head_start(config, done)
        result = train_step(run, model, pixels, done)
        logged = run.step % config.log_every == 0 or run.step == 1
        if logged:
            result.loss.item()  # waits for the device, so that the clock below is right
        now = time.monotonic()
        run.seconds += now - before
        reached = progress(config, steps, run.step, run.seconds)
        if logged or reached >= 1:
            require_finite(run, out, result.loss.item())
            sign = diary.write(result, done, reached) if diary is not None else None
            if config.stop_on_collapse and logged and agreed(float(sign is not None)):  # logged is so in all of them
                raise SystemExit(f"{sign or 'collapse'}; stopped at step {run.step}, as --stop-on-collapse asks")
        if now - saved > 60 * config.checkpoint_minutes:
            save(run, out)
            if diary is not None:
                diary.monitor.draw()
            saved = now
        before = time.monotonic()  # looking and saving are not training
    save(run, out)
    if diary is not None:
        diary.close()


def resume(out: Path, device: torch.device) -> Run:
    """The run that `out` holds, where its last checkpoint left it."""
    state = read(out, device)
    saved = json.loads(state["knobs"])
    if unknown := dict(knobs.flat(asdict(Pretrain()))).keys() ^ dict(knobs.flat(saved)).keys():
        raise SystemExit(
            f"{out} is a run of another version of akin: {', '.join(sorted(unknown))} differ; evaluate or export it, "
            f"or begin a new run with --init {out / 'checkpoint.pt'}"
        )
    run = start(knobs.from_json(Pretrain(), saved), device, resuming=True)
    restore(run, state)
    return run


def refuse_other_settings(asked: Pretrain, run: Run, typed: Collection[str]) -> None:
    """A resumed run keeps its settings; a flag or a preset that asks for others would be ignored."""
    free = {"out", "resume", "check", "device"}  # these say how to go on, not what to train
    kept, default, wishes = (dict(knobs.flat(asdict(config))) for config in (run.knobs, Pretrain(), asked))
    for name, wish in wishes.items():
        if name not in free and (name in typed or wish != default[name]) and wish != kept[name]:
            raise SystemExit(
                f"{asked.out} is a run with {name} {kept[name]}, not {wish}: --resume goes on with the "
                "run's own settings; leave the other flags out, or start a new run in another --out"
            )


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Pretrain(), argv, "akin pretrain", (__doc__ or "").splitlines()[0], PRESETS)
    with processes():
        return pretrain(config, knobs.typed(Pretrain(), argv))


def pretrain(config: Pretrain, typed: Collection[str] = ()) -> int:
    """typed: the flags that were given, by their paths: view.size."""
    device, out = pick_device(config.device), Path(config.out)
    if config.check:
        if world() > 1:
            raise SystemExit("--check is for one process; run it without torchrun")
        return check(config, device)
    if (out / "checkpoint.pt").exists() and not config.resume:
        raise SystemExit(f"{out} already holds a run; add --resume to go on with it, or name another --out")
    run = resume(out, device) if config.resume else start(config, device)
    if config.resume:
        refuse_other_settings(config, run, typed)
    if run.knobs.batch % world():
        raise SystemExit(f"a batch of {run.knobs.batch} cannot be shared by {world()} processes; set --batch")
    out.mkdir(parents=True, exist_ok=True)
    pool = pool_of(run.knobs, device, out)
    if rank() == 0:
        where = f"{device}, {world()} processes" if world() > 1 else str(device)
        print(f"{len(pool)} images, {where}, from step {run.step}; {out / 'metrics.jsonl'} grows", flush=True)
    train(run, pool, out)
    if rank() == 0:
        print(f"{out / 'checkpoint.pt'}: {run.step} steps, {run.images} images in {run.seconds / 60:.1f} min")
    return 0


def pool_of(config: Pretrain, device: torch.device, cache: Path | None = None) -> Pool:
    """The images that a recipe names. cache: a folder for their pixels where memory does not hold them."""
    return load_pool(config.data, config.store, device, config.limit, config.damaged, config.memory, cache)


def check(config: Pretrain, device: torch.device) -> int:
    """One short epoch through every step: data, views, loss, gradients, checkpoint, resume, report."""
    batch = min(config.batch, 32)
    few = min(config.limit or 8 * batch, 8 * batch)
    config = replace(config, check=False, minutes=0, epochs=1, batch=batch, limit=few, log_every=1)
    config = replace(config, head_start=0.0, compile=False, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        pool = pool_of(config, device, out)
        run = start(config, device)
        train(run, pool, out, quiet=True)
        rows = Monitor(out, run.step).rows()
        again = resume(out, device)
        learning = [p for p in run.model.parameters() if p.requires_grad]
        findings = {
            f"{len(pool)} images read": len(pool) >= config.batch,
            "the loss is finite": all(math.isfinite(row["loss"]) for row in rows),
            "every parameter gets a gradient": all(p.grad is not None for p in learning),
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
