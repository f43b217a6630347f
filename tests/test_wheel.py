"""What a user installs: the wheel's contents, and that it starts in a venv that has nothing of this repository."""

import os
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = """
[[models]]
name = "echo"
[[models.releases]]
name = "stable"
source = "echo"
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of what is committed to be shipped, without asking any index."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("README.md", "LICENSE", "pyproject.toml", "backends", "batching", "gateway", "sessioncache", "tests"):
        (source / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(build, check=True, env=os.environ | {"PIP_NO_INDEX": "1"})
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into an empty venv, which borrows this venv's dependencies but not its editable tidegate."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    into = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(into, check=True)
    packages = next(folder.glob("lib/python3*/site-packages"))
    (packages / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


def tidegate(bin_folder: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command far from the repository."""
    return subprocess.run(
        [bin_folder / "tidegate", *args], cwd=bin_folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: Path) -> None:
    """Every file of the packages ships, tests and bench never do."""
    listing = ["git", "ls-files", "-co", "--exclude-standard", "backends", "batching", "gateway", "sessioncache"]
    listed = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in listed if (ROOT / name).exists()}

    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert shipped == ours


def test_the_wheel_carries_its_licence(wheel: Path) -> None:
    """The licence's full text comes with what it covers."""
    licences = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("licenses/LICENSE")]

    assert len(licences) == 1


def test_the_installed_command_is_this_version_from_the_wheel(bin_folder: Path) -> None:
    """`tidegate --version` starts from the installed wheel and says the version of pyproject.toml."""
    where = [bin_folder / "python", "-P", "-c", "import gateway; print(gateway.__file__)"]

    run = tidegate(bin_folder, "--version")

    assert run.returncode == 0, run.stderr
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] in run.stdout
    assert str(bin_folder.parent) in subprocess.run(where, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shipped", [True, False], ids=["gateway.toml", "small"])
def test_the_installed_command_checks_a_config(bin_folder: Path, tmp_path: Path, *, shipped: bool) -> None:
    """`tidegate check` accepts the shipped gateway.toml and a config of five lines."""
    small = tmp_path / "small.toml"
    small.write_text(CONFIG)

    run = tidegate(bin_folder, "check", ROOT / "gateway.toml" if shipped else small)

    assert run.returncode == 0, run.stderr


def test_the_installed_command_refuses_a_wrong_config(bin_folder: Path, tmp_path: Path) -> None:
    """`tidegate check` exits with 2 and names the key and its neighbour."""
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(CONFIG + '\n[server]\nlisen = "127.0.0.1:0"\n')

    run = tidegate(bin_folder, "check", wrong)

    assert run.returncode == 2
    assert "lisen" in run.stdout + run.stderr
    assert "listen" in run.stdout + run.stderr
