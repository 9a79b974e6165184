"""The shipped encoder through every door: the same photo, the same vector, the same neighbours.

Photos are STL-10's where ../shared/data has them, else generated scenes.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from encoder.golden import golden_batch
from encoder.manifest import Manifest, model_digest
from encoder.session import Encoder
from export.__main__ import digest_of
from export.card import model_card
from export.graph import Served, fold_batch_norm
from export.weights import half_precision, write_weights
from images.decode import decode, resize
from images.sources import open_source
from images.stl10 import CLASS_NAMES
from index.gallery import Gallery
from index.seed import seed_gallery
from tests.pictures import encode, scene
from tests.server import ROOT, Server, running_server, start
from training.checkpoint import load_backbone
from training.features import embed_split

STORE = ROOT / "model_store"
SHARED = ROOT.parent / "shared" / "data"
SHIPPED = {"encoder.safetensors", "encoder.int8.onnx", "encoder.json", "gallery.npz", "MODEL_CARD.md"}
WEIGHTS = STORE / "encoder.safetensors"
PATH = "/predictions/encoder"


class Photo(NamedTuple):
    name: str
    data: bytes  # an encoded image
    label: str | None  # None where it is generated


def photos(split: str, count: int) -> list[Photo]:
    """The first of an STL-10 split, as they are in its zip; or scenes."""
    archive = SHARED / f"stl10-{split}.zip"
    if not archive.exists():
        return [Photo(f"{seed:05d}.jpg", encode(scene(96, 96, seed), quality=90), None) for seed in range(count)]
    items = islice(open_source(archive), count)
    return [Photo(item.id, item.data, CLASS_NAMES[item.label]) for item in items]  # type: ignore[arg-type,index]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.load(STORE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`akin serve` with the shipped model and a gallery of its own."""
    with running_server(STORE, tmp_path_factory.mktemp("served")) as server:
        yield server


