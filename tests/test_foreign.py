"""Encoders of torchvision, timm and Hugging Face as their libraries compute them, and checkpoints in any dress."""

import argparse
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.foreign import Weights, load, require_vectors, write_foreign_weights
from export.foreign_error import ForeignError
from export.foreign_weights import parse_keys, read_state, renamed
from export.graph import ServedForeign
from export.libraries import Pixels
from tests.foreign_networks import CROP, PIXELS, SIDE, WIDTH, dinov2, write_dinov2

RANDOM = Weights(random=True)
X32 = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32))
MOCO_KEYS = "module.encoder_q.=,module.encoder_k.=-,module.queue=-"


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dinov2(tmp_path_factory.mktemp("hf") / "dinov2-small")


def same_features(encoder: nn.Module, other: Any, x: Tensor = X32) -> None:
    with torch.no_grad():
        assert torch.allclose(encoder(x), other(x), atol=1e-5)


def resnet18(seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.resnet18().eval()


def body_of(network: nn.Module) -> nn.Module:
    network.fc = nn.Identity()
    return network


# -- libraries


def test_a_resnet_of_torchvision_gives_what_its_classifier_would_see() -> None:
    foreign = load("torchvision:resnet18", RANDOM, size=32)
    same_features(foreign.encoder, body_of(resnet18(seed=0)))
    assert foreign.encoder(X32).shape == (2, 512)
    assert foreign.weights == "random, seed 0"


def test_of_a_classifier_of_several_layers_the_last_alone_is_left_out() -> None:
    foreign = load("torchvision:mobilenet_v3_small", RANDOM, size=32)
    assert foreign.encoder(X32).shape == (2, 1024)
    assert "classifier.0.weight" in foreign.network.state_dict()


def test_a_vit_of_torchvision_is_built_for_the_size() -> None:
    assert load("torchvision:vit_b_32", RANDOM, size=32).encoder(X32).shape == (2, 768)


def test_a_vit_of_timm_gives_what_its_head_would_see() -> None:
    foreign = load("timm:vit_tiny_patch16_224", RANDOM, size=32)
    whole = timm.create_model("vit_tiny_patch16_224", img_size=32).eval()
    whole.load_state_dict(foreign.network.state_dict(), strict=False)
    same_features(foreign.encoder, lambda x: whole.forward_head(whole.forward_features(x), pre_logits=True))
    assert foreign.encoder(X32).shape == (2, 192)


def test_a_convolutional_network_of_timm_takes_any_size() -> None:
    assert load("timm:test_resnet", RANDOM, size=40).encoder(torch.zeros(1, 3, 40, 40)).ndim == 2


def test_a_dinov2_folder_gives_its_class_token_behind_the_last_norm(dinov2_folder: Path) -> None:
    foreign = load(f"hf:{dinov2_folder}", Weights())
    same_features(foreign.encoder, lambda x: dinov2()(pixel_values=x).pooler_output)
    assert foreign.source == "hf:dinov2-small" and foreign.weights == "those of the folder"


def test_random_weights_of_a_folder_are_not_those_in_it(dinov2_folder: Path) -> None:
    published, random = (load(f"hf:{dinov2_folder}", weights).network for weights in (Weights(), RANDOM))
    name = "encoder.layer.0.mlp.fc1.weight"
    assert not torch.equal(published.state_dict()[name], random.state_dict()[name])


def test_random_weights_are_the_same_each_time() -> None:
    one, other = (load("timm:test_resnet", RANDOM, size=32).network.state_dict() for _ in range(2))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("source", "pixels"),
    [
        ("torchvision:resnet18", Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224, "bilinear")),
        ("timm:vit_tiny_patch16_224", Pixels((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 248, 224, "bicubic")),
    ],
)
def test_pixels_are_made_as_the_library_says(source: str, pixels: Pixels) -> None:
    foreign = load(source, RANDOM)
    assert foreign.pixels == foreign.own_pixels == pixels


def test_pixels_of_a_folder_are_made_as_its_preprocessor_says(dinov2_folder: Path) -> None:
    pixels = load(f"hf:{dinov2_folder}", Weights()).pixels
    assert pixels == Pixels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), SIDE, CROP, "bicubic")


def test_at_a_size_of_ones_own_nothing_is_cropped_off() -> None:
    foreign = load("torchvision:resnet18", RANDOM, size=64)
    assert (foreign.pixels.resize, foreign.pixels.crop) == (64, 64)
    assert (foreign.own_pixels.resize, foreign.own_pixels.crop) == (256, 224)


@pytest.mark.parametrize("source", ["resnet18", "torchvision", "torchvision:", "keras:resnet", "", ":resnet18"])
def test_a_source_that_names_no_network_is_refused_with_those_that_do(source: str) -> None:
    with pytest.raises(ForeignError, match=r"names no network; give torchvision:NAME, timm:NAME or hf:FOLDER"):
        load(source, RANDOM)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("torchvision:resnet19", "torchvision has no model 'resnet19'; close to it are resnet1"),
        ("torchvision:fcn_resnet50", "torchvision has no model 'fcn_resnet50'; close to it are"),
        ("timm:vit_tny_patch16_224", "timm has no model 'vit_tny_patch16_224'; close to it are vit_tiny_patch16_"),
        ("torchvision:squeezenet1_0", "does not end in a linear layer; take timm's"),
    ],
)
def test_a_model_that_cannot_be_taken_is_refused_with_others(source: str, reason: str) -> None:
    with pytest.raises(ForeignError, match=reason):
        load(source, RANDOM, size=32)


