"""What is learnt of a model before schemes are chosen, and rounding it once they are. Refuses to know limits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from backends.engine.allocate import Choice
from backends.engine.calibrate import Moments, input_moments, output_moments
from backends.engine.cores import Progress, parallel
from backends.engine.dense import Dense, rows_of, units_of
from backends.engine.gptq import feedback_of, round_with_feedback
from backends.engine.quant import QuantTensor, Scheme, dequantize, quantize
from backends.engine.recipes import Activations
from backends.engine.sensitivity import lookup_choices, product_choices, tied_choices
from backends.engine.work import Work

Watch = Callable[[str], Progress]
"""Opens a stage by name; the shares done of it are told to what this returns."""

GRADIENT_SHARE = 4
"""Every fourth window is also run backwards: output moments are diagonal and settle on less text."""


@dataclass(frozen=True, slots=True)
class Study:
    """A model, its moments by unit (`head` too where it is tied), and what each scheme would cost in each unit."""

    model: Dense
    moments: Mapping[str, Moments]
    options: Mapping[str, Sequence[Choice]]


def study(model: Dense, windows: Tensor, seed: int, work: Work, watch: Watch) -> Study:
    """Run calibration text through the model and price every scheme in every unit."""
    forward, backward, pricing = watch("inputs"), watch("gradients"), watch("sensitivity")
    inputs = work.tensors("inputs", lambda: input_moments(model, windows, forward))
    outputs = work.tensors("outputs", lambda: output_moments(model, windows[::GRADIENT_SHARE], seed, backward))
    forward(1)
    backward(1)
    moments = {unit: Moments(inputs[unit], outputs[unit]) for unit in inputs}
    priced = parallel(lambda unit: _priced(model, moments, unit), list(units_of(model.spec)), pricing)
    return Study(model, moments, priced)


def round_units(learnt: Study, schemes: Mapping[str, Scheme], work: Work, progress: Progress) -> dict[str, QuantTensor]:
    """Round every unit by its scheme; units that were rounded so before come from `work`."""

    def one(unit: str) -> QuantTensor:
        scheme = schemes[unit]
        parts = work.tensors(f"{unit}@{scheme}", lambda: _parts(_rounded(learnt, unit, scheme)))
        minimums = parts["minimums"].numpy() if "minimums" in parts else None
        return QuantTensor(scheme, parts["codes"].numpy(), parts["scales"].numpy(), minimums)

    return parallel(one, list(schemes), progress)


def candidate(model: Dense, rounded: Mapping[str, QuantTensor], activations: Activations) -> Dense:
    """Return the model with rounded units in the place of its own."""
    matrices = {unit: torch.from_numpy(dequantize(tensor)) for unit, tensor in rounded.items()}
    return model.with_matrices(matrices, activations)


def split(tensor: QuantTensor, rows: Sequence[int]) -> Iterator[QuantTensor]:
    """Cut a unit into its matrices."""
    start = 0
    for count in rows:
        part = slice(start, start + count)
        minimums = None if tensor.minimums is None else tensor.minimums[part]
        yield QuantTensor(tensor.scheme, tensor.codes[part], tensor.scales[part], minimums)
        start += count


def _priced(model: Dense, moments: Mapping[str, Moments], unit: str) -> list[Choice]:
    weight, rows = model.matrices[unit], rows_of(model.spec)[unit]
    if unit != "embed":
        return product_choices(weight, rows, moments[unit], feedback_of(moments[unit].inputs))
    lookups = lookup_choices(weight, moments["embed"])
    if not model.spec.tied_head:
        return lookups
    return tied_choices(lookups, product_choices(weight, rows, moments["head"], feedback_of(moments["head"].inputs)))


def _rounded(learnt: Study, unit: str, scheme: Scheme) -> QuantTensor:
    """Round a unit; the embedding alone has no inputs to make good for its errors, unless it is the head as well."""
    weight = learnt.model.matrices[unit]
    if unit == "embed" and not learnt.model.spec.tied_head:
        return quantize(weight.numpy(), scheme, learnt.moments[unit].outputs.numpy())
    product = "head" if unit == "embed" else unit
    return round_with_feedback(weight, scheme, feedback_of(learnt.moments[product].inputs))


def _parts(tensor: QuantTensor) -> dict[str, Tensor]:
    parts = {"codes": tensor.codes, "scales": tensor.scales}
    if tensor.minimums is not None:
        parts["minimums"] = tensor.minimums
    return {name: torch.from_numpy(part) for name, part in parts.items()}
