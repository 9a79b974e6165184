"""How every export ends: what a graph says, its golden vectors and its digest, and the model store put in place."""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from encoder.golden import Golden, golden_batch
from encoder.manifest import Manifest
from encoder.session import Embedded, open_session, run
from export.torch_store import joined

BATCH = 100
GOLDEN_SEEDS = range(8)


def outputs(model: Path, images: np.ndarray, batch: int = BATCH) -> Embedded:
    """What an ONNX graph gives for all images, (N, size, size, 3) uint8, of which it sees `batch` at a time."""
    session = open_session(model, threads=torch.get_num_threads())
    return joined([run(session, images[row : row + batch]) for row in range(0, len(images), batch)])


def golden_of(model: Path, size: int) -> tuple[Golden, ...]:
    """What an ONNX graph gives for the generated pictures, `size` pixels a side."""
    vectors = run(open_session(model), golden_batch([Golden(seed, ()) for seed in GOLDEN_SEEDS], size)).vectors
    return tuple(
        Golden(seed, tuple(round(float(value), 6) for value in vector))
        for seed, vector in zip(GOLDEN_SEEDS, vectors, strict=True)
    )


def digest_of(path: Path) -> str:
    """64 hex: sha256 of the file."""
    return sha256(path.read_bytes()).hexdigest()


def publish(files: Iterable[Path], manifest: Manifest, card: str, out: Path, name: str) -> None:
    """Move `files`, from a folder on the same disk, into the model store `out`; then write NAME.json, which names
    them, and MODEL_CARD.md."""
    for path in files:
        path.chmod(0o644)  # safetensors writes for its owner alone
        path.replace(out / path.name)
    manifest.write(out, name)
    (out / "MODEL_CARD.md").write_text(card, encoding="utf-8")
