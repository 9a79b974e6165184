"""Fine-tuning begins where the frozen probe ends, learns what the frozen features do not tell, and changes nothing
that it was given."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from training import finetune, protocol
from training.features import Labelled, embed_images, state_digest, torch_embedder
from training.finetune import Classifier, accuracy, batches
from training.labelled import Split
from training.probe import fit_few

CPU = torch.device("cpu")


def stripes(count: int, seed: int, size: int = 16) -> Split:
    """Noisy stripes, upright or lying, bright or dark: class 1 is bright and lying, or dark and upright. Neither
    direction nor brightness alone tells anything, so that a linear look at what random features say fails."""
    random = np.random.default_rng(seed)
    lying, bright = random.integers(0, 2, (2, count))
    y, x = np.mgrid[:size, :size]
    wave = np.stack([x, y])[lying] // 4 % 2 * 2 - 1
    images = (
        (96 + 64 * bright)[:, None, None, None] + 25 * wave[..., None] + random.normal(0, 25, (count, size, size, 3))
    )
    return Split(images.clip(0, 255).astype(np.uint8), (lying ^ bright).astype(np.int64))


def network() -> Any:
    """Stands for a Backbone: (N, 3, S, S) -> (N, 32)."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def embedded(backbone: Any, split: Split) -> Labelled:
    return Labelled(embed_images(torch_embedder(backbone, CPU), split.images), split.labels)


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of two layers takes larger steps."""
    monkeypatch.setattr(finetune, "LEARNING_RATE", 1e-3)


def test_a_classifier_that_has_not_learned_yet_says_what_the_probe_says() -> None:
    backbone, split = network(), stripes(60, 0)
    known = embedded(backbone, split)
    probe = fit_few(*known)
    classifier = Classifier(backbone, known, probe).eval()
    x = torch.from_numpy(split.images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = classifier(x).numpy()
    assert logits == pytest.approx(known.vectors @ probe.weight.T + probe.bias, abs=1e-3)
    assert accuracy(classifier, split, CPU) == pytest.approx(probe.accuracy(*known))


def test_fine_tuning_learns_what_a_probe_of_the_frozen_features_cannot(faster: None) -> None:
    backbone, train, test = network(), stripes(320, 0), stripes(320, 1)
    frozen = fit_few(*embedded(backbone, train)).accuracy(*embedded(backbone, test))
    tuned = accuracy(finetune.finetune(backbone, train, embedded(backbone, train), 60, CPU), test, CPU)
    assert frozen < 70 and tuned > 85


def test_the_backbone_that_was_given_stays_as_it_was(faster: None) -> None:
    backbone, split = network(), stripes(40, 0)
    known = embedded(backbone, split)
    before = state_digest(backbone)
    classifier = finetune.finetune(backbone, split, known, 2, CPU)
    assert state_digest(backbone) == before
    assert all(value.grad is None for value in backbone.parameters())
    tuned = classifier.backbone
    assert not torch.equal(tuned[0].weight, backbone[0].weight), "the first layer learns too"
    assert torch.equal(tuned[1].running_mean, backbone[1].running_mean), "statistics are kept"


def test_the_same_seed_gives_the_same_classifier_and_another_seed_another() -> None:
    backbone, split = network(), stripes(40, 0)
    known = embedded(backbone, split)
    one, same, other = (state_digest(finetune.finetune(backbone, split, known, 2, CPU, seed)) for seed in (0, 0, 1))
    assert one == same != other


@pytest.mark.parametrize(("count", "sizes"), [(64, [64]), (65, [33, 32]), (10, [10]), (200, [50] * 4)])
def test_batches_hold_every_row_once_an_epoch_and_none_is_left_with_one(count: int, sizes: list[int]) -> None:
    found = list(batches(count, 2, seed=0))
    assert [len(rows) for rows in found] == sizes * 2
    first, second = torch.cat(found[: len(sizes)]), torch.cat(found[len(sizes) :])
    assert sorted(first.tolist()) == sorted(second.tolist()) == [*range(count)]
    assert first.tolist() != second.tolist()


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Split, Split]]:
    """What each classifier was trained on and then asked, without the training."""
    pairs: list[tuple[Split, Split]] = []

    def train(backbone: Any, split: Split, known: Labelled, epochs: int, device: torch.device) -> Split:
        assert np.array_equal(split.labels, known.labels)
        return split

    def ask(model: Split, split: Split, device: torch.device) -> float:
        pairs.append((model, split))
        return float(len(pairs))

    monkeypatch.setattr(finetune, "finetune", train)
    monkeypatch.setattr(finetune, "accuracy", ask)
    return pairs


def numbered(count: int) -> Split:
    """Images that hold their own number; the classes take turns."""
    return Split(np.arange(count)[:, None], np.arange(count) % 4)


def test_nothing_is_asked_inside_train_that_was_trained_on(fitted: list[tuple[Split, Split]]) -> None:
    train = numbered(400)
    known = Labelled(np.zeros((400, 2), np.float32), train.labels)
    result = finetune.measure(network(), train, known, None, 1, CPU)
    assert [len(trained.labels) for trained, _ in fitted] == [320, 20, 20, 20]
    for trained, asked in fitted:
        both = [*trained.images[:, 0].tolist(), *asked.images[:, 0].tolist()]
        assert sorted(both) == [*range(400)]
    assert result == {"train": {"finetuned": 1.0, "finetuned_5_percent": [3.0, 1.0]}}
    draws = [sorted(rows.tolist()) for rows in protocol.share_draws(train.labels, 3)]
    assert [sorted(trained.images[:, 0].tolist()) for trained, _ in fitted[1:]] == draws, "those of the probe"


def test_test_images_are_asked_of_what_was_trained_on_all_labels_and_on_the_draws(
    fitted: list[tuple[Split, Split]],
) -> None:
    train, test = numbered(400), numbered(80)
    known = Labelled(np.zeros((400, 2), np.float32), train.labels)
    result = finetune.measure(network(), train, known, test, 1, CPU)
    asked_of = [len(trained.labels) for trained, asked in fitted if asked is test]
    assert asked_of == [400, 20, 20, 20]
    assert result["test"].keys() == result["train"].keys() == {"finetuned", "finetuned_5_percent"}


def test_too_few_labels_for_5_percent_leave_that_out(fitted: list[tuple[Split, Split]]) -> None:
    train = numbered(40)
    known = Labelled(np.zeros((40, 2), np.float32), train.labels)
    assert finetune.measure(network(), train, known, None, 1, CPU) == {"train": {"finetuned": 1.0}}
