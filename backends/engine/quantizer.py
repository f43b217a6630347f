"""Quantising a checkpoint from end to end: study, search, tell, write. Refuses to know the rules behind each."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import orjson
import torch
from rich.console import Console

from backends.engine import artifact_writer, dense, evaluate, recipes, report, search, study, texts
from backends.engine.artifact import ROPE_FACTORS, WEIGHTS
from backends.engine.bars import bars_on
from backends.engine.cores import Progress
from backends.engine.quant import QuantTensor
from backends.engine.quantize import Order
from backends.engine.weights import Checkpoint, expected_shapes, open_checkpoint
from backends.engine.work import Work, open_work

CALIBRATION_WINDOWS, HELD_OUT_WINDOWS = 32, 8
INFEASIBLE = 3


@dataclass(frozen=True, slots=True)
class Found:
    """What a run learnt and what came of it."""

    learnt: study.Study
    outcome: search.Outcome
    is_met: bool
    scale: report.Scale
    text: str
    against: str


def quantize(order: Order, console: Console | None = None) -> int:
    """Quantise as ordered; returns the exit status. Raises CheckpointError and QuantError."""
    console = console or Console()
    checkpoint = open_checkpoint(order.source)
    text = texts.from_file(order.calibration) if order.calibration else texts.shipped()
    work = open_work(order.out / ".work", _key(order, checkpoint, text))
    with _watching(console) as watch:
        found = _find(order, (checkpoint, text), work, watch)
    _tell(order, found, console)
    if not found.is_met:
        return INFEASIBLE
    _write(order, checkpoint, found)
    work.forget()
    size = (order.out / WEIGHTS).stat().st_size
    console.print(f"written to {order.out}: {size} bytes of weights, {size / found.scale.fp16_bytes:.2%} of fp16")
    return 0


def scale_of(checkpoint: Checkpoint) -> report.Scale:
    """Count the bytes of a model's weights in fp16, and those of vectors, names and alignment in a written file."""
    shapes = dict(expected_shapes(checkpoint.spec))
    vectors = sum(4 * shape[0] for shape in shapes.values() if len(shape) == 1)
    fp16_bytes = sum(2 * math.prod(shape) for shape in shapes.values())
    return report.Scale(fp16_bytes, artifact_writer.header_bytes(shapes) + vectors)


def _find(order: Order, given: tuple[Checkpoint, texts.Texts], work: Work, watch: study.Watch) -> Found:
    checkpoint, text = given
    scale, model = scale_of(checkpoint), dense.open_dense(checkpoint)
    calibration = torch.from_numpy(texts.windows(checkpoint.tokenizer, text.calibration, CALIBRATION_WINDOWS))
    held_out = torch.from_numpy(texts.windows(checkpoint.tokenizer, text.held_out, HELD_OUT_WINDOWS))
    learnt = study.study(model, calibration, order.seed, work, watch)
    original, against = evaluate.reference_of(model, held_out), reference(order.source, checkpoint)
    if order.recipe is not None:
        outcome = search.follow(learnt, original, recipes.open_recipe(order.recipe), work, watch)
        return Found(learnt, outcome, True, scale, text.origin, against)
    wishes = search.Wishes(scale.budget(order.target_share), order.min_accuracy, order.activations)
    outcome = search.search(learnt, original, wishes, work, watch)
    return Found(learnt, outcome, outcome.is_met(wishes), scale, text.origin, against)


def reference(source: str, checkpoint: Checkpoint) -> str:
    """Say what a quantised model is compared with: weights that lie on a coarse grid already are easily kept."""
    kinds = Counter(checkpoint.raw(name)[0] for name, shape in expected_shapes(checkpoint.spec) if len(shape) == 2)
    stored = ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
    return f"{source} computed in fp32, its matrices being stored as {stored}"


def _key(order: Order, checkpoint: Checkpoint, text: texts.Texts) -> dict[str, Any]:
    """Return all that a stored result depends on."""
    return {
        "version": 1,
        "checkpoint": checkpoint.digest,
        "calibration": hashlib.sha256(text.calibration.encode()).hexdigest(),
        "windows": CALIBRATION_WINDOWS,
        "seed": order.seed,
    }


def _tell(order: Order, found: Found, console: Console) -> None:
    """Print the tables; write report.json and frontier.svg."""
    outcome = found.outcome
    console.print(report.sensitivity_table(found.learnt.options))
    if outcome.best is not None:
        console.print(report.classes_table(outcome.best.rounded))
        for line in _verdicts(found, outcome.best):
            console.print(line)
    console.print(f"judged against {found.against}\ntext: {found.text}")
    for line in [] if found.is_met else infeasible(order, found):
        console.print(line)
    (order.out / "report.json").write_bytes(orjson.dumps(_as_json(order, found), option=orjson.OPT_INDENT_2))
    (order.out / "frontier.svg").write_text(_plot(order, found))


