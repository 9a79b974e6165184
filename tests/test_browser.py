"""The page opens by itself for a person with a screen, and for nobody else."""

import sys
import webbrowser
from typing import Any

import pytest

from handlers import browser
from handlers.settings import Settings


@pytest.mark.parametrize(
    ("platform", "variables", "terminal", "looks"),
    [
        ("linux", {"DISPLAY": ":0"}, True, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ("darwin", {}, True, True),
        ("linux", {}, True, False),  # over ssh webbrowser would start a text browser in the terminal
        ("linux", {"DISPLAY": ":0"}, False, False),
        ("darwin", {}, False, False),
    ],
)
def test_someone_looks_from_a_terminal_with_a_screen(
    platform: str, variables: dict[str, str], terminal: bool, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert browser.someone_looks() is looks


def test_a_browser_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def missing(url: str, *_: Any) -> bool:
        asked.append(url)
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "open_new_tab", missing)
    browser.show("http://127.0.0.1:8080/")
    assert asked == ["http://127.0.0.1:8080/"]


@pytest.mark.parametrize(
    ("line", "looks", "opens"),
    [
        ("--images photos", True, True),
        ("--images photos", False, False),
        ("", True, False),
        ("--open", False, True),
        ("--images photos --no-open", True, False),
    ],
)
def test_the_page_opens_with_images_where_someone_looks_or_as_it_is_told(
    line: str, looks: bool, opens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browser, "someone_looks", lambda: looks)
    assert Settings.from_arguments(line.split()).opens is opens
