"""A quantised folder is computed from its own pages: no matrix is copied, and the workers of a folder share them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from backends.engine.native import NativeRunner
from backends.engine.packing import Panels
from backends.engine.quant import QuantTensor
from backends.engine.quantised import Quantised
from backends.engine.unpacking import unpack
from backends.engine.weights import open_checkpoint
from backends.kernels.cpu import native_missing
from tests.hostile import step_of, write_quantised
from tests.tiny_checkpoint import write_tiny

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
BATCH = step_of(np.array([1, 5, 3, 2, 9], np.int32))
OTHER = """
import sys
from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.weights import open_checkpoint
with NativeRunner(Quantised(open_checkpoint(sys.argv[1])), kv_blocks=2, threads=1):
    print("ready", flush=True)
    sys.stdin.read()
"""


class Unpacked(Quantised):
    """The same weights as codes, which the runner has to lay out."""

    def matrix(self, name: str) -> QuantTensor:
        """Unpack what the file has laid out."""
        found = super().matrix(name)
        assert isinstance(found, Panels)
        return unpack(found)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Write a quantised model."""
    checkpoint = open_checkpoint(str(write_tiny(tmp_path / "hf", tied=False)))
    write_quantised(checkpoint, tmp_path / "quant")
    return tmp_path / "quant"


def opened(folder: Path, form: type[Quantised] = Quantised) -> NativeRunner:
    """Open a folder as a worker does."""
    return NativeRunner(form(open_checkpoint(str(folder))), kv_blocks=2, threads=1)


def logits(folder: Path, form: type[Quantised] = Quantised) -> np.ndarray:
    """Compute one step of a runner of its own."""
    with opened(folder, form) as runner:
        return runner.forward(BATCH).copy()


def overwrite(weights: Path) -> None:
    """Set all bytes behind the header to the same, in place."""
    with weights.open("r+b") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        file.seek(start)
        file.write(b"\x01" * (weights.stat().st_size - start))


def kib(pid: int, file: Path) -> Counter[str]:
    """Add up what the system says of a process's mappings of a file."""
    totals, is_its = Counter[str](), False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if found := re.fullmatch(r"(\w+):\s+(\d+) kB", line):
            totals[found[1]] += is_its * int(found[2])
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_its = line.endswith(f" {file}")
    return totals


def test_mapped_panels_compute_what_panels_laid_out_from_codes_compute(folder):
    """To the bit: the file holds what the kernels read."""
    assert (logits(folder) == logits(folder, Unpacked)).all()


def test_a_step_reads_the_files_own_pages(folder):
    """What is written into the file of an open model is computed with, so nothing of it was copied."""
    with opened(folder) as runner:
        before = runner.forward(BATCH).copy()
        overwrite(folder / "model.safetensors")
        assert (runner.forward(BATCH) != before).all()


def test_a_file_of_another_writer_may_lie_askew(folder, tmp_path):
    """Matrices off the kernels' alignment are copied as they are, and compute the same."""
    askew = shutil.copytree(folder, tmp_path / "askew") / "model.safetensors"
    whole = askew.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    askew.write_bytes((size + 8).to_bytes(8, "little") + whole[8 : 8 + size] + b" " * 8 + whole[8 + size :])

    assert (logits(askew.parent) == logits(folder)).all()


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells whose pages they are")
def test_two_workers_of_a_folder_share_its_pages(folder):
    """Every page of the weights is the file's and both processes': none is anonymous, none private."""
    command = [sys.executable, "-c", OTHER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other, opened(folder) as runner:
        assert other.stdout.readline() == b"ready\n"
        runner.forward(BATCH)
        found = kib(other.pid, folder / "model.safetensors")

    assert found["Rss"] << 10 >= runner.weight_bytes
    assert found["Shared_Clean"] + found["Shared_Dirty"] == found["Rss"]
    assert found["Anonymous"] == 0
