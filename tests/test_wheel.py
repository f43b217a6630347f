"""What a user installs: the wheel's contents, and that it starts in a venv that has nothing of this repository."""

import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from backends.kernels.build import compiler_missing

ROOT = Path(__file__).parent.parent
CONFIG = """
[[models]]
name = "echo"
[[models.releases]]
name = "stable"
source = "echo"
"""


LIBRARY = re.compile(r"backends/kernels/_build/tidegate-cpu-[0-9a-f]{16}\.so")


def built(source: Path, out: Path, *without: str, **environment: str) -> Path:
    """Build the wheel from a copy of what is committed to be shipped, without asking any index.

    A library that `make build` has compiled comes along, as it would in a checkout.
    """
    for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, source / name)
    for name in ("backends", "batching", "gateway", "sessioncache", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", *without))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(build, check=True, env=os.environ | {"PIP_NO_INDEX": "1"} | environment)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as this machine can."""
    return built(tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel"))


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

    libraries = {name for name in shipped if LIBRARY.fullmatch(name)}
    assert shipped - libraries == ours
    assert len(libraries) == (compiler_missing() is None)


@pytest.mark.skipif(compiler_missing() is not None, reason=str(compiler_missing()))
def test_an_installed_worker_computes_natively(bin_folder: Path) -> None:
    """The wheel's own library loads, far from the repository and its build folder."""
    code = "from backends.kernels.cpu import library, native_missing; print(native_missing(), library()._name)"

    run = subprocess.run([bin_folder / "python", "-P", "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.startswith("None ")
    assert str(bin_folder.parent) in run.stdout


def test_without_a_compiler_the_wheel_is_for_every_machine(tmp_path: Path) -> None:
    """It holds no library, says so in its name, and is built all the same."""
    source, out, nothing = (tmp_path / name for name in ("source", "out", "nothing"))
    for folder in (source, out, nothing):
        folder.mkdir()

    wheel = built(source, out, "_build", PATH=str(nothing), CXX="")

    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any(LIBRARY.fullmatch(name) for name in zipfile.ZipFile(wheel).namelist())


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
