"""The network that stays and the head that goes."""

import pytest
import torch
from torch import nn

from training.backbone import MEAN, STD, Backbone, projection_head


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


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_head_has_two_layers_and_no_bias_before_batch_norm(batch_norm: bool) -> None:
    head = projection_head(2048, 512, batch_norm)
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 2048), (2048, 512)]
    assert [layer.bias is None for layer in linear] == [batch_norm, batch_norm]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in head) == 2 * batch_norm
    assert head(torch.rand(4, 512)).shape == (4, 512)


def test_the_seed_decides_the_weights() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(Backbone("small").net.conv1.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
