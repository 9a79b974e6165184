"""What docs/ says is so: metrics, reasons, flags and defaults that it names are those of the server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest

from handlers.settings import Settings
from handlers.wire import Awaited, Limits
from tests.serving import JPEG, PATH

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
SUFFIXES = re.compile("_(bucket|sum|count|total)$")


@pytest.fixture(scope="module")
def families(server: Any) -> dict[str, set[str]]:
    """The metrics of a server that has answered something, without suffixes, and the labels that each has."""
    httpx.post(server.url + PATH + "?k=1", content=JPEG, timeout=30)
    httpx.put(server.url + "/index/of-docs", content=JPEG, timeout=30)
    httpx.delete(server.url + "/index/of-docs", timeout=30)
    found: dict[str, set[str]] = {}
    text = httpx.get(server.url + "/metrics", timeout=30).text
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            found.setdefault(SUFFIXES.sub("", line.split()[2]), set())
        elif not line.startswith("#"):
            name, _, labels = line.partition("{")
            found.setdefault(SUFFIXES.sub("", name.split()[0]), set()).update(re.findall(r'(\w+)="', labels))
    return found


def expressions() -> Iterator[str]:
    for panel in json.loads((DOCS / "grafana.json").read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for block in re.findall(r"```\n(.*?)```", PAGES["metrics.md"], re.DOTALL):
        yield from (line for line in block.splitlines() if not line.startswith("#"))


def test_every_metric_that_a_dashboard_an_alert_or_a_table_names_is_there(families: dict[str, set[str]]) -> None:
    asked = [name for expression in expressions() for name in re.findall(r"\b(?:akin|process)_[a-z_]+", expression)]
    asked += re.findall(r"`(akin_[a-z_]+)`", PAGES["metrics.md"])
    assert len(set(asked)) > 12
    for name in asked:
        assert SUFFIXES.sub("", name) in families, name


def test_the_table_names_every_metric_of_ours_with_its_labels(families: dict[str, set[str]]) -> None:
    rows = dict(re.findall(r"^\| (`akin.*?) \| (.*?) \|", PAGES["metrics.md"], re.MULTILINE))
    told = {
        SUFFIXES.sub("", name): set(re.findall(r"`(\w+)`", labels))
        for names, labels in rows.items()
        for name in re.findall(r"`(akin_\w+)`", names)
    }
    ours = {name for name in families if name.startswith("akin_") and not name.endswith("_created")}
    assert set(told) == ours
    for name, labels in told.items():
        assert families[name] - {"le"} in (labels, set()), name


def test_every_reason_of_a_refusal_is_explained() -> None:
    table = PAGES["metrics.md"].partition("## Why")[2].partition("##")[0]
    explained = set(re.findall(r"`([a-z ]+)`", table)) - {"queue", "reason"}
    code = "".join((DOCS.parent / "handlers" / name).read_text() for name in ("exchange.py", "wire.py", "door.py"))
    raised = set(re.findall(r'reject(?:ed)?\("([a-z ]+)"', code)) | set(get_args(Awaited))
    raised |= set(re.findall(r'Refused\(\s*\d+, "([a-z ]+)"', code))
    assert explained == raised


def test_flags_that_are_named_are_flags_of_the_server() -> None:
    words = {f"--{name.replace('_', '-')}" for name in Settings.__dataclass_fields__}
    named = {flag for text in PAGES.values() for flag in re.findall(r"--[a-z]+(?:-[a-z]+)*", text)}
    assert named - words <= {"--start", "--models"}  # of TorchServe


def test_limits_that_are_named_are_those_of_the_server() -> None:
    limits, text = Limits(), PAGES["deployment.md"]
    assert f"{limits.header_seconds:.0f} s for" in text
    assert f"{limits.body_seconds:.0f} s and another for every {limits.bytes_per_second >> 10} KiB" in text
    assert (Settings.header_seconds, Settings.body_seconds) == (limits.header_seconds, limits.body_seconds)
