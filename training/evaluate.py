"""Measure an encoder on labels:  akin evaluate --weights runs/NAME/checkpoint.pt --data data [--test] [--finetune 20]

Reads   STL-10 (its binaries, or stl10-train.zip and stl10-test.zip) or CIFAR-10, and an encoder: a run's checkpoint,
        a .safetensors of export, `random` (fresh weights: the line every claim starts from), or with --onnx the
        int8 artifact that is served
Writes  JSON to standard output or --out, tables to --markdown; with --vectors the embeddings of the train split

Random weights of the same shape are measured beside the encoder, by the same protocol. Without --test everything
happens inside the train labels: epochs, sizes and strengths are chosen there. With it, the same fits are asked about
the test split too, which chooses nothing. That the encoder is frozen is proved by a digest before and after.
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from encoder.session import Encoder
from training import finetune, knobs, protocol, tables
from training.backbone import Backbone, Norm, Stem
from training.checkpoint import load_backbone
from training.features import Embed, Labelled, embed_images, state_digest, torch_embedder
from training.labelled import Split, data_name, official_folds, read_split
from training.machine import made_with, pick_device

RANDOM = "random"


@dataclass(frozen=True)
class Evaluate:
    data: str = "data"  # a folder with STL-10 or CIFAR-10
    weights: str = "model_store/encoder.safetensors"  # checkpoint.pt, encoder.safetensors, or random
    onnx: str = ""  # a model store: measure the artifact that is served from it, at its own size
    sizes: tuple[int, ...] = (64,)  # sides to measure at, in pixels
    test: bool = False  # also measure on the test split
    finetune: int = 0  # epochs to train the whole network for, on all labels and on 5% of them; slow on a CPU
    stem: Literal["auto", "standard", "small"] = "auto"  # of random weights; auto: the encoder's, else small
    vectors: str = ""  # .npy to write the train split's embeddings to (of the last size)
    out: str = ""  # JSON file to write
    markdown: str = ""  # Markdown file to write

    def __post_init__(self) -> None:
        if self.finetune < 0:
            raise ValueError(f"finetune {self.finetune} is no number of epochs; give 1 or more, or 0 for none")
        if self.finetune and self.onnx:
            raise ValueError("an int8 artifact has nothing to train; for --finetune name --weights, without --onnx")


class Subject(NamedTuple):
    """An encoder to be measured."""

    name: str
    stem: str
    embed: Embed
    digest: Callable[[], str]  # 64 hex over all that measuring could change…
    covers: str  # …and what that is
    backbone: Backbone | None = None  # what fine-tuning copies


class Splits(NamedTuple):
    """What a data set gives at one image size."""

    train: Split
    test: Split | None
    folds: list[np.ndarray]  # rows of train


def network(name: str, backbone: Backbone, device: torch.device) -> Subject:
    embed, covers = torch_embedder(backbone, device), "parameters and buffers"
    return Subject(name, backbone.stem, embed, lambda: state_digest(backbone), covers, backbone)


def artifact(model_store: Path, served: Encoder) -> Subject:
    """The int8 artifact that `served` runs; its stem as the manifest's recipe tells it, else "small"."""
    recipe, file = served.manifest.provenance.get("recipe", {}), model_store / served.artifact.file
    return Subject(
        served.manifest.model_id,
        recipe.get("stem", "small"),
        lambda batch: served.embed(batch).vectors,
        lambda: sha256(file.read_bytes()).hexdigest(),
        served.artifact.file,
    )


def random_weights(stem: Stem, norm: Norm, device: torch.device) -> Subject:
    return network(RANDOM, load_backbone(RANDOM, stem, norm), device)


def read_splits(data: Path, size: int, test: bool) -> Splits:
    """Without `test` the test split is not opened."""
    train = read_split(data, "train", size)
    return Splits(train, read_split(data, "test", size) if test else None, official_folds(data, train.labels))


def measured(
    subject: Subject, splits: Splits, device: torch.device, epochs: int = 0
) -> tuple[dict[str, Any], Labelled]:
    """All metrics of an encoder, and its embeddings of the train split. With `epochs` it is fine-tuned too.

    Raises RuntimeError where what was measured is not what was there before.
    """
    before = subject.digest()
    train, test = (
        Labelled(embed_images(subject.embed, split.images), split.labels) if split else None
        for split in (splits.train, splits.test)
    )
    assert train is not None
    result: dict[str, Any] = dict(protocol.measure(train, test, splits.folds))
    if epochs and subject.backbone:
        tuned = finetune.measure(subject.backbone, splits.train, train, splits.test, epochs, device)
        result = {place: numbers | tuned[place] for place, numbers in result.items()}
    if (after := subject.digest()) != before:
        raise RuntimeError(
            f"{subject.name} changed while it was measured: sha256 of its {subject.covers} was {before}, is {after}; "
            "embed with a module in evaluation mode that nobody trains"
        )
    return result | {"stem": subject.stem, "frozen": {"sha256": before, "equal": True, "of": subject.covers}}, train


def evaluate(config: Evaluate, command: str) -> dict[str, Any]:
    """The whole report. command: how it was asked for, for the record."""
    data, device = Path(config.data), pick_device("auto")
    norm: Norm
    sizes: tuple[int, ...]
    if config.onnx:
        served = Encoder.load(Path(config.onnx), threads=torch.get_num_threads())
        subject, sizes = artifact(Path(config.onnx), served), (served.manifest.preprocess.size,)
        norm = served.manifest.provenance.get("recipe", {}).get("norm", "batch")
    else:
        backbone = load_backbone(config.weights, "small" if config.stem == "auto" else config.stem)
        subject, sizes, norm = network(config.weights, backbone, device), config.sizes, backbone.norm
    stem: Any = subject.stem if config.stem == "auto" else config.stem
    results = []
    for size in sizes:
        say(f"reading {data} at {size} px")
        splits = read_splits(data, size, config.test)
        say(f"measuring {subject.name}")
        result, train = measured(subject, splits, device, config.finetune)
        if config.vectors:
            np.save(config.vectors, train.vectors)
        images = {"train_images": len(splits.train.labels)}
        images |= {"test_images": len(splits.test.labels)} if splits.test else {}
        row = {"size": size, **images, **result}
        if config.onnx or config.weights != RANDOM:
            say("measuring random weights")
            row[RANDOM], _ = measured(random_weights(stem, norm, device), splits, device, config.finetune)
        results.append(row)
    return {
        "encoder": subject.name,
        "data": data_name(data),
        "results": results,
        "fine_tuning_epochs": config.finetune,
        "made": {"date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "command": command, **made_with(device)},
    }


def say(what: str) -> None:
    print(f"{what} …", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    config = knobs.parse(Evaluate(), argv, "akin evaluate", (__doc__ or "").splitlines()[0])
    written = [Path(file) for file in (config.out, config.markdown, config.vectors) if file]
    for file in written:  # now, not after minutes of work
        file.parent.mkdir(parents=True, exist_ok=True)
    report = evaluate(config, "akin evaluate " + shlex.join(sys.argv[1:] if argv is None else argv))
    text = json.dumps(report, indent=1)
    print(text)
    if config.out:
        Path(config.out).write_text(text + "\n")
    if config.markdown:
        Path(config.markdown).write_text(tables.markdown(report), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
