"""Several processes that train as one, each on its share of every batch:  torchrun --nproc-per-node 4 akin.py …

An objective gathers projections from all processes and computes the loss of the joined batch in each of them.
The gradient of a gathered tensor is summed over the processes, which makes each process's gradient `world` times
its part of the whole one; DistributedDataParallel then takes the mean, and that is the gradient which a single
process has on the joined batch.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def neighbors() -> int:
    """How many of them share this machine's memory and cores, as torchrun tells."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@contextmanager
def processes() -> Iterator[None]:
    """Join the processes that torchrun started, if it did; leave them at the end. Each takes a GPU of its own."""
    if "RANK" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        number, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= gpus:
            raise SystemExit(
                f"process {number} has no GPU of its own, for this machine has {gpus}: give --nproc-per-node {gpus}, "
                "or set CUDA_VISIBLE_DEVICES= (to nothing) to train on the CPU"
            )
        torch.cuda.set_device(number)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def share(rows: Tensor) -> Tensor:
    """This process's part of a batch, (B, …) -> (B / world, …); the parts in order of rank are the whole."""
    if len(rows) % world():
        raise ValueError(f"{len(rows)} rows cannot be shared by {world()} processes; give a multiple of {world()}")
    return rows.chunk(world())[rank()]


def agreed(value: float) -> float:
    """The first process's value, in all of them: clocks differ, and the schedule must not."""
    if world() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


def joined(model: nn.Module) -> nn.Module:
    """`model` so that its gradients are the mean over the processes; itself where one process is alone."""
    if world() == 1:
        return model
    parallel = DistributedDataParallel(model)  # gives all of them the first one's weights and buffers
    parallel.broadcast_buffers = False  # not again at each step: statistics are synchronised, and queues move alike
    return parallel


def gathered(rows: Tensor) -> Tensor:
    """(B, …) of each process, B the same -> (world · B, …) of all, in order of rank, in each; differentiable."""
    return rows if world() == 1 else _gather(rows)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # not every torch compiles collectives
def _gather(rows: Tensor) -> Tensor:
    return _Gathered.apply(rows)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(world())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)  # the gradient itself may be another's too
        dist.all_reduce(total)
        return total.chunk(world())[rank()]
