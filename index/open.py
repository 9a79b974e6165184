"""One way to any index: a folder of this machine, or a Milvus server by its address."""

import re
from hashlib import sha256
from pathlib import Path

from index.errors import GalleryError, RowRefused
from index.face import Index
from index.gallery import Gallery

DEFAULT_GALLERY = Path("var/gallery")
GALLERIES = Path("var/galleries")  # those of sources of images, and of further models
MILVUS = "milvus://"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def open_index(
    where: str | Path,
    model_digest: str,
    dimension: int,
    ram: int | None = None,
    factory: str | None = None,
) -> Index:
    """The index at `where`: a folder, or `milvus://host:port`. It is made where there is none.

    ram: bytes that the acceleration may take; factory: how FAISS shall search, in its own words. Both choose for a
    folder only; a Milvus server has settings of its own.
    """
    if not str(where).startswith(MILVUS):
        return Gallery.open(Path(where), model_digest, dimension, ram=ram, factory=factory)
    try:
        from index.milvus import MilvusGallery
    except ModuleNotFoundError as error:
        raise GalleryError(f"{where} needs {error.name}, which is not installed: run make setup-milvus") from error
    return MilvusGallery.open(str(where), model_digest, dimension)


def own_gallery(images: Path) -> Path:
    """Where the gallery of a source of images lies: each has one of its own."""
    source = images.resolve()
    return GALLERIES / f"{source.name}-{sha256(str(source).encode()).hexdigest()[:8]}"


def parse_bytes(text: str) -> int:
    """`2GB`, `512MiB` or a plain number, as bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", text.strip().lower())
    if not found or found[2] not in UNITS:
        raise RowRefused(f"{text!r} is no size: write 2GB, 512MiB or a number of bytes")
    return int(float(found[1]) * UNITS[found[2]])
