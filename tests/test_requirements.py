"""The locks: what each environment gets, and that they agree."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOCKS = ("serve", "serve-gpu", "full")


def locked(name: str) -> dict[str, set[str]]:
    """Package -> its lines in a lock: version, and the platforms it is for."""
    packages: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        package, _, pin = line.partition("==")
        assert pin, f"{line!r} pins nothing"
        packages.setdefault(package, set()).add(pin)
    return packages


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_a_name_and_a_version(lock: str) -> None:
    assert len(locked(lock)) > 20
    assert "://" not in (ROOT / "requirements" / f"{lock}.txt").read_text()


@pytest.mark.parametrize("lock", LOCKS)
def test_one_onnx_runtime_an_environment(lock: str) -> None:
    assert len([package for package in locked(lock) if package.startswith("onnxruntime")]) == 1


@pytest.mark.parametrize("lock", ["serve", "serve-gpu"])
def test_the_serving_environments_have_no_torch(lock: str) -> None:
    assert not {"torch", "torchvision", "torchserve"} & set(locked(lock))


@pytest.mark.parametrize("lock", ["serve", "serve-gpu"])
def test_what_is_tested_is_what_serves(lock: str) -> None:
    """Packages that both have are of one version (CUDA's aside: each comes with its own)."""
    serving, full = locked(lock), locked("full")
    shared = [name for name in serving if name in full and not name.startswith("nvidia-")]
    assert {name: serving[name] for name in shared} == {name: full[name] for name in shared}
