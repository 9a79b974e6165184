"""Make an encoder of another library servable:  akin export --from SOURCE --calibrate IMAGES --out FOLDER

SOURCE is torchvision:NAME, timm:NAME or hf:FOLDER, a Hugging Face folder such as DINOv2's. Its weights are those that
its library publishes, or --weights FILE, a checkpoint whose names --keys rewrites, or --random. No labels, no probe.
Static int8 is tried first, then dynamic int8, fp16 and fp32: the first within the fidelity budget is kept.

Writes into FOLDER: NAME.KIND.onnx, NAME.json, NAME.safetensors and MODEL_CARD.md
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from encoder.manifest import Artifact, Manifest, model_digest
from export.attempts import Attempt, attempts, milliseconds
from export.fidelity import HELD_OUT, Budget
from export.foreign import Foreign, Weights, load, write_foreign_weights
from export.foreign_card import foreign_card
from export.foreign_error import ForeignError
from export.graph import ServedForeign
from export.quantize import CALIBRATORS
from export.to_onnx import to_onnx
from export.unlabelled import read_unlabelled
from export.write import digest_of, golden_of, outputs, publish
from images.spec import MAX_SIZE, PreprocessSpec

PROVIDER = "CPUExecutionProvider"
SAME = 0.9999  # cosine of the fp32 graph to the network in torch, at least
FEWEST_HELD_OUT = 50


@dataclass(frozen=True)
class Adopt:
    """What `akin export --from` is asked for."""

    source: str
    calibrate: Path
    out: Path
    weights: str = ""
    keys: str = ""
    random: bool = False
    name: str = "encoder"
    model: str = ""
    size: int = 0
    calibration: int = 300
    calibrator: str = "minmax"
    held_out: int = HELD_OUT

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"--size {self.size} is not from 1 to {MAX_SIZE} pixels, or 0 for the library's")
        if self.calibration < 1 or self.held_out < FEWEST_HELD_OUT:
            raise ValueError(
                f"--calibration {self.calibration} and --held-out {self.held_out} must be at least 1 and "
                f"{FEWEST_HELD_OUT} images"
            )
        if self.random and self.weights:
            raise ValueError("--random and --weights exclude each other: leave one out")
        if self.keys and not self.weights:
            raise ValueError("--keys renames what is in a checkpoint: name it with --weights FILE")


def adopt(config: Adopt, budget: Budget) -> Manifest:
    """Writes the model store, or nothing."""
    foreign = load(config.source, Weights(config.weights, config.keys, config.random), config.size)
    if foreign.dropped:
        print(f"not taken of the weights: {', '.join(foreign.dropped)}", flush=True)
    spec = PreprocessSpec(size=foreign.pixels.resize)
    images = read_unlabelled(config.calibrate, spec, config.calibration, config.held_out)
    config.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=config.out) as folder:  # on the same disk
        weights, fp32 = (Path(folder, f"{config.name}.{kind}") for kind in ("safetensors", "fp32.onnx"))
        write_foreign_weights(weights, foreign)
        pixels = foreign.pixels
        served = ServedForeign(foreign.encoder, pixels.mean, pixels.std, pixels.resize, pixels.crop)
        to_onnx(served, spec.size, fp32, outputs=("embedding",))
        require_same(served, fp32, images.held_out[:8])
        metrics = {"fp32": {"bytes": fp32.stat().st_size, "ms": round(milliseconds(fp32, images.held_out), 2)}}
        tried = []
        for attempt in attempts(fp32, *images, budget, config.calibrator):
            print(json.dumps(attempt.to_json()), flush=True)
            tried.append(attempt)
        manifest = described(config, foreign, tried, weights, metrics)
        files = (weights, tried[-1].file)
        publish(files, manifest, foreign_card(manifest, config.name), config.out, config.name)
    return manifest


def require_same(served: ServedForeign, fp32: Path, images: np.ndarray) -> None:
    """The graph that all else is held against must say what the network says in torch, and that must be numbers."""
    with torch.no_grad():
        vectors = served(torch.from_numpy(images)).numpy()
    if not np.isfinite(vectors).all():
        raise ForeignError("the network gives vectors that are not finite: its weights are damaged, fetch them again")
    cosine = float((vectors * outputs(fp32, images).vectors).sum(axis=1).min())
    if not cosine >= SAME:
        raise ForeignError(
            f"the ONNX graph is not the network: cosine {cosine:.6f}, the limit is {SAME}; this torch cannot export "
            "it, try another version or the same architecture of another library"
        )


def described(
    config: Adopt, foreign: Foreign, tried: Sequence[Attempt], weights: Path, metrics: dict[str, Any]
) -> Manifest:
    kept, size = tried[-1], foreign.pixels.resize
    golden = golden_of(kept.file, size)
    assert kept.closeness is not None, "what is kept was measured"
    return Manifest(
        model=config.model or foreign.source.partition(":")[2] + ("-random" if config.random else ""),
        model_digest=model_digest(weights, PreprocessSpec(size=size)),
        dimension=len(golden[0].vector),
        class_names=(),
        preprocess=PreprocessSpec(size=size),
        artifacts=(
            Artifact(kept.file.name, digest_of(kept.file), kept.precision, kept.quantization, (PROVIDER,)),
        ),
        golden=golden,
        provenance={
            "from": foreign.source,
            "library": foreign.library,
            "weights": foreign.weights,
            "key map": config.keys if "=" in config.keys else Path(config.keys).name,
            "not taken": list(foreign.dropped),
            "random": config.random,
            "pixels": asdict(foreign.pixels),
            "pixels of the library": asdict(foreign.own_pixels),
            "calibrator": config.calibrator,
        },
        metrics=metrics
        | {"fidelity": kept.closeness.to_json(), "attempts": [attempt.to_json() for attempt in tried]},
    )


def parse(argv: Sequence[str]) -> Adopt:
    parser = argparse.ArgumentParser(
        prog="akin export",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--from", dest="source", nargs="?", default="", metavar="SOURCE", help="what to export: see above")
    add("--calibrate", type=Path, required=True, metavar="IMAGES", help="folder, archive, .npy or .parquet of images")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the model store to write")
    add("--weights", metavar="FILE", help="a torch checkpoint or .safetensors (default: the library's)")
    add("--keys", help="old=new,... rewrites beginnings of names in it, old=- drops; or a .json of them")
    add("--random", action="store_true", help="random weights, to try it out")
    add("--size", type=int, help="pixels a side, nothing cropped off (default: as its library does)")
    add("--name", help="of the files (default: %(default)s)")
    add("--model", help="name that answers carry (default: that of the source)")
    add("--calibration", type=int, metavar="N", help="images for int8 ranges (default: %(default)s)")
    add("--calibrator", choices=CALIBRATORS, help="how they set them (default: %(default)s)")
    add("--held-out", type=int, metavar="N", help="others that measure (default: %(default)s)")
    parser.set_defaults(**{field.name: field.default for field in fields(Adopt) if field.default is not MISSING})
    try:
        given = vars(parser.parse_args(argv))
        return Adopt(**given | {"source": given["source"] or ""})
    except ValueError as error:  # values that the dataclass refuses
        parser.error(str(error))


def main(argv: Sequence[str]) -> int:
    config = parse(argv)
    manifest = adopt(config, Budget())
    print(f"{config.out}: {manifest.model_id}, {manifest.artifacts[0].quantization}")
    return 0
