"""Encoder: the trained model as one call on ONNX Runtime, checked before its first answer."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from encoder.golden import check_golden, golden_batch
from encoder.manifest import Artifact, Manifest

# Fastest first. An artifact says for which of them it is.
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")


class ArtifactError(Exception):
    """An artifact that is missing, not the one the manifest describes, or not for this machine."""


class Embedded(NamedTuple):
    """What the encoder says about N images."""

    vectors: np.ndarray  # (N, D) float32, unit norm
    logits: np.ndarray  # (N, C) float32, C the number of class names


@dataclass(frozen=True)
class Encoder:
    """A loaded model. `embed` may be called from any number of threads at once."""

    manifest: Manifest
    artifact: Artifact
    provider: str  # the ONNX Runtime execution provider that runs it
    session: ort.InferenceSession

    @classmethod
    def load(cls, model_store: Path, name: str = "encoder", threads: int = 1) -> "Encoder":
        """Open the best artifact for this machine: digest checked, warmed up, golden vectors compared.

        `threads` is the number a single call may use. One is right where several calls run side by
        side: ONNX Runtime releases the GIL.
        """
        manifest = Manifest.read(model_store, name)
        artifact, provider, session = _open_best(manifest, model_store, threads)
        encoder = cls(manifest, artifact, provider, session)
        encoder.embed(np.zeros((1, *encoder._image_shape), np.uint8))  # warm-up: first runs plan memory
        golden = encoder.embed(golden_batch(manifest.golden, manifest.preprocess.size))
        check_golden(manifest.golden, golden.vectors, manifest.golden_min_cosine, provider)
        return encoder

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        size = self.manifest.preprocess.size
        return (size, size, 3)

    def embed(self, batch: np.ndarray) -> Embedded:
        """`batch`: (N, size, size, 3) uint8 as `images.decode` makes it, N at least 1."""
        if batch.dtype != np.uint8 or batch.shape[1:] != self._image_shape or not len(batch):
            raise ValueError(
                f"cannot embed {batch.dtype} of shape {batch.shape}: the model takes uint8 of shape "
                f"{('N', *self._image_shape)}, N at least 1; images.decode.decode gives such images"
            )
        return run(self.session, batch)


def open_session(
    model: bytes | Path, provider: str = "CPUExecutionProvider", threads: int = 1
) -> ort.InferenceSession:
    """An ONNX Runtime session that runs on `provider`: asked for, and asserted to be what it got."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning thread takes the core from the next request.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != "CPUExecutionProvider":
        ort.preload_dlls()  # the CUDA libraries that pip installs are not where the loader looks
    session = ort.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=[provider]
    )
    # onnxruntime-gpu on a machine without a GPU lists CUDA as available, then falls back with a log line.
    if (got := session.get_providers()[0]) != provider:
        raise ArtifactError(f"asked ONNX Runtime for {provider}, got {got}: the GPU or its driver is missing")
    return session


def run(session: ort.InferenceSession, batch: np.ndarray) -> Embedded:
    """Both outputs of an exported graph for `batch` (N, size, size, 3) uint8."""
    vectors, logits = session.run(("embedding", "logits"), {"image": batch})
    return Embedded(vectors, logits)


def _open_best(
    manifest: Manifest, model_store: Path, threads: int
) -> tuple[Artifact, str, ort.InferenceSession]:
    """The first artifact that opens, trying the fastest execution provider first."""
    refusals = []
    for provider in PROVIDERS:
        if provider not in ort.get_available_providers():
            continue
        for artifact in manifest.artifacts:
            if provider not in artifact.providers:
                continue
            model = _read_checked(model_store / artifact.file, artifact.sha256)
            try:
                return artifact, provider, open_session(model, provider, threads)
            except Exception as error:  # ONNX Runtime's own exceptions have no common base
                refusals.append(f"{artifact.file}: {error}")
    wanted = sorted({provider for artifact in manifest.artifacts for provider in artifact.providers})
    raise ArtifactError(
        f"no artifact of {manifest.model_id} runs here: they are for {', '.join(wanted)}, "
        f"ONNX Runtime offers {', '.join(ort.get_available_providers())}; export one for this machine"
        + "".join(f". {refusal}" for refusal in refusals)
    )


def _read_checked(path: Path, sha256: str) -> bytes:
    """The file's bytes, which are the ones that then run: nothing is read between check and use."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}): restore it, or run `akin export`"
        ) from error
    found = hashlib.sha256(model).hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{path} is not the file its manifest describes: sha256 is {found}, expected {sha256}; "
            "restore it, or run `akin export` again"
        )
    return model
