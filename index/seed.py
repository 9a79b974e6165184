"""The seed: vectors of STL-10 train that ship with the model, so that neighbours mean something at once.

Reads model_store/gallery.npz, writes var/gallery/.
"""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np

from encoder.manifest import GallerySeed, Manifest
from index.errors import SeedCorrupt
from index.store import Store


def seed_gallery(model_store: Path, manifest: Manifest, path: Path) -> int:
    """Copy the seed into the gallery in folder `path` if nothing was ever written there.

    Returns the number of rows copied. It is one transaction: a killed first start leaves a gallery that the
    next start seeds. A gallery whose rows were all removed stays empty.
    """
    store = Store.open(path, manifest.model_digest, manifest.dimension)
    try:
        if manifest.gallery_seed is None or not store.untouched():
            return 0
        ids, labels, vectors = _read(model_store, manifest.gallery_seed)
        return len(ids) if store.add(ids, vectors, labels, only_if_untouched=True) else 0
    finally:
        store.close()


def _read(model_store: Path, seed: GallerySeed) -> tuple[list[str], list[str | None], np.ndarray]:
    """ids, labels and (rows, dimension) float16 vectors; the digest is checked before anything is parsed."""
    file = model_store / seed["file"]
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SeedCorrupt(f"{file} cannot be read ({error.strerror}); {_WAY_OUT}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != seed["sha256"]:
        raise SeedCorrupt(f"{file} has sha256 {found}, its manifest says {seed['sha256']}; {_WAY_OUT}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            ids, labels, vectors = (arrays[name] for name in ("ids", "labels", "vectors"))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SeedCorrupt(f"{file} is not a gallery seed ({error}); {_WAY_OUT}") from error
    if not len(ids) == len(labels) == len(vectors) == seed["rows"]:
        raise SeedCorrupt(
            f"{file} has {len(ids)} ids, {len(labels)} labels and {len(vectors)} vectors, its manifest says "
            f"{seed['rows']} rows; {_WAY_OUT}"
        )
    return ids.tolist(), [label or None for label in labels.tolist()], vectors


_WAY_OUT = "restore it, or run `akin export` again"
