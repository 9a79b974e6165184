"""Set-up: the Makefile and requirements/install.sh with stand-ins for Python.

A stand-in is a small shell script that says which version it is, makes folders for `-m venv`, and writes
down what it was asked to install; so every case runs in milliseconds and needs no network.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# None of these is Python, pip, uv or virtualenv: those are stand-ins or missing.
TOOLS = [
    *("sh", "make", "awk", "basename", "cat", "chmod", "cksum", "cmp", "cp"),
    *("find", "mkdir", "mktemp", "mv", "rm", "sleep", "touch"),
]

# What a stand-in puts into an environment as bin/python: it installs, that is, writes to the journal.
PYTHON_IN_ENVIRONMENT = """#!/bin/sh
[ "$1" = -c ] && exit
echo "$*" >>"$JOURNAL"
if [ -n "${HANG:-}" ]; then sleep 60; fi
exit "${INSTALL_EXIT:-0}"
"""

STAND_IN = """#!/bin/sh
make_environment() {{
    mkdir -p "$1/bin" && cp "$TEMPLATE" "$1/bin/python" && chmod +x "$1/bin/python"
}}
case "$*" in
    -c*) echo {version} ;;
    "-m venv --without-pip "*) make_environment "$4" ;;
    "-m venv "*) make_environment "$3" && {has_ensurepip} ;;
    "-m pip --python "*--version) {has_pip} ;;
    "-m pip --python "*) echo "outside: $*" >>"$JOURNAL" ;;
