"""llama.cpp as a peer: prebuilt by node-llama-cpp, driven by llamacpp_peer.cpp, all of it in build/bench/llamacpp.

The binaries come from npm, and the headers of exactly their version from the source bundle that comes with them, so
that nothing but our 150 lines is compiled. The libraries choose the code for this processor when they load.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("build/bench/llamacpp").absolute()
VERSION = "3.22.1"  # of node-llama-cpp; it carries llama.cpp v0.5.0
PLATFORMS = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
# llama.h: LLAMA_FTYPE_MOSTLY_*
FTYPES = {"Q4_0": 2, "Q8_0": 7}


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The built peer."""

    program: Path
    libraries: Path

    def command(self, model: Path, threads: int) -> list[str]:
        """Give the command that serves `model` on standard input."""
        return [str(self.program), str(self.libraries), str(model), str(threads)]

    def requantised(self, model: Path, kind: str) -> Path:
        """Give the model in another format, made by llama.cpp itself from the shipped file."""
        target = FOLDER / f"{model.stem}.{kind}.gguf"
        if not target.exists():
            partial = target.with_suffix(".part")
            _run([str(self.program), str(self.libraries), str(model), str(partial), str(FTYPES[kind])])
            partial.rename(target)
        return target

    @property
    def install_bytes(self) -> int:
        """What a user needs on disk: the libraries, with the code for every processor of the kind."""
        return sum(file.stat().st_size for file in self.libraries.glob("*.so"))


def ready() -> LlamaCpp:
    """Fetch and build what is missing."""
    name = PLATFORMS.get(platform.machine()) or sys.exit(f"bench: no prebuilt llama.cpp for {platform.machine()}")
    libraries = _unpacked(f"@node-llama-cpp/{name}") / "bins" / name
    headers = _headers(_unpacked("node-llama-cpp"))
    program, source = FOLDER / "peer", Path(__file__).with_name("llamacpp_peer.cpp")
    if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
        linked = [str(next(libraries.glob(f"{lib}.*so"))) for lib in ("libllama", "libggml", "libggml-base")]
        includes = [f"-I{headers / 'include'}", f"-I{headers / 'ggml' / 'include'}"]
        compiler = ["g++", "-O2", "-std=c++17", *includes, str(source), "-o", str(program)]
        _run([*compiler, *linked, f"-Wl,-rpath,{libraries}"])
    return LlamaCpp(program, libraries)


def _unpacked(package: str) -> Path:
    """Download one npm package without its dependencies and scripts."""
    target = FOLDER / package.replace("/", "-").lstrip("@")
    if not target.exists():
        if shutil.which("npm") is None:
            sys.exit("bench: npm is needed to fetch llama.cpp (Debian: apt install npm)")
        FOLDER.mkdir(parents=True, exist_ok=True)
        archive = _run(["npm", "pack", "--silent", "--ignore-scripts", f"{package}@{VERSION}"], FOLDER).split()[-1]
        partial = target.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(FOLDER / archive) as tar:
            tar.extractall(partial, filter="data")
        (FOLDER / archive).unlink()
        partial.rename(target)
    return target / "package"


def _headers(package: Path) -> Path:
    target = FOLDER / "source"
    if not target.exists():
        partial = target.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        _run(["git", "clone", "--quiet", str(package / "llama" / "gitRelease.bundle"), str(partial)])
        partial.rename(target)
    return target


def _run(command: list[str], folder: Path | None = None) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: {' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
