"""What `akin index VERB` does, one function a verb: arguments in, lines on stdout, exit code out."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np
from tqdm import tqdm

from encoder.manifest import Manifest
from encoder.session import Encoder
from images.decode import ImageError, decode
from images.sources import Item, Source, SourceError, open_source
from index.backup import backup as back_up
from index.backup import restore as restore_from
from index.build import add_images
from index.duplicates import near_duplicates
from index.errors import GalleryError, NotThere, RowRefused
from index.face import Index, Neighbor, Stats
from index.gallery import Gallery
from index.open import DEFAULT_GALLERY, MILVUS, open_index, own_gallery
from index.seed import seed_gallery
from index.store import FILE_NAME, Store
from index.thumbnails import FILE_NAME as THUMBNAILS
from index.thumbnails import Thumbnails
from index.verify import verify as faults_of
from index.votes import vote


def add(chosen: Namespace) -> int:
    """Embed and add what is new. Fails where not one image is in the index afterwards.

    A source that is served by `akin serve --images` goes into the gallery it has there, thumbnails as they are.
    """
    sources = _sources(chosen.sources, chosen.split)
    if chosen.where is None and len(sources) == 1 and (own := own_gallery(sources[0][0])).is_dir():
        chosen.where = str(own)
        chosen.thumbnails = chosen.thumbnails or (own / THUMBNAILS).exists()
        print(f"into {own}, where these images are served from", flush=True)
    encoder = Encoder.load(chosen.model_store, chosen.name)
    usable = 0
    with ExitStack() as stack:
        thumbnails = stack.enter_context(Thumbnails.open(_folder(chosen))) if chosen.thumbnails else None
        index = stack.enter_context(_opened(chosen, encoder.manifest, make=True))
        for path, source in sources:
            summary = add_images(index, encoder, source, thumbnails=thumbnails)
            print(summary if len(sources) == 1 else f"{path}: {summary}", flush=True)
            usable += summary.usable
    return 0 if usable else _fail(f"no image in {', '.join(str(path) for path, _ in sources)} could be added")


def remove(chosen: Namespace) -> int:
    """Remove rows by id, with their thumbnails. Fails where none of them was there."""
    with _opened(chosen, _manifest(chosen)) as index:
        removed = index.remove(chosen.ids)
        print(f"{removed} of {len(chosen.ids)} removed, {index.count} left")
    if not _is_milvus(chosen.where):
        with Thumbnails.open(_folder(chosen)) as thumbnails:
            thumbnails.drop(chosen.ids)
    return 0 if removed else _fail("no such id; `akin index search` shows the ids of similar images")


def search(chosen: Namespace) -> int:
    """Print the k nearest neighbours of an image file, a vector or a row, best first, and what they vote for."""
    encoder = Encoder.load(chosen.model_store, chosen.name) if chosen.image else None
    manifest = _manifest(chosen) if encoder is None else encoder.manifest
    with _opened(chosen, manifest) as index:
        if encoder is not None:
            neighbors = _search(index, _embed(encoder, chosen.image), chosen)
        elif chosen.vector:
            neighbors = _search(index, _read_vector(chosen.vector), chosen)
        else:
            (row,) = index.get([chosen.id])
            if row is None:
                raise NotThere(
                    f"no row has the id {chosen.id!r}; `akin index search FILE` shows ids of similar images"
                )
            found = _search(index, row.vector[None], chosen, more=1)
            neighbors = [neighbor for neighbor in found if neighbor.id != chosen.id][: chosen.k]
    for neighbor in neighbors:
        print(json.dumps(neighbor._asdict()))
    if chosen.vote:
        print(json.dumps({"vote": [one._asdict() for one in vote(neighbors)]}))
    return 0


def stats(chosen: Namespace) -> int:
    """Print what the index holds and how it is searched."""
    manifest = _manifest(chosen)
    with _opened(chosen, manifest) as index:
        found = index.stats(measure_recall=chosen.recall)
    lines = {"rows": found["rows"], "model": manifest.model_id, "dimension": manifest.dimension, **_described(found)}
    print("\n".join(f"{key}: {value}" for key, value in lines.items()))
    return 0


def verify(chosen: Namespace) -> int:
    """Print every fault of checksums, pages and snapshot. Fails where there is one."""
    manifest, folder = _manifest(chosen), _folder_with_gallery(chosen)
    faults = faults_of(folder, manifest.model_digest, manifest.dimension)
    if faults:
        print("\n".join(faults))
        return 1
    with closing(Store.open(folder, manifest.model_digest, manifest.dimension)) as store:
        print(f"all of {folder} is sound: {store.count()} rows")
    return 0


def rebuild(chosen: Namespace) -> int:
    """Build the acceleration anew and write its snapshot."""
    _folder(chosen)
    with _opened(chosen, _manifest(chosen)) as index:
        assert isinstance(index, Gallery), "of a folder"
        started = perf_counter()
        index.rebuild()
        seconds = perf_counter() - started
        found = index.stats()
    print(f"{found['rows']} rows rebuilt as {found['factory']} in {seconds:.1f} s")
    return 0


def backup(chosen: Namespace) -> int:
    """Write the gallery to one file, whoever writes to it meanwhile."""
    rows = back_up(_folder_with_gallery(chosen), chosen.file)
    print(f"{rows} rows in {chosen.file}, every one as its checksum says")
    return 0


def restore(chosen: Namespace) -> int:
    """Make a gallery of a backup, where there is none."""
    manifest, folder = _manifest(chosen), _folder(chosen)
    rows = restore_from(chosen.file, folder, manifest.model_digest, manifest.dimension)
    print(f"{rows} rows restored in {folder}")
    return 0


def export(chosen: Namespace) -> int:
    """Copy every row to a Milvus server, to another folder, or to a file."""
    from index.export import export_file, export_index

    manifest, target = _manifest(chosen), chosen.to
    with _opened(chosen, manifest) as index:
        if Path(target).suffix in (".ndjson", ".npz"):
            print(f"{export_file(index, Path(target))} rows in {target}")
        elif _is_milvus(target) or not Path(target).suffix:
            with closing(open_index(target, manifest.model_digest, manifest.dimension)) as other:
                print(export_index(index, other))
        else:
            raise RowRefused(
                f"{target} is nothing to export to; name {MILVUS}HOST:PORT, FILE.ndjson, FILE.npz or a folder"
            )
    return 0


def duplicates(chosen: Namespace) -> int:
    """Print groups of near-duplicates, a line of JSON each, the largest first."""
    with (
        _opened(chosen, _manifest(chosen)) as index,
        tqdm(total=index.count, unit=" rows", disable=None) as bar,
    ):
        groups = near_duplicates(index, chosen.min_score, on_batch=bar.update)
    for group in groups:
        print(json.dumps(group))
    return 0


def _manifest(chosen: Namespace) -> Manifest:
    return Manifest.read(chosen.model_store, chosen.name)


@contextmanager
def _opened(chosen: Namespace, manifest: Manifest, make: bool = False) -> Iterator[Index]:
    """The index that the arguments name. The default one is seeded where it is new; `add` alone makes others."""
    where = chosen.where or str(DEFAULT_GALLERY)
    if chosen.where is None:
        seed_gallery(chosen.model_store, manifest, DEFAULT_GALLERY)
    elif not make and not _is_milvus(where) and not Path(where).is_dir():
        raise _no_gallery(where)
    with closing(
        open_index(where, manifest.model_digest, manifest.dimension, ram=chosen.ram, factory=chosen.factory)
    ) as index:
        yield index


def _is_milvus(where: str | None) -> bool:
    return where is not None and where.startswith(MILVUS)


def _folder(chosen: Namespace) -> Path:
    """Where the gallery lies, for verbs that work on its files."""
    if _is_milvus(chosen.where):
        raise GalleryError(
            f"{chosen.where} is a server of Milvus, and this is for a gallery in a folder: name one with --gallery, "
            "or copy what the server holds to a file with `akin index export --to FILE.npz`"
        )
    return Path(chosen.where or DEFAULT_GALLERY)


def _folder_with_gallery(chosen: Namespace) -> Path:
    folder = _folder(chosen)
    if not (folder / FILE_NAME).exists():
        raise _no_gallery(folder)
    return folder


def _no_gallery(where: str | Path) -> GalleryError:
    return GalleryError(f"no gallery at {where}; make one with `akin index add`, or leave --gallery out")


def _sources(paths: Sequence[Path], split: str | None) -> list[tuple[Path, Source]]:
    """Several sources are told apart by their names, which their ids begin with, as if they lay in one folder."""
    opened = [(path, open_source(path, split)) for path in paths]
    if len(opened) == 1:
        return opened
    names = [path.resolve().name for path in paths]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SourceError(f"two sources are called {min(twice)!r}, and ids begin with that name; rename one of them")
    return [(path, _prefixed(source, name)) for (path, source), name in zip(opened, names, strict=True)]


def _prefixed(source: Source, name: str) -> Source:
    def items() -> Iterator[Item]:
        for item in source:
            yield replace(item, id=f"{name}/{item.id}")

    return replace(source, items=items)


def _embed(encoder: Encoder, file: Path) -> np.ndarray:
    """(1, dimension) float32."""
    try:
        return encoder.embed(decode(file.read_bytes(), encoder.manifest.preprocess)[None]).vectors
    except ImageError as error:
        raise RowRefused(f"{file}: {error.reason}") from error
    except OSError as error:
        raise RowRefused(f"{file} cannot be read: {error.strerror}") from error


def _read_vector(file: Path) -> np.ndarray:
    """(1, N), N as it is in the file."""
    try:
        return np.atleast_2d(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise RowRefused(f"{file} is no .npy file of a vector: {error}") from error


def _search(index: Index, vectors: np.ndarray, chosen: Namespace, more: int = 0) -> list[Neighbor]:
    if len(vectors) != 1:
        raise RowRefused(f"{chosen.vector} holds {len(vectors)} vectors; give one at a time")
    return index.search(vectors, chosen.k + more, where=chosen.filter, min_score=chosen.min_score)[0]


def _described(found: Stats) -> dict[str, object]:
    memory, snapshot, recall = found["memory_bytes"], found["snapshot"], found["recall"]
    return {
        "factory": found["factory"],
        "delta": found["delta"],
        "tombstones": found["tombstones"],
        "memory": "held by the server" if memory is None else f"{memory} bytes",
        "snapshot": ", ".join(f"{key} {value}" for key, value in snapshot.items()) if snapshot else "none",
        "rebuilding": "yes" if found["rebuilding"] else "no",
        "recall": (
            f"{recall['value']:.4f} at {recall['at']}, {recall['queries']} queries, {recall['seconds']:.1f} s"
            if recall
            else "not measured; --recall does"
        ),
    }


def _fail(reason: str) -> int:
    print(f"akin: {reason}", file=sys.stderr)
    return 1
