"""Compiles the CPU library into the wheel where there is a C++ compiler; everything else stands in pyproject.toml."""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))

from backends.kernels import build


@functools.cache
def library() -> Path | None:
    """Compile the library; without it everything works too, so a failure is told and nothing more."""
    try:
        return build.build()
    except (OSError, RuntimeError) as exc:
        sys.stderr.write(f"tidegate: the CPU library is left out, torch will have to compute: {exc}\n")
        return None


class BuildWithLibrary(build_py):
    """Puts the library beside its sources."""

    def run(self) -> None:
        """Copy it where the wheel is put together; an editable install finds it where it was compiled."""
        super().run()
        compiled = library()
        if compiled is not None and not self.editable_mode:
            folder = Path(self.build_lib, "backends/kernels/_build")
            shutil.rmtree(folder, ignore_errors=True)  # what an earlier build left
            folder.mkdir(parents=True)
            shutil.copy(compiled, folder)


class WithLibrary(Distribution):
    """What is built is machine code when the library is in it."""

    def has_ext_modules(self) -> bool:
        """Say so; the wheel's name and its layout follow from it."""
        return library() is not None


class WheelForEveryPython(bdist_wheel):
    """The library links nothing of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """Name the machine alone."""
        python, abi, machine = super().get_tag()
        return (python, abi, machine) if self.root_is_pure else ("py3", "none", machine)


setup(distclass=WithLibrary, cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": WheelForEveryPython})
