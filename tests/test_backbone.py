"""The network that stays and the heads that go."""

import pytest
import torch
from torch import nn

from training.backbone import MEAN, STD, Backbone, mlp


@pytest.mark.parametrize("stem", ["standard", "small"])
@pytest.mark.parametrize("size", [32, 48])
def test_an_image_gives_512_features_at_any_size(stem: str, size: int) -> None:
    assert Backbone(stem).eval()(torch.rand(2, 3, size, size)).shape == (2, 512)


def test_it_is_resnet18_without_its_classifier() -> None:
    parameters = sum(p.numel() for p in Backbone().parameters())
    assert parameters == 11_689_512 - (512 * 1000 + 1000)  # torchvision's count, less the last layer's


def test_pixels_are_normalised_inside() -> None:
    torch.manual_seed(0)
    backbone = Backbone().eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    noise = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(backbone(noise * std + mean), backbone.net(noise), atol=1e-4, rtol=1e-4)


def test_the_normalisation_is_no_weight() -> None:
    assert not [name for name in Backbone().state_dict() if "mean" in name.split(".")[0] or name == "std"]


def test_the_small_stem_keeps_four_times_the_pixels() -> None:
    x = torch.rand(1, 3, 32, 32)
    shapes = [Backbone(stem).net.conv1(x).shape[-1] for stem in ("standard", "small")]
    assert shapes == [16, 32]


def test_an_unknown_stem_is_refused() -> None:
    with pytest.raises(ValueError, match="'tiny'; use 'standard' or 'small'"):
        Backbone("tiny")


def test_group_norm_takes_the_place_of_every_batch_norm() -> None:
    backbone = Backbone(norm="group")
    kinds = [type(layer) for layer in backbone.modules() if "Norm" in type(layer).__name__]
    assert (kinds.count(nn.GroupNorm), len(kinds)) == (20, 20)
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in Backbone().parameters())


def test_with_group_norm_an_image_is_seen_alike_in_any_company() -> None:
    torch.manual_seed(0)
    backbone = Backbone(norm="group")  # in training mode
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(backbone(x)[:1], backbone(x[:1]), atol=1e-5, rtol=1e-4)


def test_a_head_has_batch_norm_and_relu_between_its_layers_and_no_bias_before_a_norm() -> None:
    head = mlp((512, 64, 32, 16))
    assert kinds_of(head) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert sizes_of(head) == [(512, 64, False), (64, 32, False), (32, 16, True)]
    assert head(torch.rand(4, 512)).shape == (4, 16)


def test_a_head_may_do_without_norms() -> None:
    head = mlp((512, 2048, 128), norm=False)
    assert kinds_of(head) == ["Linear", "ReLU", "Linear"]
    assert sizes_of(head) == [(512, 2048, True), (2048, 128, True)]


@pytest.mark.parametrize("norm", [True, False])
def test_the_norm_behind_the_last_layer_neither_scales_nor_shifts(norm: bool) -> None:
    torch.manual_seed(0)
    head = mlp((16, 32, 8), norm=norm, norm_last=True)
    assert kinds_of(head)[-2:] == ["Linear", "BatchNorm1d"]
    assert sizes_of(head)[-1] == (32, 8, False)
    assert not list(head[-1].parameters())
    variance, mean = torch.var_mean(head(torch.rand(50, 16)), dim=0, correction=0)
    torch.testing.assert_close((mean, variance), (torch.zeros(8), torch.ones(8)), atol=2e-2, rtol=0)


def kinds_of(head: nn.Sequential) -> list[str]:
    return [type(layer).__name__ for layer in head]


def sizes_of(head: nn.Sequential) -> list[tuple[int, int, bool]]:
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    return [(layer.in_features, layer.out_features, layer.bias is not None) for layer in linear]


def test_the_seed_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(Backbone("small").net.conv1.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
