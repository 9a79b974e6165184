"""From a recipe to its objective: the one list of methods."""

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
    if config.method == "simclr":
        head = mlp((FEATURES, hidden, output), norm=config.head_norm, norm_last=config.head_norm)
        objective: Objective = SimCLR(backbone, head, temperature(config), config.decoupled)
    elif config.method == "moco":
        head = mlp((FEATURES, hidden, output), norm=config.head_norm)
        objective = MoCo(backbone, head, temperature(config), config.moco)
    elif config.method == "byol":
        objective = BYOL(backbone, mlp((FEATURES, hidden, output)), mlp((output, hidden, output)), config.byol)
    elif config.method == "simsiam":
        head = mlp((FEATURES, hidden, hidden, output), norm_last=True)
        objective = SimSiam(backbone, head, mlp((output, config.simsiam.bottleneck, output)))
    elif config.method == "barlow":
        objective = BarlowTwins(backbone, mlp((FEATURES, hidden, hidden, output)), config.barlow)
    elif config.method == "distill":
        objective = Distill(backbone, config.distill)
    else:
        objective = VICReg(backbone, mlp((FEATURES, hidden, hidden, output)), config.vicreg)
    return with_group_norm(objective) if config.norm == "group" else objective


def temperature(config: Pretrain) -> Temperature:
    return Temperature(config.temperature, config.temperature_end or None)