esac
"""


class Made(NamedTuple):
    exit_code: int
    output: str  # stdout and stderr
    installed: list[str]  # what was installed so far, one command an entry


class Checkout:
    """The Makefile and its locks in a folder of their own, and a PATH with only what a test puts there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "akin"
        self.journal = folder / "journal"
        self.bin = folder / "bin"
        self.template = folder / "python-in-environment"
        self.bin.mkdir()
        self.journal.touch()
        self.template.write_text(PYTHON_IN_ENVIRONMENT)
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, f"{tool} is needed to set akin up"
            (self.bin / tool).symlink_to(found)
        shutil.copytree(ROOT / "requirements", self.folder / "requirements")
        shutil.copy(ROOT / "Makefile", self.folder)

    def add_python(self, name: str, version: str, has_ensurepip: bool = True, has_pip: bool = True) -> None:
        """Put a stand-in for Python on the PATH."""
        flags = {"has_ensurepip": str(has_ensurepip).lower(), "has_pip": str(has_pip).lower()}
        self.add_tool(name, STAND_IN.format(version=version, **flags))

    def add_tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(script)
        (self.bin / name).chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """Start `make` in a process group of its own."""
        environment = {
            "PATH": str(self.bin), "JOURNAL": str(self.journal), "TEMPLATE": str(self.template), **variables
        }  # fmt: skip
        return subprocess.Popen(
            ["make", *arguments], cwd=self.folder, env=environment, start_new_session=True, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def make(self, *arguments: str, **variables: str) -> Made:
        with self.start(*arguments, **variables) as process:
            output, _ = process.communicate(timeout=60)
        return Made(process.returncode, output, self.journal.read_text().splitlines())

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_make_alone_lists_every_target(checkout: Checkout) -> None:
    made = checkout.make()
    listed = re.findall(r"^  make (\S+)  ", made.output, re.MULTILINE)
    declared = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert declared
    assert sorted(listed) == sorted(declared[1].split())
    assert made.installed == []


def test_setup_installs_the_serving_lock_and_says_so_before_it_begins(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    made = checkout.make("setup")
    assert made.exit_code == 0
    assert made.output.startswith("akin: installing requirements/serve.txt into .venv")
    assert made.installed == ["-m pip install --no-deps -r requirements/serve.txt"]
    assert checkout.exists(".venv/bin/akin")


def test_a_second_make_does_no_work(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup", "setup-full")
    made = checkout.make("setup", "setup-full")
    assert "installing" not in made.output
    assert len(made.installed) == 2


def test_a_changed_lock_is_installed_from_scratch(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    (checkout.folder / ".venv/leftover").touch()
    (checkout.folder / "requirements/serve.txt").write_text("numpy==1.0\n")
    assert len(checkout.make("setup").installed) == 2
    assert not checkout.exists(".venv/leftover")


def test_a_lock_that_only_looks_newer_is_not_installed_again(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    later = time.time() + 10
    os.utime(checkout.folder / "requirements/serve.txt", (later, later))
    assert len(checkout.make("setup").installed) == 1


def test_gpu_is_switched_on_kept_and_switched_off(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    assert checkout.make("setup", "GPU=1").installed[1:] == ["-m pip install --no-deps -r requirements/serve-gpu.txt"]
    assert not checkout.exists(".venv/installed-serve")
    assert len(checkout.make("setup").installed) == 2
    assert checkout.make("setup", "GPU=0").installed[2:] == ["-m pip install --no-deps -r requirements/serve.txt"]


def test_a_failed_installation_is_done_again_from_scratch(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    failed = checkout.make("setup", INSTALL_EXIT="1")
    assert failed.exit_code != 0
    assert "could not install requirements/serve.txt" in failed.output
    (checkout.folder / ".venv/half-installed").touch()
    assert checkout.make("setup").exit_code == 0
    assert not checkout.exists(".venv/half-installed")


def test_an_installation_killed_halfway_is_never_taken_as_done(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    with checkout.start("setup", "GPU=1", HANG="yes") as process:
        deadline = time.monotonic() + 30
        while len(checkout.journal.read_text().splitlines()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert checkout.exists(".venv/bin/python")
    assert len(checkout.make("setup").installed) == 3


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13", "3.14"])
def test_every_python_that_onnx_runtime_has_packages_for_will_do(checkout: Checkout, version: str) -> None:
    checkout.add_python("python3", version)
    assert checkout.make("setup").exit_code == 0


def test_a_newer_python_beside_an_older_python3_is_found(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.9")
    checkout.add_python("python3.12", "3.12")
    assert "with python3.12;" in checkout.make("setup").output


def test_a_name_on_the_path_that_runs_nothing_is_passed_over(checkout: Checkout) -> None:
    checkout.add_tool("python3.14", "#!/bin/sh\necho 'not in this version of pyenv' >&2; exit 127\n")
    checkout.add_python("python3", "3.11")
    made = checkout.make("setup")
    assert "with python3;" in made.output
    assert "pyenv" not in made.output


@pytest.mark.parametrize("version", ["2.7", "3.9", "3.10", "3.15", "4.0"])
def test_any_other_python_gets_one_line_that_says_so(checkout: Checkout, version: str) -> None:
    checkout.add_python("python3", version)
    made = checkout.make("setup")
    assert made.exit_code != 0
    (line,) = [line for line in made.output.splitlines() if not line.startswith("make")]
    assert line == (
        "akin: needs Python 3.11 to 3.14 (ONNX Runtime has packages for no other), "
        f"found: python3 is {version}; install one, or name it: make PYTHON=/path/to/python3.12"
    )
    assert not checkout.exists(".venv")


def test_an_unfit_python_leaves_the_environment_that_is_there_alone(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    assert checkout.make("setup", "GPU=1", "PYTHON=missing").exit_code != 0
    assert checkout.exists(".venv/installed-serve")


def test_python_names_the_interpreter(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11")
    checkout.add_python("mine", "3.12")
    assert "with mine;" in checkout.make("setup", "PYTHON=mine").output


def test_a_python_without_ensurepip_borrows_the_pip_outside(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11", has_ensurepip=False)
    made = checkout.make("setup")
    assert made.exit_code == 0
    expected = "outside: -m pip --python .venv/bin/python install --no-deps -r requirements/serve.txt"
    assert made.installed == [expected]


def test_a_python_without_ensurepip_and_pip_uses_uv(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11", has_ensurepip=False, has_pip=False)
    checkout.add_tool(
        "uv",
        '#!/bin/sh\necho "uv $*" >>"$JOURNAL"\n'
        '[ "$1" = pip ] || { mkdir -p .venv/bin && cp "$TEMPLATE" .venv/bin/python; }\n',
    )
    made = checkout.make("setup")
    assert made.exit_code == 0
    assert made.installed == [
        "uv venv --quiet --python python3 .venv",
        "uv pip install --python .venv/bin/python --no-deps -r requirements/serve.txt",
    ]


def test_a_python_that_can_make_no_environment_gets_the_way_out(checkout: Checkout) -> None:
    checkout.add_python("python3", "3.11", has_ensurepip=False, has_pip=False)
    made = checkout.make("setup")
    assert made.exit_code != 0
    assert "apt-get install python3-venv" in made.output
    assert not checkout.exists(".venv/installed-serve")


def test_a_real_environment_runs_akin_from_any_folder(checkout: Checkout, tmp_path: Path) -> None:
    (checkout.bin / "python3").symlink_to(sys.executable)
    (checkout.bin / "python").symlink_to(sys.executable)
    (checkout.folder / "requirements/serve.txt").write_text("# nothing to install\n")
    shutil.copy(ROOT / "akin.py", checkout.folder)
    made = checkout.make("setup")
    assert made.exit_code == 0, made.output
    akin = checkout.folder / ".venv/bin/akin"
    done = subprocess.run([akin, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: akin VERB")


@pytest.mark.parametrize(
    ("arguments", "handed"),
    [
        (["serve"], "[serve][--port][8080]"),
        (["serve", "IMAGES=My Pictures", "PORT=1"], "[serve][--port][1][--images][My Pictures]"),
        (["serve", "GRPC_PORT=8001"], "[serve][--port][8080][--grpc-port][8001]"),
        (["serve", "PROVIDER=OpenVINO"], "[serve][--port][8080][--require-provider][OpenVINO]"),
        (["serve", "PROCESSES=4"], "[serve][--port][8080][--processes][4]"),
        (["deploy", "STORE=my model"], "[deploy][my model][--port][8080]"),
        (["deploy", "STORE=new", "PORT=1", "ARGS=--keep --as b"], "[deploy][new][--port][1][--keep][--as][b]"),
        (["index", "IMAGES=My Pictures"], "[index][add][My Pictures]"),
        (["index", "IMAGES=~/Pictures", "ARGS=--thumbnails"], "[index][add][/home/me/Pictures][--thumbnails]"),
    ],
)
def test_what_is_named_is_handed_to_akin(checkout: Checkout, arguments: list[str], handed: str) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    akin = checkout.folder / ".venv/bin/akin"
    akin.write_text('#!/bin/sh\nfor argument; do printf "[%s]" "$argument"; done\necho\n')
    assert checkout.make(*arguments, HOME="/home/me").output == f"{handed}\n"


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("deploy", "make deploy needs STORE=, the folder of a model"),
        ("index", "make index needs IMAGES=folder"),
    ],
)
def test_a_target_that_is_told_too_little_says_what_it_needs(checkout: Checkout, target: str, reason: str) -> None:
    checkout.add_python("python3", "3.11")
    checkout.make("setup")
    made = checkout.make(target)
    assert made.exit_code != 0 and reason in made.output


def test_a_tilde_that_the_shell_left_alone_is_the_home_folder(checkout: Checkout) -> None:
    made = checkout.make("-n", "serve", "IMAGES=~/Pictures", HOME="/home/me")
    assert '"/home/me/Pictures"' in made.output


def test_clean_keeps_environments_runs_and_galleries(checkout: Checkout) -> None:
    kept = [".venv/lib/__pycache__", "runs/first", "var/gallery"]
    for folder in [*kept, "images/__pycache__", ".mypy_cache"]:
        (checkout.folder / folder).mkdir(parents=True)
    assert checkout.make("clean").exit_code == 0
    assert all(checkout.exists(folder) for folder in kept)
    assert not checkout.exists("images/__pycache__")
    assert not checkout.exists(".mypy_cache")
