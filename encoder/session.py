"""Encoder: the trained model as one call, on ONNX Runtime or on torch, checked before its first answer."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import onnxruntime as ort

from encoder.golden import check_golden, golden_batch
from encoder.manifest import Artifact, Manifest

# Fastest first. An artifact says for which of them it is.
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
TORCH_PROVIDER = "torch-x86"  # what the manifest calls encoder.torch_runtime


class ArtifactError(Exception):
    """An artifact that is missing, not the one the manifest describes, or not for this machine."""


class Embedded(NamedTuple):
    """What the encoder says about N images."""

    vectors: np.ndarray  # (N, D) float32, unit norm
    logits: np.ndarray  # (N, C) float32, C the number of class names


class Session(Protocol):
    """An opened artifact: ONNX Runtime's session, or torch behind the same call."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]: ...


@dataclass(frozen=True)
class Encoder:
    """A loaded model. `embed` may be called from any number of threads at once."""

    manifest: Manifest
    artifact: Artifact
    provider: str  # the execution provider that runs it: one of PROVIDERS, or TORCH_PROVIDER
    session: Session

    @classmethod
    def load(
        cls,
        model_store: Path,
        name: str = "encoder",
        threads: int = 1,
        runtime: str | None = None,
        provider: str | None = None,
    ) -> "Encoder":
        """Open the best artifact for this machine: digest checked, warmed up, golden vectors compared.

        `threads` is the number a single call may use. One is right where several calls run side by
        side: ONNX Runtime and torch release the GIL. `runtime`, "onnx" or "torch", is by default that of
        the manifest's first artifact. With `provider`, that execution provider runs it or nothing does.
        """
        manifest = Manifest.read(model_store, name)
        wanted = runtime or manifest.artifacts[0].runtime
        artifact, provider, session = _open_best(manifest, model_store, threads, wanted, provider)
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


def run(session: Session, batch: np.ndarray) -> Embedded:
    """Both outputs of an exported graph for `batch` (N, size, size, 3) uint8."""
    vectors, logits = session.run(("embedding", "logits"), {"image": batch})
    return Embedded(vectors, logits)


def _open_best(
    manifest: Manifest, model_store: Path, threads: int, runtime: str, required: str | None
) -> tuple[Artifact, str, Session]:
    """The first artifact of `runtime` that opens, trying the fastest execution provider first."""
    offered = (TORCH_PROVIDER,) if runtime == "torch" else tuple(ort.get_available_providers())
    refusals = []
    for provider in (TORCH_PROVIDER, *PROVIDERS):
        if provider not in offered or (required and provider != required):
            continue
        for artifact in manifest.artifacts:
            if provider not in artifact.providers or artifact.runtime != runtime:
                continue
            model = read_checked(model_store / artifact.file, artifact.sha256)
            try:
                return artifact, provider, _open(model, provider, threads)
            except Exception as error:  # ONNX Runtime's own exceptions have no common base
                refusals.append(f"{artifact.file}: {error}")
    wanted = sorted({provider for artifact in manifest.artifacts for provider in artifact.providers})
    raise ArtifactError(
        f"no artifact of {manifest.model_id} runs here{f' on {required}, which is required' if required else ''}: "
        f"they are for {', '.join(wanted)}, {'torch' if runtime == 'torch' else 'ONNX Runtime'} offers "
        f"{', '.join(offered)}; export one for this machine{', or require no provider' if required else ''}"
        + "".join(f". {refusal}" for refusal in refusals)
    )


def _open(model: bytes, provider: str, threads: int) -> Session:
    if provider != TORCH_PROVIDER:
        return open_session(model, provider, threads)
    try:
        from encoder.torch_runtime import open_torch_session  # here alone: a server of ONNX does without torch
    except ModuleNotFoundError as error:
        raise ArtifactError(
            f"it needs {error.name}, which is not installed here; run it from .venv-full (make setup-full)"
        ) from error
    return open_torch_session(model, threads)


def read_checked(path: Path, sha256: str) -> bytes:
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
