"""From a recipe to its objective: the one list of methods."""

from torch import nn

from training.backbone import FEATURES, Backbone, mlp
from training.norms import with_group_norm
from training.objectives import Objective
from training.objectives.barlow import BarlowTwins
from training.objectives.byol import BYOL
from training.objectives.distill import Distill
from training.objectives.moco import MoCo
from training.objectives.simclr import SimCLR
from training.objectives.simsiam import SimSiam
from training.objectives.temperature import Temperature
from training.objectives.vicreg import VICReg
from training.recipes import Pretrain


def build(config: Pretrain, backbone: Backbone) -> Objective:
    """The objective that `config` names, around `backbone`; its heads are drawn from torch's random state."""
    hidden, output = config.hidden, config.output

    def head(*widths: int, norm: bool = True, norm_last: bool = False) -> nn.Sequential:
        layers = mlp(widths, norm, norm_last)
        return with_group_norm(layers) if config.norm == "group" else layers

    match config.method:
        case "simclr":
            projection = head(FEATURES, hidden, output, norm=config.head_norm, norm_last=config.head_norm)
            return SimCLR(backbone, projection, temperature(config), config.decoupled)
        case "moco":
            projection = head(FEATURES, hidden, output, norm=config.head_norm)
            return MoCo(backbone, projection, temperature(config), config.moco)
        case "byol":
            return BYOL(backbone, head(FEATURES, hidden, output), head(output, hidden, output), config.byol)
        case "simsiam":
            projection = head(FEATURES, hidden, hidden, output, norm_last=True)
            return SimSiam(backbone, projection, head(output, config.simsiam.bottleneck, output))
        case "barlow":
            return BarlowTwins(backbone, head(FEATURES, hidden, hidden, output), config.barlow)
        case "vicreg":
            return VICReg(backbone, head(FEATURES, hidden, hidden, output), config.vicreg)
        case "distill":
            return Distill(backbone, config.distill)


def temperature(config: Pretrain) -> Temperature:
    return Temperature(config.temperature, config.temperature_end or None)
