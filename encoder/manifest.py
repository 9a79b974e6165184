"""Manifest: everything a server says or checks about a model, as one versioned JSON file.

`model_store/NAME.json` is written by export and read by whoever runs the model. All files it names
lie beside it.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

from encoder.golden import Golden
from images.spec import PreprocessSpec

FORMAT = 1
PRECISIONS = ("int8", "fp16", "fp32")
RUNTIMES = ("onnx", "torch")
DIGEST = re.compile(r"[0-9a-f]{64}")


class ManifestError(Exception):
    """A manifest that is missing, damaged, or written for another version of akin."""


class GallerySeed(TypedDict):
    """The vectors that ship with the model: arrays `ids`, `labels`, `vectors` in one .npz."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Artifact:
    """One executable form of the model."""

    file: str
    sha256: str
    precision: str  # one of PRECISIONS
    quantization: str  # "static QDQ per channel, U8S8", or "none"
    providers: tuple[str, ...]  # execution providers it is for: ONNX Runtime's, or torch's engine
    runtime: str = "onnx"  # one of RUNTIMES

    def __post_init__(self) -> None:
        _require_file_entry(self.file, self.sha256)
        if self.precision not in PRECISIONS:
            raise ManifestError(
                f"{self.file}: precision {self.precision!r} is none of {', '.join(PRECISIONS)}"
            )
        if self.runtime not in RUNTIMES:
            raise ManifestError(f"{self.file}: runtime {self.runtime!r} is none of {', '.join(RUNTIMES)}")
        if not self.providers:
            raise ManifestError(f"{self.file}: names no execution provider that it is for")

    @property
    def mixes_images(self) -> bool:
        """Whether an image's vector depends on the others of its run, as dynamic ranges are those of all of it."""
        return self.quantization.startswith("dynamic")


@dataclass(frozen=True)
class Manifest:
    """What export knew about the model. The graph takes `image` (N, size, size, 3) uint8 and gives
    `embedding` (N, dimension) float32 of unit norm and, where it has a probe, `logits` (N, classes) float32."""

    model: str  # "simclr-resnet18"
    model_digest: str  # sha256 over source weights and PreprocessSpec: see `model_digest`
    dimension: int
    class_names: tuple[str, ...]  # empty: a model without a probe
    preprocess: PreprocessSpec
    artifacts: tuple[Artifact, ...]  # in order of preference
    golden: tuple[Golden, ...]
    golden_min_cosine: float = 0.999
    gallery_seed: GallerySeed | None = None
    # data, method, epochs, images seen, seed, commit
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_digest("model_digest", self.model_digest)
        if type(self.dimension) is not int or self.dimension < 1:
            raise ManifestError(f"dimension {self.dimension!r} is not a positive whole number")
        if not self.artifacts or not self.golden:
            raise ManifestError("artifacts and golden must each have at least one entry")
        for number, golden in enumerate(self.golden):
            if len(golden.vector) != self.dimension:
                raise ManifestError(
                    f"golden vector {number} has {len(golden.vector)} numbers, "
                    f"the dimension is {self.dimension}"
                )
        if not 0 < self.golden_min_cosine <= 1:
            raise ManifestError(f"golden_min_cosine {self.golden_min_cosine!r} is not in (0, 1]")
        if self.gallery_seed is not None:
            _require_file_entry(self.gallery_seed["file"], self.gallery_seed["sha256"])
            if type(self.gallery_seed["rows"]) is not int:
                raise ManifestError(f"gallery_seed rows {self.gallery_seed['rows']!r} is not a whole number")

    @property
    def model_id(self) -> str:
        """The name that answers carry: model and the first 12 hex of its digest."""
        return f"{self.model}@{self.model_digest[:12]}"

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Manifest":
        if values.get("format") != FORMAT:
            raise ManifestError(f"format {values.get('format')!r} is not {FORMAT}, the one this akin reads")
        given = {key: value for key, value in values.items() if key != "format"}
        unknown = sorted(given.keys() - {known.name for known in fields(cls)})
        if unknown:
            raise ManifestError(f"unknown fields {unknown}")
        try:
            return cls(
                **given
                | {
                    "class_names": tuple(given["class_names"]),
                    "preprocess": PreprocessSpec.from_json(given["preprocess"]),
                    "artifacts": tuple(
                        Artifact(**entry | {"providers": tuple(entry["providers"])})
                        for entry in given["artifacts"]
                    ),
                    "golden": tuple(Golden(pair["seed"], tuple(pair["vector"])) for pair in given["golden"]),
                }
            )
        except KeyError as error:
            raise ManifestError(f"field {error} is missing") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise ManifestError(str(error)) from error

    @classmethod
    def read(cls, model_store: Path, name: str = "encoder") -> "Manifest":
        path = model_store / f"{name}.json"
        try:
            values = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ManifestError(
                f"no model at {path}: write one with `akin export`, or name another folder"
            ) from error
        except (OSError, ValueError) as error:
            raise ManifestError(
                f"{path} cannot be read ({error}): restore it, or run `akin export` again"
            ) from error
        if not isinstance(values, dict):
            raise ManifestError(f"{path} is not a JSON object: restore it, or run `akin export` again")
        try:
            return cls.from_json(values)
        except ManifestError as error:
            raise ManifestError(f"{path}: {error}; restore it, or run `akin export` again") from error

    def write(self, model_store: Path, name: str = "encoder") -> Path:
        """Replace the manifest in one step: a reader sees the old one or the new one."""
        path = model_store / f"{name}.json"
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        os.replace(partial, path)
        return path


def model_digest(weights: Path, preprocess: PreprocessSpec) -> str:
    """64 hex that identify a model: sha256 over its source weights and how its pixels are made."""
    digest = hashlib.sha256(weights.read_bytes())
    digest.update(json.dumps(preprocess.to_json(), sort_keys=True).encode())
    return digest.hexdigest()


def _require_file_entry(file: str, sha256: str) -> None:
    if not file or file != Path(file).name:
        raise ManifestError(f"file {file!r} must be a plain name: everything lies beside the manifest")
    _require_digest(f"{file}: sha256", sha256)


def _require_digest(what: str, digest: str) -> None:
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise ManifestError(f"{what} {digest!r} is not 64 hexadecimal digits")
