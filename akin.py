#!/usr/bin/env python3
"""The command line of akin: one verb a stage. A verb's module is imported only when the verb is called.

    .venv/bin/akin serve --port 8080            .venv-full/bin/akin pretrain --preset cpu --minutes 60
    .venv/bin/akin embed photo.jpg -k 5         .venv/bin/akin VERB --help
"""

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOMS = ("images", "training", "export", "encoder", "index", "handlers", "load_tests", "akin")


@dataclass(frozen=True)
class Environment:
    """A virtual environment that the Makefile makes."""

    folder: str
    made_by: str


SERVING = Environment(".venv", "make setup")
FULL = Environment(".venv-full", "make setup-full")


@dataclass(frozen=True)
class Verb:
    """A stage: the function that does it, and the environment that has what it needs."""

    run: Callable[[Sequence[str]], int]  # arguments -> exit code
    summary: str
    environment: Environment = SERVING


def main_of(module: str) -> Callable[[Sequence[str]], int]:
    """The `main(argv)` of a module that is imported when it is called."""

    def run(argv: Sequence[str]) -> int:
        return int(importlib.import_module(module).main(argv))

    return run


def info(argv: Sequence[str]) -> int:
    """Print the manifest without its golden vectors."""
    from encoder.manifest import Manifest

    parser = argparse.ArgumentParser(prog="akin info", description=info.__doc__)
    _add_model_arguments(parser)
    chosen = parser.parse_args(argv)
    manifest = Manifest.read(chosen.model_store, chosen.name)
    brief = {"model": manifest.model_id, "golden": f"{len(manifest.golden)} vectors"}
    print("\n".join(outline(manifest.to_json() | brief)))
    return 0


def outline(values: dict[str, Any], indent: str = "") -> Iterator[str]:
    """`key: value` lines; what is nested is indented below its key."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from outline(value, indent + "  ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            for entry in value:
                yield f"{indent}{key}:"
                yield from outline(entry, indent + "  ")
        else:
            yield f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value)}"


def embed(argv: Sequence[str]) -> int:
    """Print one line of JSON a file: the server's answer, or the status and reason it would refuse with."""
    from encoder.session import Encoder
    from handlers.service import Options, Service, to_json
    from images.decode import ImageError
    from index.gallery import Gallery
    from index.seed import seed_gallery

    parser = argparse.ArgumentParser(prog="akin embed", description=embed.__doc__)
    _add_model_arguments(parser)
    parser.add_argument("--gallery", type=Path, default=Path("var/gallery"), help="searched where k > 0")
    parser.add_argument("-k", help="number of neighbours (default: none)")
    parser.add_argument("--fields", help="what to print, such as embedding,label (default: everything)")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    chosen = parser.parse_args(argv)
    options = Options.parse(chosen.k, chosen.fields)
    encoder = Encoder.load(chosen.model_store, chosen.name)
    gallery = None
    if options.k:
        seed_gallery(chosen.model_store, encoder.manifest, chosen.gallery)
        gallery = Gallery.open(chosen.gallery, encoder.manifest.model_digest, encoder.manifest.dimension)
    service = Service(encoder, gallery)
    exit_code = 0
    for file in chosen.files:
        answer: dict[str, Any] = {"file": str(file)}
        try:
            answer |= service.answer(file.read_bytes(), options)
        except (ImageError, OSError) as error:
            exit_code = 1
            answer |= (
                {"status": error.status, "error": error.reason}
                if isinstance(error, ImageError)
                else {"error": f"cannot be read: {error.strerror}"}
            )
        print(to_json(answer).decode(), flush=True)
    if gallery is not None:
        gallery.close()
    return exit_code


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model-store", type=Path, default=Path("model_store"), help="where the model lies")
    parser.add_argument("--name", default="encoder", help="its manifest is NAME.json there")


VERBS = {
    "pretrain": Verb(main_of("training.pretrain"), "train an encoder on images without labels", FULL),
    "evaluate": Verb(main_of("training.evaluate"), "linear probe and nearest neighbours on STL-10", FULL),
    "speedrun": Verb(main_of("training.speedrun"), "eight minutes of training, one honest line", FULL),
    "ablate": Verb(main_of("training.ablate"), "what one knob changes: runs, table and plot", FULL),
    "map": Verb(main_of("training.maps"), "pictures: t-SNE of embeddings, nearest neighbours", FULL),
    "export": Verb(main_of("export.__main__"), "write model_store/: ONNX, int8, manifest, cards", FULL),
    "archive": Verb(main_of("export.archive"), "pack the encoder for TorchServe: var/encoder.mar", FULL),
    "info": Verb(info, "what the model in model_store/ is, and its measured quality"),
    "embed": Verb(embed, "answer for image files as the server would, without one"),
    "index": Verb(main_of("index.__main__"), "add, remove and search images in the gallery"),
    "serve": Verb(main_of("handlers.native"), "answer over HTTP"),
    "deploy": Verb(main_of("handlers.deploy"), "let a running server answer with another model"),
    "torchserve": Verb(main_of("handlers.torchserve.run"), "answer over HTTP with TorchServe", FULL),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Hand the arguments behind the verb to its module. Returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name not in VERBS:
        return complain(f"no verb {name!r}; there are {', '.join(VERBS)}", exit_code=2)
    verb = VERBS[name]
    try:
        return verb.run(rest)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `akin embed *.jpg | head`: nobody reads on, and the final flush shall not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or _is_ours(error.name):
            raise
        return complain(
            f"akin {name} needs {error.name}, which {sys.prefix} does not have: "
            f"run {verb.environment.made_by}, then {verb.environment.folder}/bin/akin {name}"
        )
    except Exception as error:
        # Errors of our own name the value, the limit and the way out. Any other is a mistake of ours.
        if not _is_ours(type(error).__module__):
            raise
        return complain(str(error))


def usage() -> str:
    """The list of verbs."""
    verbs = "\n".join(f"  {name:10} {verb.summary}" for name, verb in VERBS.items())
    return f"usage: akin VERB [ARGUMENTS]     akin VERB --help says more\n\n{verbs}"


def complain(reason: str, exit_code: int = 1) -> int:
    """One line on stderr."""
    print(f"akin: {reason}", file=sys.stderr)
    return exit_code


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in ROOMS


if __name__ == "__main__":
    sys.exit(main())
