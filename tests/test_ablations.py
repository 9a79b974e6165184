"""What each ablation sweeps: the values, and that a value changes what it says and nothing else."""

from dataclasses import asdict, replace

import pytest

from training.ablations import SWEEPS, recipes
from training.augment import POLICIES
from training.knobs import flat
from training.recipes import PRESETS, Pretrain

BASE = PRESETS["cpu"]
CHANGES = {
    "temperature": {"temperature", "temperature_end"},
    "batch": {"batch"},
    "head": {"hidden", "output", "head_norm"},
    "optimizer": {"optimizer", "lr", "momentum", "weight_decay"},
}


def differences(one: Pretrain, other: Pretrain) -> set[str]:
    before, now = dict(flat(asdict(one))), dict(flat(asdict(other)))
    return {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}


def test_the_temperatures_and_batches_are_the_articles() -> None:
    assert [recipe.temperature for recipe in recipes("temperature", BASE).values()] == [0.05, 0.07, 0.1, 0.2, 0.5]
    assert [recipe.batch for recipe in recipes("batch", BASE).values()] == [64, 128, 256, 512]


@pytest.mark.parametrize("name", SWEEPS)
def test_a_value_changes_only_what_is_swept_and_each_is_another_recipe(name: str) -> None:
    found = list(recipes(name, BASE).values())
    assert len({repr(recipe) for recipe in found}) == len(SWEEPS[name].values) >= 4
    for recipe in found:
        changed = differences(BASE, recipe)
        assert changed <= CHANGES.get(name, changed)
        assert name != "augmentation" or all(key.startswith("view.") for key in changed)


def test_a_policy_leaves_the_size_of_the_views_to_the_recipe() -> None:
    assert {recipe.view.size for recipe in recipes("augmentation", BASE).values()} == {48}


def test_a_swept_temperature_stays_where_it_is() -> None:
    annealed = replace(BASE, temperature_end=0.3)
    assert {recipe.temperature_end for recipe in recipes("temperature", annealed).values()} == {0}


def test_sgds_rate_grows_with_the_batch_and_the_others_stay() -> None:
    small, large = (recipes("optimizer", replace(BASE, batch=batch)) for batch in (256, 512))
    ratios = {name: large[name].lr / small[name].lr for name in small}
    assert ratios == {"muon-0.05": 1, "sgd-0.06": 2, "sgd-0.2": 2, "adamw-0.001": 1}
    assert [recipe.lr for recipe in small.values()] == [0.05, 0.06, 0.2, 0.001]


def test_other_numbers_may_be_asked_for_where_values_are_numbers() -> None:
    assert list(recipes("temperature", BASE, ["0.03"])) == ["0.03"]
    assert recipes("batch", BASE, ["32"])["32"].batch == 32


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("temperature", "warm", "give --values a number"),
        ("temperature", "-1", "divides the similarities"),
        ("batch", "1", "give at least 2"),
        ("augmentation", "everything", "some of crop, color"),
        ("head", "512", "1024-128"),
        ("optimizer", "lion", "adamw-0.001"),
    ],
)
def test_a_value_that_is_none_is_refused_with_those_that_are(name: str, value: str, way_out: str) -> None:
    with pytest.raises(SystemExit, match=way_out) as refusal:
        recipes(name, BASE, [value])
    assert repr(value) in str(refusal.value)


def test_policies_are_what_their_names_say() -> None:
    assert list(POLICIES) == ["crop", "color", "crop+color", "crop+color+blur", "full", "satellite"]
    for name, policy in POLICIES.items():
        everything = name in ("full", "satellite")
        assert (policy.scale != (1, 1)) == (policy.flip > 0) == ("crop" in name or everything), name
        assert (policy.jitter > 0) == (policy.grayscale > 0) == ("color" in name or everything), name
        assert (policy.blur > 0) == ("blur" in name or everything), name
        assert (policy.rotate > 0) == (policy.vertical_flip > 0) == (name == "satellite"), name
