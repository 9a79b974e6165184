"""The TorchServe front: its custom handler, with the service and the JSON of the native front.

TorchServe imports this file in every worker and wants exactly one class in it. Code, encoder and seed come with
the archive (export/archive.py). Where the gallery lies is configuration: AKIN_GALLERY in the environment, else
`gallery` in the archive's model-config.yaml; with neither there is no gallery.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ts.context import Context
from ts.metrics.metric_type_enum import MetricTypes

from encoder.golden import GoldenMismatch, golden_batch
from encoder.manifest import Manifest, ManifestError
from encoder.session import ArtifactError, Encoder
from handlers.about import server_timing
from handlers.service import RequestError, Service
from handlers.torchserve.batch import answer_batch
from handlers.torchserve.inputs import Inputs, parse_inputs
from index.errors import GalleryError
from index.gallery import Gallery
from index.seed import seed_gallery

STARTUP_ERRORS = (ManifestError, ArtifactError, GoldenMismatch, GalleryError, OSError)
METRICS_LOGGER = "ts.metrics.caching_metric"  # TorchServe's metrics leave a worker as lines of its log


class EncoderHandler:
    """What TorchServe calls: `initialize` once in each worker, then `handle` for each batch of requests."""

    def initialize(self, context: Context) -> None:
        """Load the encoder, golden vectors passed, and the gallery, seeded where nothing was ever written."""
        try:
            self._service = _load(context)
        except STARTUP_ERRORS as error:
            print(f"akin: {error}", file=sys.stderr, flush=True)  # what handlers.torchserve.run looks for
            raise
        # One line a request that nobody reads costs more than decoding a small image.
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger(METRICS_LOGGER).setLevel(logging.INFO)

    def handle(self, data: list[dict[str, bytearray]], context: Context) -> list[bytes]:
        """The JSON of each request's answer; statuses go through the context."""
        requests = [
            _inputs(parameters, context.get_all_request_header(number)) for number, parameters in enumerate(data)
        ]
        replies = answer_batch(self._service, requests)
        for number, reply in enumerate(replies):
            context.set_response_content_type(number, "application/json")
            context.set_response_header(number, "akin-provider", self._service.encoder.provider)
            if reply.timing_ms:
                context.set_response_header(number, "server-timing", server_timing(reply.timing_ms))
            context.set_response_status(reply.status, idx=number)
        return [reply.payload for reply in replies]


def _inputs(parameters: dict[str, bytearray], headers: dict[str, Any]) -> Inputs | RequestError:
    try:
        return parse_inputs(parameters, headers)
    except RequestError as error:
        return error


def _load(context: Context) -> Service:
    model_store = Path(context.system_properties["model_dir"]) / "model_store"
    encoder = Encoder.load(model_store)
    folder = os.environ.get("AKIN_GALLERY") or (context.model_yaml_config or {}).get("gallery")
    gallery = _open_gallery(model_store, encoder.manifest, Path(folder)) if folder else None
    if gallery is not None:
        # FAISS and its BLAS take 30 ms to wake at their first search; nobody's request shall wait for that.
        golden = golden_batch(encoder.manifest.golden, encoder.manifest.preprocess.size)
        gallery.search(encoder.embed(golden).vectors, 1)
    return Service(encoder, gallery, _stage_observer(context))


def _open_gallery(model_store: Path, manifest: Manifest, folder: Path) -> Gallery:
    """The gallery in `folder`, seeded where nothing was ever written."""
    seed_gallery(model_store, manifest, folder)
    return Gallery.open(folder, manifest.model_digest, manifest.dimension)


def _stage_observer(context: Context) -> Callable[[str, float], None]:
    """Histograms of the stages in milliseconds: TorchServe's buckets, 0.005 to 10, are fixed."""
    name, kind = "akin_stage_ms", MetricTypes.HISTOGRAM
    declared = context.metrics.cache.get(kind, {}).get(name)  # in metrics.yaml, where TorchServe runs with ours
    stages = declared or context.metrics.add_metric_to_cache(name, "ms", ["stage"], kind)
    return lambda stage, seconds: stages.add_or_update(round(seconds * 1e3, 3), [stage])