def infeasible(order: Order, found: Found) -> list[str]:
    """Say that both limits cannot be met, and the nearest points that can."""
    outcome, share = found.outcome, found.scale.share
    told = [
        f"cannot have both: at most {order.target_share:.1%} of fp16, and an accuracy of {order.min_accuracy} or more"
    ]
    if outcome.best is not None:
        told.append(
            f"  nearest within the size: accuracy {outcome.best.quality(order.activations).accuracy:.4f} (measured)"
        )
    else:
        least = outcome.points[0]
        told.append(
            f"  the smallest there is: {share(least.nbytes):.1%} of fp16, accuracy {least.accuracy:.4f} (expected)"
        )
    if (point := outcome.smallest(order.min_accuracy)) is not None:
        told.append(f"  nearest with the accuracy: {share(point.nbytes):.1%} of fp16 (expected)")
    else:
        most = outcome.points[-1]
        told.append(f"  the most exact there is: accuracy {most.accuracy:.4f} at {share(most.nbytes):.1%} (expected)")
    return told


def _verdicts(found: Found, best: search.Attempt) -> list[str]:
    return [
        f"{found.scale.share(best.nbytes):.2%} of fp16, {name} activations: accuracy {quality.accuracy:.4f} = "
        f"1 / perplexity ratio {quality.ratio:.4f}, KL {quality.kl:.4f}, same likeliest token {quality.top1:.1%}, "
        f"on {quality.tokens} held-out tokens"
        for name, quality in (("fp32", best.fp32), ("int8", best.int8))
    ]


def _as_json(order: Order, found: Found) -> dict[str, Any]:
    outcome, share = found.outcome, found.scale.share
    return {
        "target_share": order.target_share,
        "min_accuracy": order.min_accuracy,
        "is_met": found.is_met,
        "text": found.text,
        "against": found.against,
        "fp16_bytes": found.scale.fp16_bytes,
        "chosen": None if outcome.best is None else chosen(found.scale, outcome.best),
        "sensitivity": report.sensitivity(found.learnt.options),
        "frontier": [{"share": share(point.nbytes), "accuracy": point.accuracy} for point in outcome.points],
        "nearest": [] if found.is_met else infeasible(order, found),
    }


def chosen(scale: report.Scale, best: search.Attempt) -> dict[str, Any]:
    """Give size, quality and every unit's scheme as JSON has them."""
    return {
        "share": scale.share(best.nbytes),
        "quality": {"fp32": asdict(best.fp32), "int8": asdict(best.int8)},
        "schemes": {unit: str(scheme) for unit, scheme in best.schemes.items()},
    }


def _plot(order: Order, found: Found) -> str:
    share, best = found.scale.share, found.outcome.best
    curve = [(share(point.nbytes), point.accuracy) for point in found.outcome.points]
    markers = (
        [report.Marker("this model", share(best.nbytes), best.quality(order.activations).accuracy)] if best else []
    )
    return report.frontier_svg(curve, markers, report.Marker("", order.target_share, order.min_accuracy))


def _write(order: Order, checkpoint: Checkpoint, found: Found) -> None:
    best = found.outcome.best
    assert best is not None  # noqa: S101 - a search that found nothing is not met
    matrices: dict[str, QuantTensor] = {}
    for unit, names in dense.units_of(checkpoint.spec).items():
        parts = study.split(best.rounded[unit], dense.rows_of(checkpoint.spec)[unit])
        matrices.update(zip(names, parts, strict=True))
    shapes = dict(expected_shapes(checkpoint.spec))
    vectors = {name: checkpoint.tensor(name) for name, shape in shapes.items() if len(shape) == 1}
    if checkpoint.rope_factors is not None:
        vectors[ROPE_FACTORS] = checkpoint.rope_factors
    artifact_writer.copy_tokenizer(checkpoint.source.files, order.out)
    model = artifact_writer.Quantised(checkpoint.spec, matrices, vectors, order.activations)
    told = chosen(found.scale, best) | {"text": found.text, "against": found.against}
    artifact_writer.write(order.out, model, told)


@contextmanager
def _watching(console: Console) -> Iterator[study.Watch]:
    """Show a bar for every stage; where nobody looks, such as in a log, a line as each begins."""
    if not console.is_terminal:
        yield lambda stage: _begun(console, stage)
        return
    with bars_on(console) as progress:

        def watch(stage: str) -> Progress:
            task = progress.add_task(stage, total=1.0)

            def told(share: float) -> None:
                progress.update(task, completed=share)

            return told

        yield watch


def _begun(console: Console, stage: str) -> Progress:
    console.print(stage)
    return lambda _: None
