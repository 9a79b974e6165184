"""The gallery from the command line.

    akin index add photos/                 # a folder, .zip, .tar.gz, .npy or STL-10; skips what is there
    akin index search photo.jpg -k 10      # one line of JSON a neighbour
    akin index remove cats/1.jpg cats/2.jpg
    akin index stats

Reads model_store/, writes the gallery. The default gallery, which the server uses, begins with the seed that
ships with the model; one that --gallery names begins empty.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from encoder.manifest import Manifest
from encoder.session import Encoder
from images.decode import ImageError, decode
from images.sources import open_source
from index.build import add_images
from index.gallery import Gallery
from index.seed import seed_gallery

DEFAULT_GALLERY = Path("var/gallery")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    chosen = _parser().parse_args(argv)
    if chosen.verb in ("add", "search"):
        encoder = Encoder.load(chosen.model_store, chosen.name)
        manifest = encoder.manifest
    else:
        manifest = Manifest.read(chosen.model_store, chosen.name)
    folder = chosen.gallery or DEFAULT_GALLERY
    if chosen.gallery is None:
        seed_gallery(chosen.model_store, manifest, folder)
    elif chosen.verb != "add" and not folder.is_dir():
        return _fail(f"no gallery at {folder}; make one with `akin index add`, or leave --gallery out")
    with Gallery.open(folder, manifest.model_digest, manifest.dimension) as gallery:
        match chosen.verb:
            case "add":
                return add(gallery, encoder, chosen.source, chosen.split)
            case "search":
                return search(gallery, encoder, chosen.image, chosen.k)
            case "remove":
                return remove(gallery, chosen.ids)
            case _:
                return stats(gallery, manifest)


def add(gallery: Gallery, encoder: Encoder, source: Path, split: str | None) -> int:
    """Embed and add what is new. Fails where not one image of the source is in the gallery afterwards."""
    summary = add_images(gallery, encoder, open_source(source, split))
    print(summary)
    return 0 if summary.added or summary.already_there else _fail(f"no image in {source} could be added")


def search(gallery: Gallery, encoder: Encoder, image: Path, k: int) -> int:
    """Print the k nearest neighbours of an image file, best first."""
    try:
        pixels = decode(image.read_bytes(), encoder.manifest.preprocess)
    except ImageError as error:
        return _fail(f"{image}: {error.reason}")
    except OSError as error:
        return _fail(f"{image} cannot be read: {error.strerror}")
    (neighbors,) = gallery.search(encoder.embed(np.stack([pixels])).vectors, k)
    for neighbor in neighbors:
        print(json.dumps(neighbor._asdict()))
    return 0


def remove(gallery: Gallery, ids: Sequence[str]) -> int:
    """Remove rows by id. Fails where none of them was there."""
    removed = gallery.remove(ids)
    print(f"{removed} of {len(ids)} removed, {gallery.count} left")
    return 0 if removed else _fail("no such id; `akin index search` shows the ids of similar images")


def stats(gallery: Gallery, manifest: Manifest) -> int:
    """Print what the gallery holds."""
    print(f"rows: {gallery.count}\nmodel: {manifest.model_id}\ndimension: {manifest.dimension}")
    return 0


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model-store", type=Path, default=Path("model_store"), help="where the model lies")
    common.add_argument("--name", default="encoder", help="its manifest is NAME.json there")
    common.add_argument("--gallery", type=Path, help=f"folder of the gallery (default: {DEFAULT_GALLERY})")
    parser = argparse.ArgumentParser(prog="akin index", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    adding = verbs.add_parser("add", parents=[common], help="embed and add the images of a source")
    adding.add_argument("source", type=Path, help="folder, .zip, .tar.gz, .npy, or a folder with STL-10")
    adding.add_argument("--split", choices=("train", "test", "unlabeled"), help="which part of STL-10")
    removing = verbs.add_parser("remove", parents=[common], help="remove rows by id")
    removing.add_argument("ids", nargs="+", metavar="ID")
    searching = verbs.add_parser("search", parents=[common], help="the nearest neighbours of an image file")
    searching.add_argument("image", type=Path, metavar="FILE")
    searching.add_argument("-k", type=_positive, default=5, help="how many (default: 5)")
    verbs.add_parser("stats", parents=[common], help="rows, model and dimension")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number from 1")
    return number


def _fail(reason: str) -> int:
    print(f"akin: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
