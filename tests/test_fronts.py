"""What the benchmark starts: the variants that an environment has, with options that the server knows."""

import sys
from pathlib import Path

import pytest

from handlers.native import Settings as ServerSettings
from load_tests import fronts, machine
from load_tests.fronts import Model, variants


def test_variants_are_the_default_and_what_an_environment_has(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(Path("store"), "encoder", Path(sys.prefix))
    versions = {"onnxruntime": "1"}
    monkeypatch.setattr(machine, "versions", lambda python: versions)
    default = {"idle cores used, the default": (model, ())}
    absent = "on OpenVINO is left out: openvino is not installed; run make setup-openvino"
    assert variants(model) == (default, [absent])
    versions["openvino"] = "1"
    openvino = {"on OpenVINO": (model, ("--require-provider", "OpenVINO", "--idle-threads", "1"))}
    assert variants(model) == (default | openvino, [])


def test_openvino_is_run_from_this_environment_where_the_serving_one_has_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serving = tmp_path / "bin/python"
    serving.parent.mkdir()
    serving.touch()
    monkeypatch.setattr(machine, "versions", lambda python: {} if python == serving else {"openvino": "1"})
    found, _ = variants(Model(Path("store"), "encoder", tmp_path))
    assert found["on OpenVINO"].model.environment == Path(sys.prefix)


def test_every_option_that_fronts_give_is_one_of_the_servers() -> None:
    settings = ServerSettings.from_arguments([*fronts.ONE_THREAD, "--require-provider", fronts.OPENVINO_PROVIDER])
    assert (settings.idle_threads, settings.require_provider) == (1, "OpenVINO")
