"""What several command lines here take, and how they end."""

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from encoder.manifest import ManifestError
from images.sources import SourceError
from load_tests import server, wrk
from load_tests.fronts import ROOT, Model

# What a user can put right; anything else is our mistake and gets its traceback.
ERRORS = (ManifestError, SourceError, server.ServerError, wrk.LoadError, OSError)


def at_least_one(text: str) -> int:
    """A whole number from 1 on, as argparse asks for it."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def add_model(parser: argparse.ArgumentParser) -> None:
    """Ask what is to be served, and from where: `Model`'s fields."""
    add, shown = parser.add_argument, " (default: %(default)s)"
    add("--model-store", type=Path, default=Path("model_store"), help="folder of the artifacts" + shown)
    add("--name", default="encoder", help="the model: NAME.json in the model store" + shown)
    add("--environment", type=Path, default=ROOT / ".venv", help="of native and floor (default: .venv)")


def model_of(chosen: argparse.Namespace) -> Model:
    """What `add_model` was answered."""
    return Model(chosen.model_store, chosen.name, chosen.environment)


def exit_code(program: str, run: Callable[[], int]) -> int:
    """What `run` returns; 1, and the reason in a line, where it cannot go on; 130 after Ctrl-C."""
    try:
        return run()
    except ERRORS as error:
        print(f"{program}: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a command line to its end. SIGTERM is an exception in it, so that the server it has started ends too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
