"""Online 20-NN: the number of the probe, and a backbone that does not notice it was measured."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tiny_stl10 import lively_backbone, write_tiny_stl10
from training import probe, watch
from training.labelled import read_split
from training.watch import Watch, evenly

SIZE = 32
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_stl10(tmp_path_factory.mktemp("stl10"), train=60, test=10)


def test_it_is_the_probe_s_accuracy_on_the_train_split(data: Path) -> None:
    backbone, split = lively_backbone(), read_split(data, "train", SIZE)
    with torch.no_grad():
        x = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255
        vectors = F.normalize(backbone(x), dim=1).numpy()
    expected = probe.neighbor_accuracy(vectors, split.labels, None, split.labels)
    assert Watch(data, SIZE, CPU).measure(backbone.train()) == pytest.approx(expected)
    assert 10 < expected < 100  # tints tell something, noise something else: not a number that anything gives


def test_measuring_leaves_weights_statistics_modes_gradients_and_random_numbers_alone(data: Path) -> None:
    backbone = lively_backbone().train().to(memory_format=torch.channels_last)
    backbone.net.layer1.eval()  # a part that is kept frozen stays so
    backbone(torch.rand(4, 3, SIZE, SIZE)).sum().backward()
    parameters = list(backbone.parameters())
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    gradients = [p.grad.clone() for p in parameters]
    modes = [module.training for module in backbone.modules()]
    random = torch.get_rng_state()
    Watch(data, SIZE, CPU).measure(backbone)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert [module.training for module in backbone.modules()] == modes
    assert True in modes and False in modes
    assert all(p is q for p, q in zip(backbone.parameters(), parameters, strict=True))
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(parameters, gradients, strict=True))
    assert all(p.requires_grad for p in parameters)
    assert torch.equal(torch.get_rng_state(), random)


def test_modes_come_back_where_measuring_fails(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = lively_backbone().train()

    def failing(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(backbone, "forward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        Watch(data, SIZE, CPU).measure(backbone)
    assert all(module.training for module in backbone.modules())


def test_a_large_set_is_watched_by_the_first_of_each_class(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "MOST", 30)
    watched, split = Watch(data, SIZE, CPU), read_split(data, "train", SIZE)
    assert np.bincount(watched.labels).tolist() == [3] * 10
    assert np.array_equal(watched.images, split.images[:30])  # in the small set classes take turns


def test_rows_are_taken_evenly_and_in_order() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2, 1, 2])
    assert evenly(labels, 3).tolist() == [0, 4, 6]
    assert evenly(labels, 5).tolist() == [0, 1, 4, 5, 6]
    assert evenly(labels, 7).tolist() == [0, 1, 2, 4, 5, 6, 7]  # class 1 has no more to give
    assert evenly(labels, 100).tolist() == list(range(8))
