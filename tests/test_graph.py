"""The served module computes what was trained: no more, no less, from raw pixels."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as tv

from export.graph import Served, fold_batch_norm, linear_of
from tests.tiny_stl10 import lively_backbone
from training.backbone import FEATURES, MEAN, STD, mlp
from training.objectives.simclr import SimCLR
from training.objectives.temperature import Temperature
from training.probe import Probe

SIZE = 32
BATCH = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE, 3), dtype=np.uint8))
STEMS = ("standard", "small")


def served(stem: str = "standard") -> Served:
    torch.manual_seed(1)
    return Served(fold_batch_norm(lively_backbone(stem)), nn.Linear(512, 10)).eval()


@pytest.mark.parametrize("stem", STEMS)
@torch.no_grad()
def test_folding_batch_norm_leaves_the_features_as_they_were(stem: str) -> None:
    x = torch.rand(4, 3, SIZE, SIZE)
    expected = lively_backbone(stem)(x)
    folded = fold_batch_norm(lively_backbone(stem))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert folded(x).numpy() == pytest.approx(expected.numpy(), rel=1e-5, abs=1e-5)
    assert expected.std(dim=0).mean() > 0.01, "features that are all alike would compare nothing"


@torch.no_grad()
def test_folding_uses_the_running_statistics_also_of_a_backbone_in_training_mode() -> None:
    x = torch.rand(4, 3, SIZE, SIZE)
    folded = fold_batch_norm(lively_backbone().train())
    assert folded(x).numpy() == pytest.approx(lively_backbone()(x).numpy(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("stem", STEMS)
@torch.no_grad()
def test_uint8_pixels_give_what_torchvisions_preprocessing_gives(stem: str) -> None:
    embedding, _ = served(stem)(BATCH)
    pixels = tv.normalize(tv.to_dtype(BATCH.permute(0, 3, 1, 2), torch.float32, scale=True), MEAN, STD)
    features = lively_backbone(stem).net(pixels)  # the bare ResNet
    assert embedding.numpy() == pytest.approx(nn.functional.normalize(features).numpy(), abs=1e-5)


@torch.no_grad()
def test_embeddings_have_unit_norm_and_differ() -> None:
    embedding, logits = served()(BATCH)
    assert embedding.shape == (6, 512) and logits.shape == (6, 10)
    assert embedding.norm(dim=1).numpy() == pytest.approx(1, abs=1e-6)
    assert (embedding @ embedding.T - torch.eye(6)).max() < 0.999


@torch.no_grad()
def test_features_of_zero_give_no_nan() -> None:
    backbone = lively_backbone()
    backbone.net.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Hardtanh(0, 1e-30))
    embedding, logits = Served(backbone, nn.Linear(512, 10))(BATCH)
    assert embedding.isfinite().all() and logits.isfinite().all()


@torch.no_grad()
def test_logits_are_the_probe_applied_to_the_embedding() -> None:
    random = np.random.default_rng(0)
    probe = Probe(random.standard_normal((10, 512), np.float32), random.standard_normal(10, np.float32), 1.0, 50.0)
    embedding, logits = Served(fold_batch_norm(lively_backbone()), linear_of(probe))(BATCH)
    assert logits.numpy() == pytest.approx(embedding.numpy() @ probe.weight.T + probe.bias, abs=1e-5)


def test_the_projection_head_stays_behind() -> None:
    model = SimCLR(lively_backbone(), mlp((FEATURES, 64, 16), norm_last=True), Temperature(0.1), decoupled=True)
    module = Served(fold_batch_norm(model.backbone), nn.Linear(512, 10))
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    assert linears == [module.probe]
    assert sum(p.numel() for p in module.parameters()) < 11.2e6  # ResNet-18 without its classifier, and the probe