def akin(*arguments: str | Path, folder: Path) -> list[str]:
    """What a command prints, run as a user runs it in `folder`; a line each."""
    command = [sys.executable, str(ROOT / "akin.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def post(server: Server, photo: bytes, **options: object) -> dict[str, object]:
    answer = httpx.post(server.url + PATH, content=photo, params=options, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Row by row."""
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_nothing_but_what_is_documented_lies_in_the_model_store() -> None:
    assert {path.name for path in STORE.iterdir()} == SHIPPED


def test_the_shipped_files_are_the_ones_their_manifest_describes() -> None:
    manifest = Manifest.read(STORE)
    assert [digest_of(STORE / artifact.file) for artifact in manifest.artifacts] == [
        artifact.sha256 for artifact in manifest.artifacts
    ]
    assert manifest.gallery_seed is not None
    assert digest_of(STORE / manifest.gallery_seed["file"]) == manifest.gallery_seed["sha256"]
    assert model_digest(WEIGHTS, manifest.preprocess) == manifest.model_digest
    assert manifest.class_names == CLASS_NAMES


def test_the_shipped_card_is_that_of_the_shipped_manifest() -> None:
    assert (STORE / "MODEL_CARD.md").read_text(encoding="utf-8") == model_card(Manifest.read(STORE))


def test_the_shipped_numbers_meet_what_the_project_promises() -> None:
    metrics = Manifest.read(STORE).metrics
    assert metrics["fidelity"]["cosine_mean"] >= 0.998
    assert metrics["fidelity"]["probe_fp32"] - metrics["fidelity"]["probe_int8"] <= 0.5
    assert metrics["fidelity"]["overlap"] >= 0.9
    assert metrics["test"]["int8"]["linear"] >= metrics["test"]["random"]["linear"] + 20


def test_the_shipped_weights_written_again_keep_the_model_digest(tmp_path: Path) -> None:
    manifest = Manifest.read(STORE)
    write_weights(tmp_path / "again.safetensors", half_precision(load_backbone(str(WEIGHTS))), shipped_probe())
    assert model_digest(tmp_path / "again.safetensors", manifest.preprocess) == manifest.model_digest


def shipped_probe() -> nn.Linear:
    state = load_file(WEIGHTS)
    probe = nn.Linear(*reversed(state["probe.weight"].shape))
    probe.load_state_dict({"weight": state["probe.weight"], "bias": state["probe.bias"]})
    return probe


def test_the_shipped_int8_graph_says_what_the_shipped_weights_say_in_float(encoder: Encoder) -> None:
    batch = np.stack([decode(photo.data, encoder.manifest.preprocess) for photo in photos("test", 100)])
    exact = Served(fold_batch_norm(load_backbone(str(WEIGHTS))), shipped_probe()).eval()
    with torch.no_grad():
        vectors, logits = (output.numpy() for output in exact(torch.from_numpy(batch)))
    served = encoder.embed(batch)
    assert cosines(served.vectors, vectors).mean() >= 0.998
    assert (served.logits.argmax(axis=1) == logits.argmax(axis=1)).mean() >= 0.9


def test_golden_vectors_pass_on_this_machine(encoder: Encoder) -> None:
    golden = encoder.manifest.golden
    vectors = encoder.embed(golden_batch(golden, encoder.manifest.preprocess.size)).vectors
    expected = np.array([pair.vector for pair in golden])
    assert len(golden) >= 4
    assert cosines(vectors, expected).min() >= encoder.manifest.golden_min_cosine
    others = np.roll(expected, 1, axis=0)
    assert cosines(vectors, others).max() < 0.99, "pictures that look alike to the encoder would prove little"


def test_evaluation_command_line_and_server_give_a_photo_one_vector_and_the_same_neighbours(
    encoder: Encoder, server: Server, tmp_path: Path
) -> None:
    chosen = photos("test", 12)
    files = [tmp_path / f"{row:05d}.{row % 10}.img" for row in range(len(chosen))]
    (tmp_path / "class_names.txt").write_text("\n".join(CLASS_NAMES))
    with zipfile.ZipFile(tmp_path / "stl10-test.zip", "w") as archive:
        for file, photo in zip(files, chosen, strict=True):
            file.write_bytes(photo.data)
            archive.write(file, file.name)

    evaluated, _ = embed_split(
        lambda batch: encoder.embed(batch).vectors, tmp_path, "test", encoder.manifest.preprocess.size
    )
    lines = akin(
        "embed", "--model-store", STORE, "--gallery", tmp_path / "gallery", "-k", "5", *files, folder=tmp_path
    )
    printed = [json.loads(line) for line in lines]
    answered = [post(server, photo.data, k=5) for photo in chosen]

    assert cosines(np.array([answer["embedding"] for answer in printed]), evaluated).min() >= 0.9999
    assert cosines(np.array([answer["embedding"] for answer in answered]), evaluated).min() >= 0.9999
    for local, remote in zip(printed, answered, strict=True):
        assert remote["model"] == local["model"] == encoder.manifest.model_id
        assert remote["label"] == local["label"]
        assert [near["id"] for near in remote["neighbors"]] == [near["id"] for near in local["neighbors"]]
        assert len(remote["neighbors"]) == 5
        scores = [[near["score"] for near in answer["neighbors"]] for answer in (local, remote)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)


def test_each_seeded_vector_finds_itself_under_its_own_label(tmp_path: Path) -> None:
    manifest = Manifest.read(STORE)
    assert seed_gallery(STORE, manifest, tmp_path) == 5000
    with np.load(STORE / "gallery.npz", allow_pickle=False) as seed:
        rows = slice(None, None, 100)
        ids, labels, vectors = (seed[name][rows] for name in ("ids", "labels", "vectors"))
    with Gallery.open(tmp_path, manifest.model_digest, manifest.dimension) as gallery:
        found = [neighbors[0] for neighbors in gallery.search(vectors.astype(np.float32), 1)]
    assert [(near.id, near.label) for near in found] == list(zip(ids.tolist(), labels.tolist(), strict=True))
    assert min(near.score for near in found) >= 0.999


def test_the_shipped_probe_knows_the_classes_of_the_shipped_vectors() -> None:
    state = load_file(WEIGHTS)
    with np.load(STORE / "gallery.npz", allow_pickle=False) as seed:
        vectors, labels = seed["vectors"].astype(np.float32), seed["labels"]
    logits = vectors @ state["probe.weight"].numpy().T + state["probe.bias"].numpy()
    assert (np.array(CLASS_NAMES)[logits.argmax(axis=1)] == labels).mean() >= 0.75


def test_photos_of_the_gallery_find_themselves(server: Server, tmp_path: Path) -> None:
    """Those of the seed where STL-10 is there; and in any case those that are added while the server runs."""
    folder = tmp_path / "added"
    folder.mkdir()
    known = {f"scene-{seed}.png": encode(scene(96, 96, 500 + seed), "PNG") for seed in range(3)}
    for name, data in known.items():
        (folder / name).write_bytes(data)
    gallery = server.log_file.parent / "var" / "gallery"
    akin("index", "add", "--model-store", STORE, "--gallery", gallery, folder, folder=tmp_path)
    train = [photo for photo in photos("train", 20) if photo.label is not None]
    known |= {f"stl10-train-{row:05d}": photo.data for row, photo in enumerate(train)}

    for name, data in known.items():
        (nearest,) = post(server, data, k=1)["neighbors"]  # type: ignore[misc]
        assert (nearest["id"], nearest["score"]) == (name, pytest.approx(1, abs=1e-3))
    akin("index", "remove", "--model-store", STORE, "--gallery", gallery, *os.listdir(folder), folder=tmp_path)
    assert post(server, known["scene-0.png"], k=1)["neighbors"][0]["id"] != "scene-0.png"  # type: ignore[index]


def test_two_of_three_photos_it_never_saw_get_their_own_label(server: Server) -> None:
    """And their neighbours mostly share it. A generated scene has no class; its label is the largest logit's."""
    chosen = photos("test", 100)
    answers = [post(server, photo.data, k=5) for photo in chosen]
    assert all(answer["label"] == CLASS_NAMES[int(np.argmax(answer["logits"]))] for answer in answers)  # type: ignore[arg-type]
    labelled = [(photo.label, answer) for photo, answer in zip(chosen, answers, strict=True) if photo.label]
    near = [(label, near["label"]) for label, answer in labelled for near in answer["neighbors"]]  # type: ignore[attr-defined]
    assert np.mean([label == answer["label"] for label, answer in labelled] or [1]) >= 0.65
    assert np.mean([label == neighbor for label, neighbor in near] or [1]) >= 0.55


def test_scaled_and_full_decoding_of_a_large_detailed_picture_give_nearly_the_same_vector(encoder: Encoder) -> None:
    spec = encoder.manifest.preprocess
    for width, height, seed in ((640, 480, 0), (1000, 1500, 1), (2400, 1800, 2), (4000, 3000, 3)):
        jpeg = encode(scene(width, height, seed), quality=92)
        fast = decode(jpeg, spec)
        full = resize(np.asarray(Image.open(BytesIO(jpeg)).convert("RGB")), spec)
        assert not np.array_equal(fast, full), "scaling in the DCT domain was not taken"
        vectors = encoder.embed(np.stack([fast, full])).vectors
        assert vectors[0] @ vectors[1] >= 0.99, f"{width} × {height}"


def test_the_serving_process_maps_no_library_of_torch(server: Server) -> None:
    post(server, encode(scene(96, 96)), k=1)
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped and "/torch/" not in mapped


def test_serving_writes_nothing_into_the_model_store(server: Server) -> None:
    before = {path.name: (digest_of(path), path.stat().st_mtime_ns) for path in STORE.iterdir()}
    post(server, encode(scene(96, 96)), k=5)
    assert {path.name: (digest_of(path), path.stat().st_mtime_ns) for path in STORE.iterdir()} == before
    assert (server.log_file.parent / "var" / "gallery").is_dir()


@pytest.mark.parametrize("name", ["encoder.int8.onnx", "gallery.npz"])
def test_a_flipped_byte_is_refused_by_name_at_start(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "model_store"
    shutil.copytree(STORE, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    with (copy / name).open("r+b") as file:
        file.seek(100_000)
        byte = file.read(1)
        file.seek(100_000)
        file.write(bytes([byte[0] ^ 1]))
    process, log_file = start(copy, tmp_path / "served")
    try:
        assert process.wait(timeout=60) == 1
    finally:
        process.kill()
    log = log_file.read_text()
    assert name in log and "sha256" in log and "akin export" in log
    assert "Traceback" not in log
