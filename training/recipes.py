"""The knobs of pretraining, and the presets that set them together."""

from dataclasses import dataclass, field, replace
from typing import Literal

from training.augment import Augmentation


@dataclass(frozen=True)
class Pretrain:
    data: tuple[str, ...] = ("data",)  # folders, archives, .npy files or STL-10 binary folders
    out: str = "runs/simclr"  # where the run is kept
    resume: bool = False  # go on with the run that --out holds, with its own settings
    check: bool = False  # a short run through every step that says whether all is well

    stem: Literal["standard", "small"] = "standard"  # 7×7 of stride 2, or 3×3 of stride 1: four times the work
    hidden: int = 1024  # width of the projection head's hidden layer
    output: int = 128  # width of the projections
    head_norm: bool = True  # BatchNorm in the projection head
    temperature: float = 0.1  # divides the similarities; the lower, the more the nearest negatives count
    decoupled: bool = True  # DCL: the positive pair leaves the denominator

    optimizer: Literal["muon", "sgd"] = "muon"  # muon leaves biases and BatchNorm to SGD
    lr: float = 0.05  # peak, of the matrices
    lr_vectors: float = 0.06  # peak, of biases and BatchNorm with muon
    momentum: float = 0.95  # Nesterov's with muon, of the matrices
    weight_decay: float = 0.01  # decoupled with muon, L2 with sgd
    warmup: float = 0.03  # share of the schedule that the learning rate rises; then a cosine to zero
    batch: int = 256  # images; each gives two views
    epochs: int = 100  # length of the schedule…
    minutes: float = 0.0  # …unless it is given in minutes of training

    view: Augmentation = field(default_factory=Augmentation)
    store: int = 96  # largest side kept in memory, in pixels; larger images are shrunk and cropped to it once
    limit: int = 0  # use the first so many images only (0: all)
    seed: int = 0  # of initialisation, data order and views
    precision: Literal["bf16", "fp32"] = "bf16"  # bf16 autocast, or fp32
    compile: bool = False  # torch.compile the backbone and the head
    device: str = "auto"  # cuda where there is one, else cpu
    log_every: int = 20  # steps
    checkpoint_minutes: float = 3.0  # between checkpoints, the most that a kill loses

    def __post_init__(self) -> None:
        at_least = {"batch": 2, "epochs": 1, "store": 1, "limit": 0, "minutes": 0, "log_every": 1, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)} is too little; give at least {least}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup {self.warmup} is no share of the schedule; give 0 or more, and less than 1")
        if self.temperature <= 0:
            raise ValueError(f"temperature {self.temperature} divides the similarities; give more than 0")


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
    # The shipped encoder's, on one H100: 24,000 images a second, twenty million seen.
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
