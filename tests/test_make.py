"""`make` installs what is pinned, or says in two lines what to do and leaves nothing half-made behind."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Give a folder with just the files that installing reads."""
    for name in ("pyproject.toml", "setup.py", "constraints.txt", ".ci/venv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def install_offline(clone: Path, goal: str = "serve", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a goal of the installation where no index can be reached."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    return subprocess.run(
        [clone / ".ci/venv", goal],
        env=kept | OFFLINE | {"PYTHON": sys.executable} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_without_an_index_it_says_what_to_do_and_leaves_no_venv(clone: Path) -> None:
    """A first installation that cannot download ends in two clear lines; what an interrupted run left is gone too."""
    (clone / ".venv/lib/half-written").mkdir(parents=True)

    run = install_offline(clone)

    assert run.returncode == 1
    assert "could not install the build tool" in run.stderr
    assert "PIP_INDEX_URL" in run.stderr
    assert not (clone / ".venv").exists()


def test_a_good_venv_outlives_a_failed_update(clone: Path) -> None:
    """An update that cannot download leaves the .venv that worked before, with its stamp no newer than it was."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    stamp = clone / ".venv/.serve"
    stamp.touch()
    before = stamp.stat().st_mtime_ns

    run = install_offline(clone)

    assert run.returncode == 1
    assert (clone / ".venv/bin/python").exists()
    assert stamp.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("ci", "words"),
    [
        ("", ["no C++ compiler: install g++", "torch computes, several times slower", "could not install torch"]),
        ("true", ["no C++ compiler: install g++", "Install g++, then run the same command again"]),
    ],
)
def test_without_a_compiler_torch_is_installed_and_the_way_out_told(
    clone: Path, tmp_path: Path, ci: str, words: list[str]
) -> None:
    """Somebody's machine gets torch, here from no index; a check of changes wants the compiler."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    ignored = shutil.ignore_patterns("_build", "__pycache__")
    shutil.copytree(ROOT / "backends/kernels", clone / "backends/kernels", ignore=ignored)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "rm", "touch"):
        (tools / name).symlink_to(shutil.which(name) or name)

    run = install_offline(clone, "native", PATH=str(tools), CXX="", CI=ci)

    assert run.returncode == 1
    assert [word for word in words if word not in run.stdout + run.stderr] == []
    assert not (clone / ".venv/.native").exists()


def test_a_missing_python_is_named(clone: Path) -> None:
    """Without Python 3.11 the message says which one was tried and how to name another."""
    run = install_offline(clone, PYTHON="/nowhere/python3")

    assert run.returncode == 1
    assert "tried /nowhere/python3" in run.stderr
    assert "make PYTHON=" in run.stderr


def test_every_verb_is_explained_by_help() -> None:
    """`make help` lists every verb that a person types."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None

    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert [verb for verb in phony[1].split() if f"make {verb} " not in listed] == []


def test_every_dependency_is_pinned() -> None:
    """Each requirement of pyproject.toml has an exact version in constraints.txt, torch a CPU build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"], *chain(*extras)]

    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))

    assert pins["torch"] == "2.13.0"
    assert [name for name in wanted if re.split(r"[<>=\[]", name)[0] not in pins] == []
