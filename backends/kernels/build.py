"""Compiles the CPU library with the machine's C++ compiler: `python -m backends.kernels.build`.

Refuses to know what the library computes. The file's name carries a hash of its sources and of the command, so that a
stale library is never loaded. `TIDEGATE_KERNEL_FLAGS` adds flags (`make sanitize` does): such a library is another one,
found only while the variable says the same.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-pthread")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
_QUIET = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")  # GCC 12 warns inside its own avx512fintrin.h


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, *os.environ.get("TIDEGATE_KERNEL_FLAGS", "").split())


def _units() -> dict[str, tuple[str, ...]]:
    """Return the translation units of this machine with the flags each needs beyond the common ones."""
    units: dict[str, tuple[str, ...]] = {"cpu.cpp": (), "cpu/portable.cpp": ("-O2",)}
    if platform.machine() in {"x86_64", "AMD64"}:
        units |= {"cpu/avx2.cpp": _AVX2, "cpu/avx512.cpp": (*_AVX512, *_QUIET)}
    return units


def compiler_missing() -> str | None:
    """Say why the library cannot be compiled here, or None."""
    return None if _compiler() else "no C++ compiler: install g++ or clang++, or set CXX"


def library_path() -> Path:
    """Where the library of exactly these sources lies once it is built."""
    digest = hashlib.sha256(repr((_flags(), _units(), platform.machine())).encode())
    for source in sorted([_HERE / "cpu.cpp", *(_HERE / "cpu").iterdir()]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return _HERE / "_build" / f"tidegate-cpu-{digest.hexdigest()[:16]}.so"


def build() -> Path:
    """Compile the library unless it is there; return its path. Raises RuntimeError with the compiler's words."""
    target = library_path()
    if target.exists():
        return target
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(str(compiler_missing()))
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        linked = Path(folder) / target.name
        _finish(linked, [compiler, *_flags(), "-shared", *_compile(compiler, Path(folder)), "-o", str(linked)])
        linked.replace(target)
    if _flags() == _FLAGS:
        _remove_all_but(target)
    return target


def _remove_all_but(current: Path) -> None:
    for stale in current.parent.glob("tidegate-cpu-*.so"):
        if stale != current:
            stale.unlink(missing_ok=True)


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")


def _compile(compiler: str, folder: Path) -> list[str]:
    """Compile all units at once; each takes seconds."""
    running = []
    for name, extra in _units().items():
        target = folder / (name.replace("/", "-") + ".o")
        command = [compiler, *_flags(), *extra, "-c", str(_HERE / name), "-o", str(target)]
        running.append((target, command, _start(command)))
    for target, command, process in running:
        _check(target, command, process)
    return [str(target) for target, _, _ in running]


def _finish(target: Path, command: list[str]) -> None:
    _check(target, command, _start(command))


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)  # noqa: S603 - our own compiler command


def _check(target: Path, command: list[str], process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{target.name} was not built; {' '.join(command)} said:\n{errors}")


def main() -> int:
    """Build, and say where the library lies or what is missing."""
    try:
        sys.stdout.write(f"{build()}\n")
    except (OSError, RuntimeError) as exc:
        sys.stderr.write(f"tidegate: the CPU library was not built: {exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
