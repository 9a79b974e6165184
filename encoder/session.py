"""Encoder: the trained model as one call, on ONNX Runtime, OpenVINO or torch, checked before its first answer."""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import onnxruntime as ort

from encoder.golden import check_golden, golden_batch
from encoder.manifest import Artifact, Manifest

CPU_PROVIDER = "CPUExecutionProvider"
# ONNX Runtime's, fastest first. An artifact says for which of them it is.
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU_PROVIDER)
OPENVINO_PROVIDER = "OpenVINO"  # encoder.openvino_session: reads what is for CPU_PROVIDER, where it is asked for
TORCH_PROVIDER = "torch-x86"  # what the manifest calls encoder.torch_runtime


class ArtifactError(Exception):
    """An artifact that is missing, not the one the manifest describes, or not for this machine."""


class Embedded(NamedTuple):
    """What the encoder says about N images."""

    vectors: np.ndarray  # (N, D) float32, unit norm
    logits: np.ndarray  # (N, C) float32, C the number of class names: 0 without a probe


class Output(Protocol):
    """What a session can give."""

    @property
    def name(self) -> str: ...


class Session(Protocol):
    """An opened artifact: ONNX Runtime's session, or another engine behind the same calls."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]: ...

    def get_outputs(self) -> Sequence[Output]: ...


@dataclass(frozen=True)
class Encoder:
    """A loaded model. `embed` may be called from any number of threads at once."""

    manifest: Manifest
    artifact: Artifact
    provider: str  # what runs it: one of PROVIDERS, OPENVINO_PROVIDER or TORCH_PROVIDER
    session: Session
    wide_session: Session | None = None  # the same artifact with more threads a call

    @classmethod
    def load(
        cls,
        model_store: Path,
        name: str = "encoder",
        threads: int = 1,
        runtime: str | None = None,
        provider: str | None = None,
        idle_threads: int = 1,
    ) -> "Encoder":
        """Open the best artifact for this machine: digest checked, warmed up, golden vectors compared.

        `threads` is the number a single call may use. One is right where several calls run side by
        side: ONNX Runtime and torch release the GIL. `runtime`, "onnx" or "torch", is by default that of
        the manifest's first artifact. With `provider`, that execution provider runs it or nothing does.
        `idle_threads`, where there are more than `threads`, is the number for a call that is alone. It has
        no effect on a GPU, nor on torch, which has one number of threads for the whole process.
        """
        manifest = Manifest.read(model_store, name)
        wanted = runtime or manifest.artifacts[0].runtime
        artifact, provider, model, session = _open_best(manifest, model_store, threads, wanted, provider)
        _check(manifest, session, provider)
        if idle_threads <= threads or provider not in (CPU_PROVIDER, OPENVINO_PROVIDER):
            return cls(manifest, artifact, provider, session)
        wide_session = _open(model, provider, idle_threads)
        _check(manifest, wide_session, provider)
        return cls(manifest, artifact, provider, session, wide_session)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image: (size, size, 3)."""
        size = self.manifest.preprocess.size
        return (size, size, 3)

    def embed(self, batch: np.ndarray, alone: bool = False) -> Embedded:
        """`batch`: (N, size, size, 3) uint8 as `images.decode` makes it, N at least 1.

        alone: no other call runs or waits, so that this one may use `idle_threads`.
        """
        self.require_images(batch)
        session = self.wide_session if alone and self.wide_session is not None else self.session
        if not self.artifact.mixes_images:
            return run(session, batch)
        # One by one, so that nobody's vector depends on whose images come beside.
        vectors, logits = zip(*(run(session, image[None]) for image in batch), strict=True)
        return Embedded(np.concatenate(vectors), np.concatenate(logits))

    def require_images(self, batch: np.ndarray) -> None:
        """Raise ValueError unless `batch` is what `embed` takes."""
        if batch.dtype != np.uint8 or batch.shape[1:] != self.image_shape or not len(batch):
            raise ValueError(
                f"cannot embed {batch.dtype} of shape {batch.shape}: the model takes uint8 of shape "
                f"{('N', *self.image_shape)}, N at least 1; images.decode.decode gives such images"
            )

    def coming(self) -> AbstractContextManager[None]:
        """Around making pixels for `embed`: see `encoder.batching`, which alone makes use of it."""
        return nullcontext()


