"""What the machine allows: measured reads and products a second, and what a step of the model needs of both."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.weights import Checkpoint, expected_shapes


@dataclass(frozen=True, slots=True)
class Work:
    """What one step needs: bytes of weights once, products a token, and KV bytes of each token of context."""

    weight_bytes: int
    layer_macs: int
    head_macs: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The best that the probe saw."""

    read_gb_s: float
    gmac_s: float

    def decode_bound(self, work: Work, batch: int, context: int) -> float:
        """Tokens a second if reading and multiplying overlapped perfectly and nothing else took time."""
        read_s = (work.weight_bytes + batch * context * work.kv_bytes_per_token) / (self.read_gb_s * 1e9)
        return batch / max(read_s, batch * (work.layer_macs + work.head_macs) / (self.gmac_s * 1e9))

    def prefill_bound(self, work: Work) -> float:
        """Tokens a second of a long prompt, of which only the last needs the head; attention not counted."""
        return self.gmac_s * 1e9 / work.layer_macs


def work_of(checkpoint: Checkpoint) -> Work:
    """Count a checkpoint's work as the native runner does it."""
    matrices = {name: shape[0] * shape[1] for name, shape in expected_shapes(checkpoint.spec) if len(shape) == 2}
    embed = matrices["embed.weight"]
    layers = sum(size for name, size in matrices.items() if name.startswith("layers."))
    with NativeRunner(Quantised(checkpoint), kv_blocks=1, threads=1) as runner:
        return Work(runner.weight_bytes, layers, embed, checkpoint.spec.kv_bytes_per_token)


def probe(threads: int) -> Machine:
    """Compile and run probe.cpp."""
    source, program = Path(__file__).with_name("probe.cpp"), Path("build/bench/probe").absolute()
    program.parent.mkdir(parents=True, exist_ok=True)
    compiler = ["g++", "-O3", "-march=native", "-std=c++17", "-pthread", str(source), "-o", str(program)]
    subprocess.run(compiler, check=True)
    told = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True).stdout
    return Machine(*map(float, told.split()))
