"""Who may import whom, read off the source, and torch kept out of the serving process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "images": set(),
    "encoder": {"images"},
    "training": {"images", "encoder"},
    "export": {"training", "encoder", "images"},
    "index": {"encoder", "images"},
    "handlers": {"index", "encoder", "images"},
    "load_tests": {"images", "training", "export", "encoder", "index", "handlers"},
}
ON_ITS_OWN = {"load_tests/locustfile.py"}  # speaks HTTP only, so that it can drive any server
TORCH = {"torch", "torchvision", "torchao"}
MAY_IMPORT_TORCH = (
    *("training/", "export/", "encoder/torch_runtime.py"),
    *(f"load_tests/{name}.py" for name in ("bench_training", "bare", "per_image", "bench_sizes", "gmac")),
)


def imported_packages(source: str) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every absolute import, also of those inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module.partition(".")[0]


def violations(root: Path) -> list[str]:
    """`file:line: imports package` for each import in the rooms below `root` that the blueprint forbids."""
    found = []
    for room, allowed in MAY_IMPORT.items():
        for file in sorted((root / room).rglob("*.py")):
            name = file.relative_to(root).as_posix()
            rooms_allowed = set() if name in ON_ITS_OWN else allowed | {room}
            forbidden = {*MAY_IMPORT, "akin", "tests"} - rooms_allowed
            if not name.startswith(MAY_IMPORT_TORCH):
                forbidden |= TORCH
            found += [
                f"{name}:{line}: imports {package}"
                for line, package in imported_packages(file.read_text())
                if package in forbidden
            ]
    return found


def test_every_room_imports_only_what_the_blueprint_allows() -> None:
    assert violations(ROOT) == []


def test_the_rooms_were_really_read() -> None:
    assert {"images", "encoder", "index", "handlers"} <= {file.parent.name for file in ROOT.glob("*/*.py")}


@pytest.mark.parametrize(
    ("file", "line", "package"),
    [
        ("images/decode.py", "from encoder.session import Encoder", "encoder"),
        ("index/deep/nested.py", "import handlers.service", "handlers"),
        ("encoder/session.py", "def load() -> None:\n    import torch", "torch"),
        ("handlers/service.py", "from torchvision.transforms import v2", "torchvision"),
        ("training/data.py", "from index import gallery", "index"),
        ("export/archive.py", "from akin import main", "akin"),
        ("load_tests/locustfile.py", "import numpy, images.decode", "images"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, file: str, line: str, package: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line)
    assert violations(tmp_path) == [f"{file}:{1 + line.count(chr(10))}: imports {package}"]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("encoder/torch_runtime.py", "import torch"),
        ("export/graph.py", "from training.backbone import resnet18\nimport torch"),
        ("handlers/native.py", "from index.gallery import Gallery\nfrom handlers import service"),
        ("index/gallery.py", "from .encoder import Encoder\nfrom . import handlers"),
        ("load_tests/bench.py", "from handlers.service import Service"),
    ],
)
def test_an_allowed_import_is_not(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line)
    assert violations(tmp_path) == []


def modules_after(statement: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter after `statement`."""
    command = [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules, sep='\\n')"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n"))


def test_the_server_leaves_torch_alone_where_it_is_installed() -> None:
    assert find_spec("torch"), "where torch is missing, leaving it alone means nothing"
    loaded = modules_after("import handlers.native")
    assert "handlers.native" in loaded
    assert not loaded & TORCH


def test_the_server_imports_where_torch_is_missing() -> None:
    assert "handlers.native" in modules_after("sys.modules['torch'] = None; import handlers.native")


def test_what_answers_below_torchserve_loads_no_server_beside_it() -> None:
    loaded = modules_after("import handlers.torchserve.batch")
    assert "handlers.torchserve.batch" in loaded
    assert not loaded & {"uvicorn", "httptools", "prometheus_client", "fastapi", "handlers.exchange"}


def test_the_command_line_imports_no_room_before_a_verb_is_called() -> None:
    loaded = modules_after("import akin; akin.main(['--help'])")
    assert "akin" in loaded
    assert not loaded & {*MAY_IMPORT, "numpy", "torch"}
