"""Rows and their targets, as text and as Markdown."""

import pytest

from load_tests import report
from load_tests.report import Row, Target


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (Target("≤", 1.7), 1.7, "met"),
        (Target("≤", 1.7), 1.701, "missed"),
        (Target("≥", 1.4), 1.4, "met"),
        (Target("≥", 1.4), 1.399, "missed"),
        (None, 1.0, ""),
    ],
)
def test_a_target_is_met_up_to_its_limit(target: Target | None, value: float, verdict: str) -> None:
    assert Row("some", "×", (value,), target).verdict == verdict


def test_the_table_is_aligned_and_the_markdown_has_the_same_cells() -> None:
    rows = [Row("short", "ms", (1.0, 3.0, 2.0)), Row("a longer one", "MB", (1234.0,), Target("≤", 350))]
    assert report.table(rows) == (
        "                median  lowest to highest    target\n"
        "short          2.00 ms       1.00 to 3.00\n"
        "a longer one  1,234 MB     1,234 to 1,234  ≤ 350 MB  missed"
    )
    assert report.markdown(rows, "Somewhere.") == (
        "|  | median | lowest to highest | target |  |\n"
        "| --- | ---: | ---: | ---: | --- |\n"
        "| short | 2.00 ms | 1.00 to 3.00 |  |  |\n"
        "| a longer one | 1,234 MB | 1,234 to 1,234 | ≤ 350 MB | missed |\n"
        "\n"
        "Somewhere.\n"
    )
