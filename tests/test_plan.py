"""`tidegate plan`: what the workers will need, before any is started, against what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.engine.footprint import footprint
from backends.engine.machine import memory_bytes
from backends.engine.native import NativeRunner
from backends.engine.planning import Settings
from backends.engine.quantised import Quantised
from backends.engine.weights import Checkpoint
from backends.kernels.cpu import KvFormat, native_missing
from tests.conftest import MINILM, SMOLLM2
from tests.serving import TIDEGATE

MEMINFO = "MemTotal:        1000 kB\nMemFree:          10 kB\n"
RELEASE = '[[models]]\nname = "m"\n[[models.releases]]\nsource = "{}"\n'


def planned(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run `tidegate plan` on a configuration."""
    file = folder / "gateway.toml"
    file.write_text(text)
    return subprocess.run([TIDEGATE, "plan", file], capture_output=True, text=True, timeout=60, check=False)


def test_a_plan_says_what_fits(tmp_path: Path) -> None:
    """Weights, KV, context and sequences of each release, and a verdict that is the exit status."""
    text = '[worker]\nrunner = "torch"\n[batching]\nkv_memory = "256MiB"\n' + RELEASE.format(SMOLLM2)

    run = planned(tmp_path, text)

    assert run.returncode == 0, run.stderr
    assert "m/stable: 1 worker, computing in torch\n" in run.stdout
    assert "  weights             513 MiB\n" in run.stdout
    assert "364 blocks of 16 tokens, 46,080 bytes a token" in run.stdout
    assert "  longest context     5,824 tokens, of 8,192 that the model can\n" in run.stdout
    assert "5,824: 5 of 1,024, 1 of 4,096, 1 of 5,824 (max_batch = 32)" in run.stdout
    assert ": fits\n" in run.stdout


def test_a_plan_beyond_the_machine_exits_1(tmp_path: Path) -> None:
    """The verdict says what to lower."""
    run = planned(tmp_path, '[batching]\nkv_memory = "1TiB"\n' + RELEASE.format(SMOLLM2))

    assert run.returncode == 1
    assert "does not fit: lower [batching] kv_memory, replicas" in run.stdout


def test_an_encoder_has_no_cache_to_plan(tmp_path: Path) -> None:
    """What makes vectors holds weights and one batch."""
    run = planned(tmp_path, RELEASE.format(MINILM))

    assert run.returncode == 0, run.stderr
    assert "m/stable: 1 worker, an encoder\n  weights             86 MiB\n" in run.stdout


def test_a_release_that_cannot_start_is_told_and_the_others_planned(tmp_path: Path) -> None:
    """One missing file does not hide the rest."""
    other = RELEASE.format(SMOLLM2).replace('"m"', '"other"')

    run = planned(tmp_path, RELEASE.format("missing.gguf") + other)

    assert run.returncode == 1
    assert "m/stable: cannot start:" in run.stdout
    assert "missing.gguf: there is no such file or folder" in run.stdout
    assert "other/stable: 1 worker" in run.stdout


def test_planning_loads_no_torch(tmp_path: Path) -> None:
    """It answers in well under a second, on machines without torch too."""
    file = tmp_path / "gateway.toml"
    file.write_text(RELEASE.format(SMOLLM2))
    code = f"import sys, gateway.cli; gateway.cli.main(['plan', {str(file)!r}]); print('torch' in sys.modules)"

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.endswith("\nFalse\n")


@pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
@pytest.mark.parametrize(("kv_format", "token_bytes"), [("fp16", 23_040), ("int8", 12_240), ("int4", 7_200)])
def test_what_is_planned_is_what_is_loaded(checkpoint: Checkpoint, kv_format: KvFormat, token_bytes: int) -> None:
    """To the byte, padding and scales included; vectors are all that the library keeps besides."""
    settings = Settings(
        model="m", source=SMOLLM2, runner="native", max_batch=8, token_budget=64, block_tokens=16,
        kv_memory_bytes=64 << 20, kv_format=kv_format, max_waiting=1,
    )  # fmt: skip

    planned = footprint(settings)

    with NativeRunner(Quantised(checkpoint), kv_blocks=planned.plan.blocks, kv_format=kv_format) as runner:
        assert planned.weight_bytes - runner.weight_bytes == 4 * 576 * (2 * 30 + 1)
        assert planned.kv_bytes == runner.kv_bytes == planned.plan.blocks * 16 * token_bytes


def test_torch_refuses_a_cache_in_codes(tmp_path: Path) -> None:
    """Rather than keep fp32 where int8 was asked for."""
    text = '[worker]\nrunner = "torch"\n[batching]\nkv_format = "int8"\n'

    run = planned(tmp_path, text + RELEASE.format(SMOLLM2))

    assert run.returncode == 1
    assert 'm/stable: cannot start: m: [batching] kv_format is "int8", which only the native library has' in run.stdout


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 1000 * 1024),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "5000\n"}, 5000),
        ({"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 1000 * 1024),
        ({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/memory.max": "7000\n"}, 7000),
        ({"proc/self/cgroup": "4:memory:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "6000"}, 6000),
        ({"proc/self/cgroup": "4:cpu:/a\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "6000"}, 1000 * 1024),
    ],
)
def test_memory_is_what_the_control_groups_leave(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """Version 2 and version 1, our own group and those around it; inside a container the outermost is ours."""
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    assert memory_bytes(tmp_path) == expected
