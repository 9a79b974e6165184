"""`akin pretrain` with a network of a few weights, for tests that need many steps or kill the run:

python -m tests.small_run SAVES FLAGS…      is killed by SIGKILL in the middle of checkpoint number SAVES (0: never)
"""

import os
import signal
import sys

from torch import Tensor, nn

from training import pretrain
from training.backbone import FEATURES
from training.monitor import Monitor


class SmallBackbone(nn.Module):
    """Takes the place of training.backbone.Backbone."""

    def __init__(self, stem: str = "standard", norm: str = "batch") -> None:
        super().__init__()
        self.stem, self.norm = stem, norm
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, FEATURES),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def kill_in_save(number: int) -> None:
    """Die when the checkpoint's bytes are written but not yet its name."""
    saves, fsync = 0, os.fsync

    def dying_fsync(file: int) -> None:
        nonlocal saves
        saves += 1
        if saves == number:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(file)

    os.fsync = dying_fsync


def main(saves: str, *flags: str) -> int:
    pretrain.Backbone = SmallBackbone  # type: ignore[assignment,misc]
    Monitor.draw = lambda self: None  # type: ignore[method-assign]
    kill_in_save(int(saves))
    return pretrain.main(flags)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
