"""What `pip install quadrank` brings: every sub-package, the shipped settings, nothing of the checkout beside them."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parent.parent
PACKAGES = ("features", "ctr", "pipelines")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("dist")))))


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel unpacked, as an installer would."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_holds_every_module_of_the_tree(names):
    """A folder that is added to the tree later belongs to it, without a word in pyproject.toml."""
    on_disk = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == on_disk


def test_the_shipped_settings_are_package_data(wheel, names):
    shipped = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "conf").rglob("*.yaml")}
    assert {name.removeprefix("pipelines/") for name in names if name.startswith("pipelines/conf/")} == set(shipped)
    with zipfile.ZipFile(wheel) as archive:
        assert all(archive.read(f"pipelines/{name}") == path.read_bytes() for name, path in shipped.items())


def test_the_wheel_holds_nothing_of_the_checkout_beside_the_packages(names):
    folders = {name.split("/")[0] for name in names}
    assert {name for name in folders if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_installed_command_starts_outside_of_a_checkout(site, tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "pipelines", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert "rank" in result.stdout and result.returncode == 0
