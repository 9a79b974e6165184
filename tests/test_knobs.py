"""A dataclass as a command line: every field, presets first, and back from JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Literal, get_args, get_type_hints

import pytest

from training import knobs
from training.recipes import PRESETS, Pretrain


def parse(*argv: str) -> Pretrain:
    return knobs.parse(Pretrain(), argv, "akin pretrain", "Train.", PRESETS)


def every_flag(default: object, prefix: str = "") -> list[tuple[str, tuple[str, ...], list[str], object]]:
    """For each field: its name, its path, a command line that changes it, and the value that this gives."""
    other = {"data": ("a", "b.zip"), "out": "elsewhere", "device": "cpu", "init": "x.pt", "watch": "labelled"}
    other |= {"scale": (0.25, 0.5), "ratio": (0.5, 1.5), "sigma": (1.0, 3.0)}
    cases = []
    for field in fields(default):
        now, kind = getattr(default, field.name), get_type_hints(type(default))[field.name]
        flag = f"--{prefix}{field.name}".replace("_", "-")
        path = (*prefix.split("-")[:-1], field.name)
        if is_dataclass(now):
            cases += every_flag(now, f"{prefix}{field.name}-")
            continue
        if kind is bool:
            cases.append((flag, path, [f"--no-{flag[2:]}" if now else flag], not now))
            continue
        if choices := [choice for choice in get_args(kind) if isinstance(choice, str)]:
            value: object = next(choice for choice in choices if choice != now)
        else:
            numbers = 0.3125 if isinstance(now, float) else now + 1 if isinstance(now, int) else None
            value = other[field.name] if numbers is None else numbers
        words = [str(part) for part in value] if isinstance(value, tuple) else [str(value)]
        cases.append((flag, path, [flag, *words], value))
    return cases


@pytest.mark.parametrize(
    "flag, path, argv, value", every_flag(Pretrain()), ids=lambda case: case if isinstance(case, str) else ""
)
def test_every_field_is_a_flag_and_touches_nothing_else(
    flag: str, path: tuple[str, ...], argv: list[str], value: object
) -> None:
    found, default = parse(*argv), Pretrain()
    if len(path) == 2:
        expected = replace(default, **{path[0]: replace(getattr(default, path[0]), **{path[1]: value})})
    else:
        expected = replace(default, **{path[0]: value})
    assert found == expected
    assert found != default


def test_there_is_a_flag_for_every_field_of_the_run_its_view_and_its_methods() -> None:
    nested = [getattr(Pretrain(), field.name) for field in fields(Pretrain)]
    nested = [value for value in nested if is_dataclass(value)]
    expected = len(fields(Pretrain)) - len(nested) + sum(len(fields(value)) for value in nested)
    assert len(nested) >= 5 and len(every_flag(Pretrain())) == expected


def test_no_flag_gives_the_defaults_and_a_preset_its_own() -> None:
    assert parse() == Pretrain()
    for name, preset in PRESETS.items():
        assert parse("--preset", name) == preset


def test_flags_change_a_preset_wherever_it_stands() -> None:
    expected = replace(PRESETS["cpu"], minutes=5.0, view=replace(PRESETS["cpu"].view, size=40))
    assert parse("--preset", "cpu", "--minutes", "5", "--view-size", "40") == expected
    assert parse("--minutes", "5", "--view-size", "40", "--preset", "cpu") == expected


def test_a_boolean_of_a_preset_can_be_taken_back() -> None:
    assert PRESETS["gpu"].compile
    assert not parse("--preset", "gpu", "--no-compile").compile


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_knobs_come_back_from_json(preset: str) -> None:
    asked = replace(PRESETS[preset], data=("a", "b"), limit=7)
    assert knobs.from_json(Pretrain(), json.loads(json.dumps(asdict(asked)))) == asked


@pytest.mark.parametrize(
    "argv, complaint",
    [
        (["--bacth", "3"], "--bacth"),
        (["--batc", "3"], "--batc"),  # no guessing from a beginning
        (["--batch", "many"], "many"),
        (["--optimizer", "adam"], "adam"),
        (["--precision", "fp16"], "fp16"),
        (["--stem", "tiny"], "tiny"),
        (["--preset", "tpu"], "tpu"),
        (["--view-scale", "0.2"], "expected 2 arguments"),
        (["--batch", "1"], "batch 1 is too little; give at least 2"),
        (["--epochs", "0"], "epochs 0"),
        (["--warmup", "1"], "warmup 1.0"),
        (["--temperature", "0"], "temperature 0.0"),
        (["--view-flip", "2"], "flip 2.0 is no probability"),
        (["stray"], "stray"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_what_makes_no_sense_exits_with_2_and_says_so(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(*argv)
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What --help prints beside other flags, in one line so that line breaks do not matter."""

    def show(*argv: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            parse("--help", *argv)
        assert stopped.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    return show


def test_help_shows_the_comment_behind_each_field_and_its_default(help_of: Callable[..., str]) -> None:
    text = help_of()
    assert "share of the schedule that the learning rate rises; then a cosine to zero (default: 0.03)" in text
    assert "share of the image's area that a crop keeps (default: (0.2, 1.0))" in text
    assert "--head-norm, --no-head-norm" in text


def test_help_shows_the_defaults_of_the_preset_it_is_asked_for(help_of: Callable[..., str]) -> None:
    assert "the lower, the more the nearest negatives count (default: 0.07)" in help_of("--preset", "literal")


def test_every_knob_explains_itself() -> None:
    nested = {
        field.name: type(value)
        for field in fields(Pretrain)
        if is_dataclass(value := getattr(Pretrain(), field.name))
    }
    assert {"view", "moco"} <= nested.keys()
    for kind in (Pretrain, *nested.values()):
        named = {field.name for field in fields(kind)} - nested.keys()
        assert named - set(knobs.comments(kind)) == set()


@dataclass(frozen=True)
class Small:
    share: float | None = None  # 50% of what there is
    mode: Literal["plain", "fancy"] = "plain"
    many: tuple[int, ...] = (1,)


def test_optional_numbers_percent_signs_and_other_dataclasses_work_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert knobs.parse(Small(), ["--share", "0.5", "--many", "1", "2"], "x", "") == Small(0.5, "plain", (1, 2))
    with pytest.raises(SystemExit):
        knobs.parse(Small(), ["--help"], "x", "")
    assert "50% of what there is" in capsys.readouterr().out


def test_the_flags_that_were_typed_are_known_by_their_paths_whatever_their_values() -> None:
    line = ["--preset", "cpu", "--batch", "256", "--view-size", "48", "--no-compile", "--data", "a", "b"]
    assert knobs.typed(Pretrain(), line) == {"batch", "view.size", "compile", "data"}
    assert knobs.typed(Pretrain(), []) == set()


def test_flat_gives_every_knob_by_its_path() -> None:
    paths = dict(knobs.flat(asdict(Pretrain())))
    assert (paths["batch"], paths["view.size"], paths["moco.queue"]) == (256, 96, 4096)
