"""The archive for TorchServe: whole, small, the same every time, and enough to run from."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from export.archive import Archive, ArchiveError, main, write_archive
from tests.server import ROOT


@pytest.fixture
def archive(seeded_store: Path, tmp_path: Path) -> Path:
    return write_archive(Archive(model_store=str(seeded_store), out=str(tmp_path / "var/encoder.mar")))


def test_it_holds_the_rooms_of_the_handler_and_the_model_and_nothing_else(archive: Path) -> None:
    names = zipfile.ZipFile(archive).namelist()
    assert {"handlers/torchserve_handler.py", "index/gallery.py", "encoder/session.py", "images/decode.py"} < {*names}
    assert {name.partition("/")[0] for name in names} == {
        "MAR-INF", "model-config.yaml", "model_store", "images", "encoder", "index", "handlers",
    }  # fmt: skip
    assert sorted(name for name in names if name.startswith("model_store/")) == [
        "model_store/encoder.int8.onnx",
        "model_store/encoder.json",
        "model_store/gallery.npz",
    ]


def test_every_file_is_the_one_it_was_made_from(archive: Path, seeded_store: Path) -> None:
    with zipfile.ZipFile(archive) as members:
        assert members.testzip() is None
        for name in members.namelist():
            if name.startswith("model_store/"):
                assert members.read(name) == (seeded_store / Path(name).name).read_bytes()
            elif name.endswith(".py"):
                assert members.read(name) == (ROOT / name).read_bytes()


def test_the_same_input_gives_the_same_bytes(archive: Path, seeded_store: Path, tmp_path: Path) -> None:
    again = write_archive(Archive(model_store=str(seeded_store), out=str(tmp_path / "again.mar")))
    assert again.read_bytes() == archive.read_bytes()


def test_the_handler_imports_from_the_archive_alone(archive: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(archive).extractall(unpacked)
    handler = json.loads((unpacked / "MAR-INF/MANIFEST.json").read_text())["model"]["handler"]
    check = (
        f"import {handler}, sys; ours = {{'images', 'encoder', 'index', 'handlers'}}\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.partition('.')[0] in ours: print(module.__file__)"
    )
    environment = {"PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    files = done.stdout.splitlines()
    assert len(files) > 10
    assert all(file.startswith(str(unpacked)) for file in files)


def test_a_model_of_another_name_is_served_as_encoder(seeded_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(seeded_store, store)
    (store / "encoder.json").rename(store / "mine.json")
    made = write_archive(Archive(model_store=str(store), name="mine", out=str(tmp_path / "mine.mar")))
    assert zipfile.ZipFile(made).read("model_store/encoder.json") == (store / "mine.json").read_bytes()


def test_a_missing_artifact_is_named_and_the_archive_that_was_there_stays(
    archive: Path, seeded_store: Path, tmp_path: Path
) -> None:
    before = archive.read_bytes()
    store = tmp_path / "store"
    shutil.copytree(seeded_store, store)
    (store / "encoder.int8.onnx").unlink()
    with pytest.raises(ArchiveError, match=r"encoder\.int8\.onnx cannot be read .*akin export"):
        write_archive(Archive(model_store=str(store), out=str(archive)))
    assert archive.read_bytes() == before
    assert [file.name for file in archive.parent.iterdir()] == ["encoder.mar"]


def test_the_command_says_what_it_wrote(
    seeded_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "encoder.mar"
    assert main(["--model-store", str(seeded_store), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size / 1e6:.1f} MB\n"
