"""The knobs of pretraining, and the presets that set them together."""

from dataclasses import dataclass, field, replace
from typing import Literal

from training.augment import Augmentation
from training.backbone import Norm, Stem
from training.objectives.barlow import BarlowKnobs
from training.objectives.byol import BYOLKnobs
from training.objectives.distill import DistillKnobs
from training.objectives.moco import MoCoKnobs
from training.objectives.simsiam import SimSiamKnobs
from training.objectives.vicreg import VICRegKnobs

Method = Literal["simclr", "moco", "byol", "simsiam", "barlow", "vicreg", "distill"]


@dataclass(frozen=True)
class Pretrain:
    method: Method = "simclr"  # the objective: a file each in training/objectives/
    data: tuple[str, ...] = ("data",)  # folders, archives, parquet, .npy files, STL-10's or CIFAR-10's folder
    out: str = "runs/simclr"  # where the run is kept
    resume: bool = False  # go on with the run that --out holds, with its own settings
    init: str = ""  # begin with the backbone of an earlier checkpoint.pt or .safetensors
    head_start: float = 0.1  # with --init, share of the schedule in which only what is new learns
    check: bool = False  # a short run through every step that says whether all is well

    stem: Stem = "standard"  # 7×7 of stride 2, or 3×3 of stride 1: four times the work
    norm: Norm = "batch"  # BatchNorm, or GroupNorm in its place
    hidden: int = 1024  # width of the projection head's hidden layers
    output: int = 128  # width of the projections
    head_norm: bool = True  # BatchNorm in the projection head of simclr and moco; the others need it
    temperature: float = 0.1  # of simclr and moco: the lower, the more the nearest negatives count
    temperature_end: float = 0.0  # where a cosine takes the temperature by the end (0: it stays)
    decoupled: bool = True  # of simclr: DCL, the positive pair leaves the denominator
    moco: MoCoKnobs = field(default_factory=MoCoKnobs)
    byol: BYOLKnobs = field(default_factory=BYOLKnobs)
    simsiam: SimSiamKnobs = field(default_factory=SimSiamKnobs)
    barlow: BarlowKnobs = field(default_factory=BarlowKnobs)
    vicreg: VICRegKnobs = field(default_factory=VICRegKnobs)
    distill: DistillKnobs = field(default_factory=DistillKnobs)

    optimizer: Literal["muon", "sgd", "adamw"] = "muon"  # muon leaves biases and norms to SGD
    lr: float = 0.05  # peak, of the matrices
    lr_vectors: float = 0.06  # peak, of biases and norms with muon
    momentum: float = 0.95  # Nesterov's with muon, of the matrices; adamw has its own
    weight_decay: float = 0.01  # decoupled with muon and adamw, L2 with sgd
    warmup: float = 0.03  # share of the schedule that the learning rate rises; then a cosine to zero
    ema: float = 0.0  # keep the backbone's exponential moving average, of this decay a step (0: do not)
    batch: int = 256  # images, over all processes; each gives two views
    epochs: int = 100  # length of the schedule…
    minutes: float = 0.0  # …unless it is given in minutes of training

    view: Augmentation = field(default_factory=Augmentation)
    end_size: int = 0  # side of the views at the end of the schedule, in pixels (0: as before)
    end_share: float = 0.1  # share of the schedule that has them
    store: int = 96  # largest side kept in memory, in pixels; larger images are shrunk and cropped to it once
    limit: int = 0  # use the first so many images only (0: all)
    damaged: float = 0.1  # share of the files that may be unreadable; they are named and left out
    memory: float = 0.5  # share of the device's free memory that pixels may fill; beyond it they are read from disk
    seed: int = 0  # of initialisation, data order and views
    precision: Literal["bf16", "fp32"] = "bf16"  # bf16 autocast, or fp32
    compile: bool = False  # torch.compile the backbone and the head
    device: str = "auto"  # cuda where there is one, else cpu
    log_every: int = 20  # steps
    watch: str = ""  # a folder with STL-10 or CIFAR-10: log 20-NN accuracy inside its train labels now and then
    watch_minutes: float = 3.0  # of training between two of them
    tensorboard: bool = True  # write metrics for TensorBoard too, where it is installed
    stop_on_collapse: bool = False  # end a run whose features have collapsed, instead of only saying so
    checkpoint_minutes: float = 3.0  # between checkpoints, the most that a kill loses

    def __post_init__(self) -> None:
        at_least = {"batch": 2, "epochs": 1, "store": 1, "hidden": 1, "output": 1, "log_every": 1}
        at_least |= dict.fromkeys(("limit", "minutes", "seed", "temperature_end", "watch_minutes", "end_size"), 0)
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is too little; give at least {least}")
        for name in ("warmup", "head_start", "ema", "end_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is no share; give 0 or more, and less than 1")
        for name in ("damaged", "memory"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no share; give 0 to 1")
        if self.method == "distill" and not self.init:
            raise ValueError("method distill makes an encoder better at small images; name it with --init")
        if self.method == "distill" and self.head_start:
            raise ValueError(f"head_start {self.head_start} is for heads, and distill has none; give --head-start 0")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} divides the similarities; give more than 0")


CPU_VIEW = Augmentation(size=48, blur=0.0)
CPU = Pretrain(view=CPU_VIEW, minutes=60)
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
    "cpu": CPU,
    "speedrun": replace(CPU, minutes=8, out="runs/speedrun"),
    # The other methods on the same machine, with heads of the shapes their papers give them.
    "moco": replace(CPU, method="moco", batch=128, hidden=512, head_norm=False),  # the article's track at batch 128
    "byol": replace(CPU, method="byol", output=256),
    "simsiam": replace(CPU, method="simsiam", hidden=2048, output=2048),
    "barlow": replace(CPU, method="barlow", hidden=2048, output=2048),
    "vicreg": replace(CPU, method="vicreg", hidden=2048, output=2048),
    # The shipped encoder's last part, on two CPU cores: taught to see at 64 px what it saw at 96.
    "distill": replace(
        CPU,
        method="distill",
        minutes=35,
        init="model_store/encoder.safetensors",
        stem="small",
        head_start=0.0,
        lr=0.01,
        lr_vectors=0.01,
        ema=0.99,
        batch=128,
        view=replace(CPU_VIEW, size=96, scale=(0.3, 1.0), jitter=0.4, grayscale=0.1),
    ),
    # The shipped encoder's first part, on one H100: 24,000 images a second, twenty million seen.
    "gpu": Pretrain(
        stem="small",
        batch=1024,
        hidden=2048,
        minutes=14.5,
        compile=True,
        log_every=50,
        view=replace(CPU_VIEW, size=64),
    ),
}
