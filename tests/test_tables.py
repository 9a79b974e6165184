"""The report as Markdown: every table with its random line, and where each number comes from."""

from typing import Any

import pytest

from training.tables import RANDOM, markdown, shown


def found(linear: float, digest: str = "ab" * 32) -> dict[str, Any]:
    """What is found of one encoder, both places alike but for two points."""

    def place(linear: float) -> dict[str, Any]:
        few = {
            "labels_a_class": 5,
            "draws": 5,
            "linear": [40.0, 2.0],
            "knn20": [38.0, 2.5],
            "prototypes": [41.0, 3.0],
        }
        every = {
            "labels_a_class": 500,
            "draws": 1,
            "linear": [linear, 0.0],
            "knn20": [50, 0.0],
            "prototypes": [45, 0.0],
        }
        return {"linear": linear, "knn20": 50.04, "linear_5_percent": [45.26, 1.04], "curve": [few, every]}

    frozen = {"sha256": digest, "equal": True, "of": "parameters and buffers"}
    return {"train": place(linear), "test": place(linear - 2), "stem": "small", "frozen": frozen}


def report(**changes: Any) -> dict[str, Any]:
    result = {"size": 64, "train_images": 5000, "test_images": 8000, **found(77.5), "random": found(41.0, "cd" * 32)}
    made = {"date": "2026-11-25 20:00 UTC", "command": "akin evaluate --test", "machine": "2 cores of a Xeon"}
    made |= {"torch": "2.14.1", "commit": "0123456789ab"}
    return {
        "encoder": "simclr@1234",
        "data": "STL-10",
        "results": [result],
        "fine_tuning_epochs": 0,
        "made": made,
        **changes,
    }


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every row of every table."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    return [[[cell.strip() for cell in row.strip("|").split("|")] for row in block] for block in blocks]


def test_the_summary_has_a_row_for_the_encoder_and_one_for_random_weights() -> None:
    summary, _, on_test, _ = tables(markdown(report()))
    assert summary[0] == ["", "linear, all labels", "20-NN, all", "linear, 5%"]
    assert summary[2:] == [["simclr@1234", "77.5", "50.0", "45.3 ± 1.0"], [RANDOM, "41.0", "50.0", "45.3 ± 1.0"]]
    assert [row[:2] for row in on_test[2:]] == [["simclr@1234", "75.5"], [RANDOM, "39.0"]]


def test_every_table_shows_random_weights_and_every_row_fits_its_head() -> None:
    found_tables = tables(markdown(report()))
    assert len(found_tables) == 4
    for table in found_tables:
        assert {len(row) for row in table} == {len(table[0])}
        assert any("random" in cell for cell in (*table[0], *(row[0] for row in table)))


def test_the_curve_has_a_row_a_count_and_random_weights_beside_the_encoder() -> None:
    _, curve, _, _ = tables(markdown(report()))
    assert curve[0][1:] == ["linear", "20-NN", "prototypes", "random: linear", "random: 20-NN", "random: prototypes"]
    assert curve[2] == ["5 (5 draws)", *["40.0 ± 2.0", "38.0 ± 2.5", "41.0 ± 3.0"] * 2]
    assert curve[3] == ["500 (1 draw)", "77.5", "50.0", "45.0", "41.0", "50.0", "45.0"]


def test_random_weights_alone_are_one_row_and_not_shown_twice() -> None:
    alone = {"size": 64, "train_images": 5000, **found(41.0)}
    summary, curve, *_ = tables(markdown(report(encoder="random", results=[alone])))
    assert [row[0] for row in summary[2:]] == [RANDOM]
    assert curve[0] == ["labels a class", "linear", "20-NN", "prototypes"]


def test_without_a_test_split_nothing_is_said_of_one() -> None:
    whole = report()
    (result,) = whole["results"]
    for part in (result, result["random"]):
        del part["test"]
    del result["test_images"]
    text = markdown(whole)
    assert "Inside the train labels" in text and "Test split" not in text and "8,000" not in text
    assert len(tables(text)) == 2


def test_every_size_has_tables_of_its_own() -> None:
    whole = report()
    whole["results"].append({**whole["results"][0], "size": 96})
    text = markdown(whole)
    assert "## Test split, 64 px" in text and "## Test split, 96 px" in text
    assert len(tables(text)) == 8


def test_where_the_numbers_come_from_is_said() -> None:
    text = markdown(report())
    assert "- Data: STL-10, 5,000 train and 8,000 test images at 64 px." in text
    assert (
        "simclr@1234 (64 px, small stem): sha256 of its parameters and buffers before and after, " + "ab" * 32 in text
    )
    assert "random weights (64 px, small stem): sha256 of its parameters and buffers before and after, cdcd" in text
    assert "2026-11-25 20:00 UTC, commit 0123456789ab, 2 cores of a Xeon, torch 2.14.1." in text
    assert "`akin evaluate --test`" in text
    assert "Fine-tuned" not in text


def test_fine_tuning_adds_its_columns_and_how_it_was_done() -> None:
    whole = report(fine_tuning_epochs=20)
    whole["results"][0]["train"] |= {"finetuned": 83.0, "finetuned_5_percent": [70.0, 1.5]}
    text = markdown(whole)
    summary = tables(text)[0]
    assert summary[0][-2:] == ["fine-tuned, all", "fine-tuned, 5%"]
    assert summary[2][-2:] == ["83.0", "70.0 ± 1.5"] and summary[3][-2:] == ["", ""]
    assert "Fine-tuned for 20 epochs" in text


@pytest.mark.parametrize(
    ("value", "draws", "text"),
    [(77.46, 2, "77.5"), ([68.3, 0.92], 10, "68.3 ± 0.9"), ([68.3, 0.0], 1, "68.3"), (None, 2, "")],
)
def test_numbers_are_shown_to_a_tenth_of_a_percent(value: Any, draws: int, text: str) -> None:
    assert shown(value, draws) == text
