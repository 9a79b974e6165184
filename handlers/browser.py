"""The page in the browser of whoever started the server."""

import os
import sys
import webbrowser


def someone_looks() -> bool:
    """Whether the server was started by a person, in a terminal on a machine with a screen."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and sys.stdout.isatty()


def show(url: str) -> None:
    """Open `url` in a browser's tab; whether there is a browser is the browser's business."""
    try:
        webbrowser.open_new_tab(url)
    except webbrowser.Error:  # the address has been printed
        return
