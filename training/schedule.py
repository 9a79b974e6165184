"""How far a run is, and what that means for its learning rate and its views."""

import math
from dataclasses import replace

from training.augment import Augmentation
from training.recipes import Pretrain


def progress(config: Pretrain, steps_of_schedule: int, step: int, seconds: float) -> float:
    """How far the schedule is, from 0 to 1: by the clock where the run is given in minutes, else by steps."""
    return min(1.0, seconds / (60 * config.minutes) if config.minutes else step / steps_of_schedule)


def head_start(config: Pretrain, done: float) -> bool:
    """Whether only what is new learns yet: with --init, the first gradients of fresh heads would spoil the rest."""
    return bool(config.init) and done < config.head_start


def rate_factor(done: float, warmup: float) -> float:
    """The learning rate's share of its peak: a linear rise, then a cosine to zero (SGDR, arXiv 1608.03983)."""
    if done < warmup:
        return max(done, 0.01 * warmup) / warmup
    return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))


def rate(config: Pretrain, done: float) -> float:
    """The learning rate's share of its peak at `done`: full in a head start, then the schedule over what is left."""
    if head_start(config, done):
        return 1.0
    begun = config.head_start if config.init else 0.0
    return rate_factor((done - begun) / (1 - begun), config.warmup)


def view(config: Pretrain, done: float) -> Augmentation:
    """The views to draw at `done`: a run may end on larger ones, nearer to the images that are served."""
    if config.end_size and done >= 1 - config.end_share:
        return replace(config.view, size=config.end_size)
    return config.view