def test_a_size_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(ForeignError, match=r"torchvision:vit_b_32 cannot be built \(.+\); change --size"):
        load("torchvision:vit_b_32", RANDOM, size=40)
    with pytest.raises(ForeignError, match=r"alexnet does not take images of 8 pixels \(.+\); give another --size"):
        load("torchvision:alexnet", RANDOM, size=8)


def test_what_gives_no_vector_an_image_is_refused_with_what_it_gives() -> None:
    foreign = load("timm:test_resnet", RANDOM, size=32)
    with pytest.raises(ForeignError, match=r"timm:test_resnet gives \(2, 3, 32, 32\) for two images, not a vector"):
        require_vectors(replace(foreign, encoder=nn.Identity()))


def test_weights_that_cannot_be_downloaded_leave_two_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> nn.Module:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(ForeignError, match=r"published for it \(.*not known.*\); .*--weights FILE, or --random"):
        load("torchvision:resnet18", Weights())


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": None},
        {"rescale_factor": 1.0},
        {"do_rescale": False},
        {"size": {"longest_edge": 36}},
    ],
)
def test_a_folder_whose_preprocessor_says_too_little_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS | change))
    with pytest.raises(ForeignError, match=r"preprocessor_config.json does not say size, image_mean and image_std"):
        load(f"hf:{tmp_path}", RANDOM)


def test_a_folder_without_weights_is_refused(dinov2_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((dinov2_folder / name).read_bytes())
    with pytest.raises(ForeignError, match=r"cannot be built with the weights that are published for it"):
        load(f"hf:{tmp_path}", Weights())


def test_a_folder_that_lacks_weights_is_refused_and_its_head_is_left_out(dinov2_folder: Path, tmp_path: Path) -> None:
    state = load_file(dinov2_folder / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((dinov2_folder / name).read_bytes())
    more = state | {"classifier.weight": torch.zeros(10, 2 * WIDTH)}
    save_file(more, tmp_path / "model.safetensors", {"format": "pt"})
    assert load(f"hf:{tmp_path}", Weights()).dropped == ("classifier.weight",)
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ForeignError, match=r"model.safetensors of .* lacks layernorm.weight; fetch it again"):
        load(f"hf:{tmp_path}", Weights())


# -- checkpoints


def moco_checkpoint(path: Path) -> Path:
    """As MoCo v2 leaves it: two encoders with projection heads, a queue, the optimizer's state."""
    state = {}
    for encoder, seed in (("encoder_q", 7), ("encoder_k", 8)):
        body = {name: value for name, value in resnet18(seed).state_dict().items() if not name.startswith("fc.")}
        head = {"fc.0.weight": torch.zeros(512, 512), "fc.2.weight": torch.zeros(128, 512)}
        state |= {f"module.{encoder}.{name}": value for name, value in (body | head).items()}
    state |= {"module.queue": torch.zeros(128, 64), "module.queue_ptr": torch.zeros(1)}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.03}]}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimizer}, path)
    return path


def test_a_checkpoint_of_moco_gives_its_query_encoder(tmp_path: Path) -> None:
    path = moco_checkpoint(tmp_path / "moco.pth.tar")
    foreign = load("torchvision:resnet18", Weights(str(path), MOCO_KEYS), size=32)
    same_features(foreign.encoder, body_of(resnet18(seed=7)))
    assert {"fc.0.weight", "fc.2.weight", "module.queue", "module.encoder_k.conv1.weight"} <= {*foreign.dropped}
    assert foreign.weights.startswith("moco.pth.tar, sha256 ") and str(tmp_path) not in foreign.weights


def test_a_key_map_may_be_a_json_file(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"module.encoder_q.": "", "module.": None}))
    foreign = load("torchvision:resnet18", Weights(str(moco_checkpoint(tmp_path / "moco.pt")), str(keys)), size=32)
    same_features(foreign.encoder, body_of(resnet18(seed=7)))


def test_without_a_key_map_the_error_names_the_one_that_fits(tmp_path: Path) -> None:
    path = str(moco_checkpoint(tmp_path / "moco.pt"))
    with pytest.raises(ForeignError) as refusal:
        load("torchvision:resnet18", Weights(path), size=32)
    message = str(refusal.value)
    assert "missing conv1.weight, bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var and 95 more" in message
    assert "not used module.encoder_q.conv1.weight" in message
    assert message.endswith("Try --keys module.encoder_q.=")


def test_what_is_not_used_is_refused_until_it_is_dropped(tmp_path: Path) -> None:
    path = str(moco_checkpoint(tmp_path / "moco.pt"))
    with pytest.raises(ForeignError, match=r"not used module.encoder_k.conv1.weight, .* and \d+ more. Drop .*=-"):
        load("torchvision:resnet18", Weights(path, "module.encoder_q.="), size=32)


