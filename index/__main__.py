"""The gallery from the command line.

    akin index add photos/                 # a folder, .zip, .tar.gz, .npy or STL-10; skips what is there
    akin index search photo.jpg -k 10      # one line of JSON a neighbour
    akin index search --id cats/1.jpg --filter '{"label": "cat"}' --vote
    akin index duplicates --min-score 0.97 # one line of JSON a group
    akin index remove cats/1.jpg cats/2.jpg
    akin index stats --recall
    akin index verify                      # every checksum, and the snapshot
    akin index backup gallery.bak          # while others write
    akin index restore gallery.bak --gallery FOLDER
    akin index export --to milvus://HOST:19530

Reads model_store/, writes the gallery. The default gallery, which the server uses, begins with the seed that
ships with the model; one that --gallery or --index names begins empty.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from index import verbs
from index.errors import RowRefused
from index.filters import HOW_TO, Filter
from index.open import DEFAULT_GALLERY, parse_bytes

MIN_SCORE = 0.97  # of near-duplicates


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    chosen = _parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = getattr(verbs, chosen.verb)
    return run(chosen)


def _parser() -> argparse.ArgumentParser:
    common = _common()
    parser = argparse.ArgumentParser(prog="akin index", description=(__doc__ or "").splitlines()[0])
    verbs_of = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        return verbs_of.add_parser(name, parents=[common], help=help, description=getattr(verbs, name).__doc__)

    adding = verb("add", "embed and add the images of sources")
    adding.add_argument(
        "sources",
        nargs="+",
        type=Path,
        metavar="SOURCE",
        help="folder, .zip, .tar.gz, .npy, or a folder with STL-10; ids of several begin with the source's name",
    )
    adding.add_argument("--split", choices=("train", "test", "unlabeled"), help="which part of a data set")
    adding.add_argument("--thumbnails", action="store_true", help="keep a small picture of each image")

    removing = verb("remove", "remove rows by id")
    removing.add_argument("ids", nargs="+", metavar="ID")

    searching = verb("search", "the nearest neighbours of an image file, a row or a vector")
    query = searching.add_mutually_exclusive_group(required=True)
    query.add_argument("image", nargs="?", type=Path, metavar="FILE")
    query.add_argument("--id", help="of a row, which is left out itself")
    query.add_argument("--vector", type=Path, metavar="FILE.npy", help="of the index's dimension")
    searching.add_argument("-k", type=_positive, default=5, help="how many (default: 5)")
    searching.add_argument("--filter", type=_filter, metavar="JSON", help=HOW_TO)
    searching.add_argument("--min-score", type=_cosine, help="leave out what is less similar")
    searching.add_argument("--vote", action="store_true", help="a last line with the labels the neighbours vote for")

    measuring = verb("stats", "rows, model, dimension, and how it is searched")
    measuring.add_argument("--recall", action="store_true", help="measured against exact search; reads every row")

    verb("verify", "compare everything with its checksums, and the snapshot with the truth")
    verb("rebuild", "build the acceleration anew")
    verb("backup", "write the gallery to one file").add_argument("file", type=Path, metavar="FILE")
    verb("restore", "make a gallery of a backup").add_argument("file", type=Path, metavar="FILE")

    exporting = verb("export", "copy every row to Milvus or a file")
    exporting.add_argument("--to", required=True, help="milvus://HOST:PORT, FILE.ndjson, FILE.npz or another folder")

    doubling = verb("duplicates", "groups of near-duplicates")
    doubling.add_argument(
        "--min-score", type=_cosine, default=MIN_SCORE, help=f"how similar at least (default: {MIN_SCORE})"
    )
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--model-store", type=Path, default=Path("model_store"), help="where the model lies")
    common.add_argument("--name", default="encoder", help="its manifest is NAME.json there")
    where = common.add_mutually_exclusive_group()
    where.add_argument("--gallery", dest="where", metavar="FOLDER", help=f"(default: {DEFAULT_GALLERY})")
    where.add_argument("--index", dest="where", metavar="WHERE", help="a folder, or milvus://HOST:PORT")
    common.add_argument("--ram", type=_bytes, help="what searching may take, such as 2GB; of a folder")
    common.add_argument("--factory", help="how FAISS shall search, such as HNSW32,SQ8; of a folder")
    return common


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number from 1")
    return number


def _cosine(text: str) -> float:
    number = float(text)
    if not -1 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no cosine similarity: -1 to 1")
    return number


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except RowRefused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _filter(text: str) -> Filter | None:
    try:
        return Filter.parse(json.loads(text))
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error}): {HOW_TO}") from error
    except RowRefused as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