def open_session(model: bytes | Path, provider: str = CPU_PROVIDER, threads: int = 1) -> ort.InferenceSession:
    """An ONNX Runtime session that runs on `provider`: asked for, and asserted to be what it got."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning thread takes the core from the next request.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider != CPU_PROVIDER:
        ort.preload_dlls()  # the CUDA libraries that pip installs are not where the loader looks
    session = ort.InferenceSession(model if isinstance(model, bytes) else str(model), options, providers=[provider])
    # onnxruntime-gpu on a machine without a GPU lists CUDA as available, then falls back with a log line.
    if (got := session.get_providers()[0]) != provider:
        raise ArtifactError(f"asked ONNX Runtime for {provider}, got {got}: the GPU or its driver is missing")
    return session


def run(session: Session, batch: np.ndarray) -> Embedded:
    """What an exported graph gives for `batch` (N, size, size, 3) uint8."""
    if any(output.name == "logits" for output in session.get_outputs()):
        vectors, logits = session.run(("embedding", "logits"), {"image": batch})
        return Embedded(vectors, logits)
    (vectors,) = session.run(("embedding",), {"image": batch})
    return Embedded(vectors, np.empty((len(vectors), 0), np.float32))


def _check(manifest: Manifest, session: Session, provider: str) -> None:
    """Warm a session up and compare what it gives with what the manifest says."""
    batch = golden_batch(manifest.golden, manifest.preprocess.size)
    run(session, batch[:1])  # first runs plan memory
    vectors, logits = run(session, batch)
    found, said = (vectors.shape[1], logits.shape[1]), (manifest.dimension, len(manifest.class_names))
    if found != said:
        raise ArtifactError(
            f"the graph of {manifest.model_id} gives {found[0]} numbers and {found[1]} logits an image, its manifest "
            f"says {said[0]} and {said[1]} class names; run `akin export` again"
        )
    check_golden(manifest.golden, vectors, manifest.golden_min_cosine, provider)


def _open_best(
    manifest: Manifest, model_store: Path, threads: int, runtime: str, required: str | None
) -> tuple[Artifact, str, bytes, Session]:
    """The first artifact of `runtime` that opens, trying the fastest execution provider first; its bytes, opened."""
    engine, offered = _engine(runtime, required)
    refusals = []
    for provider in offered:
        if required and provider != required:
            continue
        for artifact in manifest.artifacts:
            if not _is_for(artifact, provider) or artifact.runtime != runtime:
                continue
            model = read_checked(model_store / artifact.file, artifact.sha256)
            try:
                return artifact, provider, model, _open(model, provider, threads)
            except Exception as error:  # ONNX Runtime's own exceptions have no common base
                refusals.append(f"{artifact.file}: {error}")
    wanted = sorted({provider for artifact in manifest.artifacts for provider in artifact.providers})
    raise ArtifactError(
        f"no artifact of {manifest.model_id} runs here{f' on {required}, which is required' if required else ''}: "
        f"they are for {', '.join(wanted)}, {engine} offers {', '.join(offered)}; "
        f"export one for this machine{', or require no provider' if required else ''}"
        + "".join(f". {refusal}" for refusal in refusals)
    )


def _engine(runtime: str, required: str | None) -> tuple[str, tuple[str, ...]]:
    """What can run artifacts of `runtime`, and the providers it offers here, fastest first."""
    if runtime == "torch":
        return "torch", (TORCH_PROVIDER,)
    if required != OPENVINO_PROVIDER:
        available = ort.get_available_providers()
        return "ONNX Runtime", tuple(provider for provider in PROVIDERS if provider in available)
    if importlib.util.find_spec("openvino") is None:
        raise ArtifactError(
            "OpenVINO is required, and the package openvino is not installed here; install it with "
            f"`make setup-openvino`, or require {CPU_PROVIDER}"
        )
    return "OpenVINO", (OPENVINO_PROVIDER,)


def _is_for(artifact: Artifact, provider: str) -> bool:
    return (CPU_PROVIDER if provider == OPENVINO_PROVIDER else provider) in artifact.providers


def _open(model: bytes, provider: str, threads: int) -> Session:
    if provider == OPENVINO_PROVIDER:
        from encoder.openvino_session import open_openvino_session  # here alone: it is not installed everywhere

        return open_openvino_session(model, threads)
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
        raise ArtifactError(f"{path} cannot be read ({error.strerror}): restore it, or run `akin export`") from error
    found = hashlib.sha256(model).hexdigest()
    if found != sha256:
        raise ArtifactError(
            f"{path} is not the file its manifest describes: sha256 is {found}, expected {sha256}; "
            "restore it, or run `akin export` again"
        )
    return model
