"""The seed becomes the gallery at the first start: whole, once, and only if it is the right file."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from encoder.manifest import Manifest
from index.errors import SeedCorrupt, WrongModel
from index.gallery import Gallery
from index.seed import seed_gallery
from index.vectors import unit_rows
from tests.tiny_encoder import write_tiny_encoder

REPOSITORY = Path(__file__).parents[1]
ROWS, DIMENSION = 500, 16
VECTORS = unit_rows(np.random.default_rng(0).standard_normal((ROWS, DIMENSION)), DIMENSION)
ARRAYS = {
    "ids": np.array([f"stl10-train/{row:05d}" for row in range(ROWS)]),
    "labels": np.array(["horse", "", "ship", "cat", "dog"] * (ROWS // 5)),
    "vectors": VECTORS.astype(np.float16),
}

KILLED_AT_ROW_300 = """
import os, signal, sys
from pathlib import Path
from encoder.manifest import Manifest
from index import seed, store

def fatal(key, *row):
    return os.kill(os.getpid(), signal.SIGKILL) if key == 300 else sealed(key, *row)

sealed, store.sealed = store.sealed, fatal
seed.seed_gallery(Path(sys.argv[1]), Manifest.read(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.fixture
def model_store(tmp_path: Path) -> Path:
    store = tmp_path / "model_store"
    write_tiny_encoder(store, dimension=DIMENSION)
    write_seed(store, **ARRAYS)
    return store


def write_seed(store: Path, rows: int = ROWS, **arrays: np.ndarray) -> None:
    np.savez(store / "gallery.npz", **arrays)
    sha256 = hashlib.sha256((store / "gallery.npz").read_bytes()).hexdigest()
    manifest = Manifest.read(store)
    replace(manifest, gallery_seed={"file": "gallery.npz", "sha256": sha256, "rows": rows}).write(store)


def open_gallery(store: Path, path: Path) -> Gallery:
    manifest = Manifest.read(store)
    return Gallery.open(path, manifest.model_digest, manifest.dimension)


def test_the_first_start_copies_the_seed_and_each_row_finds_itself(model_store: Path, tmp_path: Path) -> None:
    assert seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery") == ROWS
    with open_gallery(model_store, tmp_path / "gallery") as gallery:
        assert gallery.count == ROWS
        found = [neighbors[0] for neighbors in gallery.search(VECTORS, 1)]
    assert [neighbor.id for neighbor in found] == ARRAYS["ids"].tolist()
    assert [neighbor.label or "" for neighbor in found] == ARRAYS["labels"].tolist()
    # float16 turns a vector by about 3e-4 radians, and its length is repaired.
    assert [neighbor.score for neighbor in found] == pytest.approx([1.0] * ROWS, abs=1e-6)


def test_later_starts_leave_the_gallery_to_its_user(model_store: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(model_store)
    seed_gallery(model_store, manifest, tmp_path / "gallery")
    with open_gallery(model_store, tmp_path / "gallery") as gallery:
        gallery.remove(ARRAYS["ids"].tolist())
    (model_store / "gallery.npz").unlink()
    assert seed_gallery(model_store, manifest, tmp_path / "gallery") == 0
    with open_gallery(model_store, tmp_path / "gallery") as gallery:
        assert gallery.count == 0


def test_a_model_without_a_seed_starts_with_an_empty_gallery(model_store: Path, tmp_path: Path) -> None:
    manifest = replace(Manifest.read(model_store), gallery_seed=None)
    assert seed_gallery(model_store, manifest, tmp_path / "gallery") == 0


def test_a_seed_with_one_flipped_bit_is_refused_by_name_and_nothing_is_copied(
    model_store: Path, tmp_path: Path
) -> None:
    file = model_store / "gallery.npz"
    sound = file.read_bytes()
    file.write_bytes(sound[:5000] + bytes([sound[5000] ^ 1]) + sound[5001:])
    with pytest.raises(SeedCorrupt, match=r"gallery\.npz has sha256 .* its manifest says .*akin export"):
        seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery")
    file.write_bytes(sound)
    assert seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery") == ROWS


def test_a_missing_seed_is_refused_by_name(model_store: Path, tmp_path: Path) -> None:
    (model_store / "gallery.npz").unlink()
    with pytest.raises(SeedCorrupt, match=r"gallery\.npz cannot be read \(No such file"):
        seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": ARRAYS["ids"], "vectors": VECTORS}, "not a gallery seed.*labels"),
        (ARRAYS | {"labels": np.array([{}] * ROWS)}, "not a gallery seed.*allow_pickle=False"),
        (ARRAYS | {"ids": ARRAYS["ids"][1:]}, "499 ids, 500 labels and 500 vectors"),
        ({name: array[1:] for name, array in ARRAYS.items()}, "499 ids.*manifest says 500 rows"),
    ],
)
def test_a_file_that_is_no_seed_is_refused_even_with_the_right_digest(
    model_store: Path, tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    write_seed(model_store, **arrays)
    with pytest.raises(SeedCorrupt, match=message):
        seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery")


def test_another_models_gallery_is_not_seeded_over(model_store: Path, tmp_path: Path) -> None:
    Gallery.open(tmp_path / "gallery", "e" * 64, DIMENSION).close()
    with pytest.raises(WrongModel, match="eeeeeeeeeeee"):
        seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery")


def test_a_first_start_killed_half_way_is_made_good_by_the_next(model_store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_AT_ROW_300, str(model_store), str(tmp_path / "gallery")]
    assert subprocess.run(command, cwd=REPOSITORY).returncode == -9
    with open_gallery(model_store, tmp_path / "gallery") as gallery:
        assert gallery.count == 0
    assert seed_gallery(model_store, Manifest.read(model_store), tmp_path / "gallery") == ROWS