def test_a_weight_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    state = resnet18().state_dict()
    del state["layer2.0.conv1.weight"]
    torch.save(state, tmp_path / "some.pt")
    with pytest.raises(ForeignError, match=r"some.pt does not fit: missing layer2.0.conv1.weight. Rename with"):
        load("torchvision:resnet18", Weights(str(tmp_path / "some.pt")), size=32)


def test_weights_of_another_shape_are_refused_with_both(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    with pytest.raises(ForeignError, match=r"pos_embed has the shape \(1, 17, 192\), .* wants \(1, 5, 192\);"):
        load("timm:vit_tiny_patch16_224", Weights(str(tmp_path / "vit.safetensors")), size=32)


def test_a_classifier_of_the_same_network_is_left_out_and_told(tmp_path: Path) -> None:
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pt")
    foreign = load("torchvision:resnet18", Weights(str(tmp_path / "resnet18.pt")), size=32)
    assert foreign.dropped == ("fc.weight", "fc.bias")
    same_features(foreign.encoder, body_of(resnet18()))


def test_of_a_teacher_and_a_student_the_key_map_takes_one(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    student, teacher = ({"backbone.weight": torch.full((2,), value)} for value in (1, 2))
    arguments = argparse.Namespace(arch="vit_tiny")
    torch.save({"student": student, "teacher": teacher, "epoch": 3, "args": arguments}, path)
    kept, dropped = renamed(read_state(path), parse_keys("teacher.backbone.=,student.=-"))
    assert kept.keys() == {"weight"} and kept["weight"].tolist() == [2, 2]
    assert dropped == ["student.backbone.weight"]


def test_the_first_prefix_that_fits_counts() -> None:
    state = {"a.b.x": torch.zeros(1), "a.c.x": torch.ones(1)}
    kept, dropped = renamed(state, parse_keys("a.b.=,a.=-"))
    assert kept == {"x": state["a.b.x"]} and dropped == ["a.c.x"]
    assert renamed(state, parse_keys("a.=-,a.b.="))[1] == ["a.b.x", "a.c.x"]


def test_two_weights_of_one_name_are_refused() -> None:
    with pytest.raises(ForeignError, match=r"--keys gives two weights the name x; drop one of them with"):
        renamed({"a.x": torch.zeros(1), "b.x": torch.zeros(1)}, parse_keys("a.=,b.="))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ("a.=b.,c", r"--keys has 'c', which is no old=new; - as the new one drops"),
        ("nowhere.json", r"--keys nowhere.json is neither old=new nor a JSON file that can be read"),
    ],
)
def test_a_key_map_that_is_none_is_refused(keys: str, reason: str) -> None:
    with pytest.raises(ForeignError, match=reason):
        parse_keys(keys)


@pytest.mark.parametrize("content", [b'["a"]', b'{"a": 1}', b"{"])
def test_a_key_map_in_json_of_other_things_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys.json").write_bytes(content)
    with pytest.raises(ForeignError, match=r"is neither old=new nor a JSON file|is no JSON object of prefixes"):
        parse_keys(str(tmp_path / "keys.json"))


class Harm:
    """Unpickled, it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.zeros(1)}, "hook": Harm(tmp_path / "mark")}, tmp_path / "evil.pt")
    with pytest.raises(ForeignError, match=r"cannot be read as weights alone .*; save its state_dict"):
        read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights", pickle.dumps([1, 2], protocol=2)])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ForeignError, match=r"cannot be read as weights alone|holds no state_dict"):
        read_state(tmp_path / name)


def test_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignError, match=r"there are no weights at .*gone.pt; name a .safetensors file or a torch"):
        read_state(tmp_path / "gone.pt")


# -- what is served


def test_mean_deviation_crop_and_norm_are_in_the_served_module() -> None:
    class ChannelMeans(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2:] == (2, 2)
            return x.mean(dim=(2, 3))

    served = ServedForeign(ChannelMeans(), (0.5, 0.25, 0), (0.5, 0.25, 1), side=4, crop=2)
    image = torch.full((1, 4, 4, 3), 255, dtype=torch.uint8)
    expected = np.array([1, 3, 1]) / np.sqrt(11)
    assert served(image)[0].numpy() == pytest.approx(expected, abs=1e-6)
    image[:, 0], image[:, :, 3] = 0, 7
    assert served(image)[0].numpy() == pytest.approx(expected, abs=1e-6), "the border is cropped off"
    image[:, 1, 1] = 0
    assert served(image)[0].numpy() != pytest.approx(expected, abs=1e-3)


def test_the_same_network_gives_the_same_file_and_other_pixels_another(tmp_path: Path) -> None:
    sizes = {"one": 32, "again": 32, "larger": 40}
    for name, size in sizes.items():
        write_foreign_weights(tmp_path / name, load("timm:test_resnet", RANDOM, size=size))
    one, again, larger = ((tmp_path / name).read_bytes() for name in sizes)
    assert one == again != larger
    assert load_file(tmp_path / "one").keys() == load("timm:test_resnet", RANDOM, size=32).network.state_dict().keys()
