"""Pack the encoder for TorchServe:  akin archive

Reads   model_store/ (manifest, artifacts, seed of the gallery) and the code of images, encoder, index and handlers
Writes  var/encoder.mar: everything a worker imports of ours, so that it runs wherever the packages are installed

A .mar is a zip with a MANIFEST.json. It is written here rather than by torch-model-archiver, which flattens
packages and works in a folder that two builds would share; and so the same input gives the same bytes.
"""

import json
import os
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder.manifest import Manifest
from training import knobs

ROOT = Path(__file__).parents[1]
ROOMS = ("images", "encoder", "index", "handlers")
MODEL_CONFIG = ROOT / "handlers/torchserve/model-config.yaml"
MANIFEST = {
    "runtime": "python",
    "model": {
        "modelName": "encoder",
        "modelVersion": "1.0",
        "handler": "handlers.torchserve_handler",  # imported by this name, not by its path
        "configFile": "model-config.yaml",
    },
    "archiverVersion": "0.12.0",
}
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


class ArchiveError(Exception):
    """A file that belongs into the archive and cannot be read."""


@dataclass(frozen=True)
class Archive:
    model_store: str = "model_store"
    name: str = "encoder"  # its manifest is NAME.json there
    out: str = "var/encoder.mar"
    model_config: str = str(MODEL_CONFIG)  # batch size, timeouts and gallery, as TorchServe reads them


def members(config: Archive) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file in the archive."""
    model_store = Path(config.model_store)
    manifest = Manifest.read(model_store, config.name)
    yield "MAR-INF/MANIFEST.json", json.dumps(MANIFEST, indent=1).encode()
    yield "model-config.yaml", _read(Path(config.model_config))
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            yield file.relative_to(ROOT).as_posix(), _read(file)
    yield "model_store/encoder.json", _read(model_store / f"{config.name}.json")
    files = [artifact.file for artifact in manifest.artifacts]
    if manifest.gallery_seed is not None:
        files.append(manifest.gallery_seed["file"])
    for name in files:
        yield f"model_store/{name}", _read(model_store / name)


def write_archive(config: Archive) -> Path:
    """Replace the archive in one step: a server that starts meanwhile reads the old one or the new one."""
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        with zipfile.ZipFile(partial, "w") as archive:  # stored: int8 weights hardly shrink
            for name, content in members(config):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), content)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArchiveError(f"{file} cannot be read ({error.strerror}): restore it, or run `akin export`") from error


def main(argv: Sequence[str] | None = None) -> int:
    out = write_archive(knobs.parse(Archive(), argv, "akin archive", (__doc__ or "").splitlines()[0]))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
