"""`akin deploy STORE`: let a running server answer with another model, without dropping a request.

    akin deploy var/newer                 # the current version of `encoder` from now on
    akin deploy var/newer --keep          # and the one before still answers at /predictions/encoder/VERSION
    akin deploy var/dino --as dino        # another model beside it

Every process of the server loads it beside what it serves and checks its golden vectors; only when all of them have
does any of them answer with it. Reads the control sockets in var/run/ of this folder.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from encoder.manifest import Manifest, ManifestError
from handlers.control import FOLDER, ControlError, ask, paths_of


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="akin deploy", description="Let a running server answer with another model, without dropping a request."
    )
    add = parser.add_argument
    add("model_store", type=Path, help="folder of the model's artifacts")
    add("--file", default="encoder", help="its manifest is FILE.json there (default: %(default)s)")
    add("--as", dest="name", default="encoder", help="the name it answers to (default: %(default)s)")
    add("--keep", action="store_true", help="the version before still answers to those who name it")
    add("--port", type=int, default=8080, help="of the server (default: %(default)s)")
    chosen = parser.parse_args(argv)
    try:
        Manifest.read(chosen.model_store, chosen.file)  # before anybody is asked to load it
        done = deploy(chosen.port, chosen.name, chosen.model_store, chosen.file, chosen.keep)
    except (ControlError, ManifestError) as error:
        print(f"akin: {error}", file=sys.stderr)
        return 1
    print(done.line)
    for reason in done.failures:
        print(f"akin: {reason}; run this again, unless it comes back and learns it from the others", file=sys.stderr)
    return 1 if done.failures else 0


class Deployed(NamedTuple):
    """What has become of it."""

    line: str  # to read
    failures: list[str]  # why, of each process that does not answer with it


def deploy(port: int, name: str, store: Path, file: str = "encoder", keep: bool = False) -> Deployed:
    """Have every process load the model, then every process answer with it.

    Raises `ControlError`, and then none answers with it and none holds it. Once one does, the others follow where
    they can: one that has died since it loaded asks the others what to serve when it comes back.
    """
    processes = paths_of(port)
    if not processes:
        raise ControlError(
            f"no server of port {port} has its control socket in {FOLDER.resolve()}; run this in the folder where "
            "the server was started, with its --port"
        )
    try:
        for process in processes:
            loaded = ask(process, "load", name=name, model_store=str(store.resolve()), file=file)
    except ControlError:
        for process in processes:
            with suppress(ControlError):  # gone, and what it had loaded too
                ask(process, "discard", name=name)
        raise
    swaps, failures = [], []
    for process in processes:
        try:
            swaps.append(ask(process, "swap", name=name, keep=keep))
        except ControlError as error:
            failures.append(f"{process.stem} does not answer with it: {error}")
    if not swaps:
        raise ControlError("; ".join(failures))
    retired = swaps[0]["retired"]
    rows = "no gallery: k > 0 gets 409" if loaded["rows"] is None else f"a gallery of {loaded['rows']} images"
    gone = f"; retired {', '.join(retired)}" if retired else ""
    some = f"{len(swaps)} of " if failures else ""
    count = f" in {some}{len(processes)} processes" if len(processes) > 1 else ""
    return Deployed(f"{name} is {loaded['model']}{count}, with {rows}{gone}", failures)


if __name__ == "__main__":
    sys.exit(main())
