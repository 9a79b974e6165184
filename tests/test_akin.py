"""The command line, run as users run it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

import akin
from tests.pictures import encode, scene
from tests.tiny_encoder import write_tiny_encoder

ROOT = Path(__file__).parents[1]


class Done(NamedTuple):
    exit_code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Calls akin in a folder with a model and two pictures."""
    write_tiny_encoder(tmp_path / "model_store")
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        (tmp_path / "photos" / name).write_bytes(encode(scene(64, 48, seed)))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        try:
            exit_code = akin.main(arguments)
        except SystemExit as stop:  # argparse's way to refuse
            exit_code = int(str(stop.code))
        return Done(exit_code, *capsys.readouterr())

    return call


def test_help_lists_every_verb(run: Run) -> None:
    done = run("--help")
    assert done.exit_code == 0
    listed = [line.split()[0] for line in done.out.splitlines() if line.startswith("  ")]
    assert listed == list(akin.VERBS)


def test_no_arguments_at_all_is_a_call_for_help(run: Run) -> None:
    done = subprocess.run([sys.executable, ROOT / "akin.py"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--help").out


def test_an_unknown_verb_is_answered_with_those_there_are(run: Run) -> None:
    done = run("pretrian")
    assert done.exit_code == 2
    assert done.err == f"akin: no verb 'pretrian'; there are {', '.join(akin.VERBS)}\n"


def test_a_verb_says_which_environment_has_what_it_misses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(akin.VERBS, "pretrain", akin.Verb(akin.main_of("torch"), "", akin.FULL))
    assert akin.main(["pretrain"]) == 1
    assert capsys.readouterr().err == (
        f"akin: akin pretrain needs torch, which {sys.prefix} does not have: "
        "run make setup-full, then .venv-full/bin/akin pretrain\n"
    )


def test_a_missing_module_of_our_own_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "handlers.native", None)
    with pytest.raises(ModuleNotFoundError):
        akin.main(["serve"])


def test_a_verb_gets_the_arguments_behind_it_and_gives_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run(argv: list[str]) -> int:
        seen.extend(argv)
        return 7

    monkeypatch.setitem(akin.VERBS, "serve", akin.Verb(run, ""))
    assert akin.main(["serve", "--port", "0", "--help"]) == 7
    assert seen == ["--port", "0", "--help"]


def test_an_error_that_is_not_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(akin.VERBS, "serve", akin.Verb(lambda argv: 1 // 0, ""))
    with pytest.raises(ZeroDivisionError):
        akin.main(["serve"])


def test_info_says_what_the_model_is(run: Run) -> None:
    lines = run("info").out.splitlines()
    assert lines[1].startswith("model: tiny@")
    assert "dimension: 16" in lines
    assert 'class_names: ["cat", "dog"]' in lines
    assert "  file: encoder.int8.onnx" in lines
    assert "golden: 3 vectors" in lines


def test_a_missing_model_is_one_line_with_the_way_out(run: Run) -> None:
    done = run("info", "--model-store", "nowhere")
    assert done.exit_code == 1
    assert done.err.startswith("akin: no model at nowhere/encoder.json")
    assert "akin export" in done.err
    assert done.err.count("\n") == 1


def test_embed_answers_as_the_server_does_with_a_status_for_what_it_refuses(run: Run, tmp_path: Path) -> None:
    (tmp_path / "noise.jpg").write_bytes(b"no picture")
    done = run("embed", "photos/a.jpg", "noise.jpg", "nowhere.jpg", "photos/b.jpg")
    first, noise, missing, last = map(json.loads, done.out.splitlines())
    assert done.exit_code == 1
    assert first["file"] == "photos/a.jpg"
    assert sum(value**2 for value in first["embedding"]) == pytest.approx(1, abs=1e-5)
    assert first["label"] in ("cat", "dog")
    assert noise["status"] == 415
    assert missing == {"file": "nowhere.jpg", "error": "cannot be read: No such file or directory"}
    assert last["embedding"] != first["embedding"]


def test_embed_finds_the_neighbours_that_index_added(run: Run) -> None:
    assert run("index", "add", "photos").exit_code == 0
    done = run("embed", "-k", "1", "--fields", "neighbors", "photos/b.jpg")
    (neighbor,) = json.loads(done.out)["neighbors"]
    assert neighbor["id"] == "b.jpg"
    assert neighbor["score"] == pytest.approx(1, abs=1e-5)


def test_embed_refuses_a_nonsensical_k_in_one_line(run: Run) -> None:
    done = run("embed", "-k", "1.5", "photos/a.jpg")
    assert done.exit_code == 1
    assert done.err.startswith("akin: k is '1.5'")
    assert done.err.count("\n") == 1


def test_index_adds_once_searches_counts_and_removes(run: Run) -> None:
    assert run("index", "add", "photos").out.startswith("2 images added")
    assert "2 were already there" in run("index", "add", "photos").out
    found = run("index", "search", "photos/a.jpg", "-k", "9").out
    assert [json.loads(line)["id"] for line in found.splitlines()] == ["a.jpg", "b.jpg"]
    assert run("index", "remove", "a.jpg", "nobody.jpg").out == "1 of 2 removed, 1 left\n"
    assert "rows: 1\n" in run("index", "stats").out


def test_index_takes_a_gallery_by_name_and_makes_none_by_mistake(run: Run, tmp_path: Path) -> None:
    done = run("index", "stats", "--gallery", "mistyped")
    assert done.exit_code == 1
    assert "no gallery at mistyped" in done.err
    assert not (tmp_path / "mistyped").exists()
    assert run("index", "add", "--gallery", "mine", "photos").exit_code == 0
    assert "rows: 2\n" in run("index", "stats", "--gallery", "mine").out
    assert "rows: 0\n" in run("index", "stats").out


@pytest.mark.parametrize("k", ["0", "-1", "x"])
def test_index_search_refuses_a_nonsensical_k(run: Run, k: str) -> None:
    done = run("index", "search", "photos/a.jpg", "-k", k)
    assert done.exit_code == 2
    assert "-k" in done.err
    assert "Traceback" not in done.err


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    write_tiny_encoder(tmp_path / "model_store")
    (tmp_path / "a.jpg").write_bytes(encode(scene(64, 48)))
    command = [sys.executable, str(ROOT / "akin.py"), "embed", *["a.jpg"] * 20]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_ctrl_c_ends_a_verb_with_130_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(argv: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the signal raises KeyboardInterrupt before this line ends")

    monkeypatch.setitem(akin.VERBS, "serve", akin.Verb(interrupted, ""))
    assert akin.main(["serve"]) == 130
