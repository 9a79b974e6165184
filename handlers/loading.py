"""From settings to services: encoders with their golden vectors passed, each with the gallery that is its own."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from encoder.batching import Batching
from encoder.golden import golden_batch
from encoder.session import Encoder
from handlers.metrics import Metrics
from handlers.service import Service
from handlers.settings import Settings, Source
from images.sources import Source as ImageSource
from images.sources import open_source
from index.build import add_images
from index.errors import GalleryError
from index.face import Index
from index.open import DEFAULT_GALLERY, open_index
from index.seed import seed_gallery
from index.thumbnails import Thumbnails

GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
GPU_BATCH = 32


def load(
    settings: Settings, source: Source, metrics: Metrics, alone: Callable[[], bool], successor: bool = False
) -> Service:
    """The service of one model, warm.

    successor: of a model that is served already under the settings' own name, whose gallery is another model's.
    """
    encoder = Encoder.load(
        source.store, source.file, provider=settings.require_provider, idle_threads=settings.cores_for_one
    )
    manifest = encoder.manifest
    observe = metrics.observer(manifest.model_id, encoder.provider)
    with ExitStack() as opened:  # closed again where anything fails
        gallery, thumbnails = _open_gallery(settings, source, encoder, successor, opened)
        golden = encoder.embed(golden_batch(manifest.golden, manifest.preprocess.size))
        if gallery is not None:
            # FAISS and its BLAS take 30 ms to wake at their first search; nobody's request shall wait for that.
            gallery.search(golden.vectors, 1)
        batch = settings.max_batch or (GPU_BATCH if encoder.provider in GPU_PROVIDERS else 1)
        runner: Encoder | Batching = encoder if batch == 1 else Batching(encoder, batch, settings.batch_wait_ms)
        opened.pop_all()
    return Service(runner, gallery, observe, thumbnails, alone)


def _open_gallery(
    settings: Settings, source: Source, encoder: Encoder, successor: bool, opened: ExitStack
) -> tuple[Index | None, Thumbnails | None]:
    """The gallery of a model and its thumbnails, which are closed with `opened`.

    The settings' own model has the gallery of the settings, seeded where it is the default one and new. Another
    model, or a newer version, has one of its own: one there is, its seed, or the settings' images anew.
    """
    manifest = encoder.manifest
    own = source.name == settings.name
    images = open_source(settings.images) if own and settings.images is not None else None
    where: str | Path
    if own and not successor:
        where, pictures = settings.where, settings.thumbnails_folder
        seeded = where == DEFAULT_GALLERY
    else:
        where = pictures = settings.gallery_of(source.name, manifest.model_digest[:12])
        seeded = images is None
        if seeded and manifest.gallery_seed is None and not where.exists():
            return None, None
    if seeded:
        seed_gallery(source.store, manifest, Path(where))
    gallery = open_index(where, manifest.model_digest, manifest.dimension, settings.ram, settings.factory)
    opened.callback(gallery.close)
    thumbnails = Thumbnails.open(pictures) if settings.keeps_thumbnails else None
    if thumbnails is not None:
        opened.callback(thumbnails.close)
    if images is not None:
        _fill(settings, images, gallery, encoder, thumbnails)
    return gallery, thumbnails


def _fill(
    settings: Settings, images: ImageSource, gallery: Index, encoder: Encoder, thumbnails: Thumbnails | None
) -> None:
    print(f"embedding what is new in {settings.images}", flush=True)
    print(add_images(gallery, encoder, images, settings.workers, thumbnails), flush=True)
    if not gallery.count:
        raise GalleryError(f"no image in {settings.images} could be added; name a folder of images")
