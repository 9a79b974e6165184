"""The story of weights, from a checkpoint and from a manifest."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.tiny_stl10 import write_checkpoint
from training.provenance import NO_RECIPE, story, story_of
from training.recipes import PRESETS, Pretrain

ROOT = Path(__file__).parents[1]


def checkpoint(config: Pretrain, **more: object) -> dict[str, object]:
    made = {"machine": "two abaci", "torch": "2", "commit": "abc"}
    progress = {"step": 3, "seconds": 4.5, "images": 96}
    return {"knobs": json.dumps(asdict(config)), "progress": progress, "made": made} | more


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (Pretrain(), "SimCLR, decoupled (DCL)"),
        (Pretrain(decoupled=False), "SimCLR (NT-Xent)"),
        (Pretrain(method="moco"), "MoCo v2"),
        (Pretrain(method="vicreg"), "VICReg"),
    ],
)
def test_a_method_is_called_as_its_paper_calls_it(config: Pretrain, name: str) -> None:
    assert story(checkpoint(config))["objective"] == name


def test_the_story_tells_data_effort_machine_and_the_knobs_that_made_the_weights() -> None:
    told = story(checkpoint(Pretrain(data=("a.zip", "b"), method="byol")))
    assert told["data"] == "a.zip, b"
    assert (told["images"], told["machine"], told["initialisation"]) == (96, "two abaci", "random")
    assert told["recipe"]["byol"] == asdict(Pretrain().byol)
    assert not told["recipe"].keys() & {"moco", "vicreg", *NO_RECIPE}, "nor those of other methods"
    assert told["recipe"].keys() <= asdict(Pretrain()).keys()


def test_an_encoder_that_began_with_another_tells_that_ones_story_too() -> None:
    told = story(checkpoint(Pretrain(init="x.pt"), begun_with={"objective": "BYOL", "images": 5}))
    assert told["initialisation"] == "an earlier encoder"
    assert told["begun_with"] == {"objective": "BYOL", "images": 5}


def test_a_checkpoint_on_disk_tells_its_own_story(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    assert story_of(path) == story(torch.load(path, weights_only=True))
    assert story_of(path)["recipe"]["batch"] == PRESETS["cpu"].batch


def test_exported_weights_tell_what_their_manifest_says(tmp_path: Path) -> None:
    told = story_of(ROOT / "model_store" / "encoder.safetensors")
    assert told["begun_with"]["images"] > 1_000_000
    (tmp_path / "lonely.safetensors").write_bytes(b"no manifest beside it")
    assert story_of(tmp_path / "lonely.safetensors") == {"weights": "lonely.safetensors"}
