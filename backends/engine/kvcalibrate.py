"""Calibrate the KV codecs to a model and measure what each profile costs, without torch: a minute for a small model.

Refuses to know who asks. Text for calibration and text for measuring share no topic; see texts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.engine import texts
from backends.engine.fingerprint import fingerprint
from backends.engine.kvbasis import Basis, basis_of
from backends.engine.kvjudge import Judge
from backends.engine.kvprofile import Measured, Profile, ProfileName, Shape, write_profile
from backends.engine.kvstatistics import Moments, Rotation, query_norms, value_weights
from backends.engine.kvtransform import TransformCodec
from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.runner import ModelSpec
from backends.engine.texts import Texts
from backends.engine.weights import Checkpoint

Progress = Callable[[str, float], None]

STEPS: dict[ProfileName, float] = {"safe": 0.08, "balanced": 0.15, "dense": 0.3}
"""One step of the symbols, of the root mean square of the weighed values."""

WINDOWS, HELD_OUT = 7, 8
GROUP_CHANNELS = 256
BLOCK = 16
NOTHING = Measured(0, 1.0, 0.0, 1.0, 1.0, 1.0)


def calibrate(
    checkpoint: Checkpoint,
    folder: Path,
    progress: Progress,
    *,
    text: Texts | None = None,
    held_out: int = HELD_OUT,
) -> list[Profile]:
    """Calibrate every profile of a model, stretched if it is, measure it, and write it into `folder`; return them.

    `progress` is told the phase and how much of it is done; `text` is by default what ships with Python; `held_out` is
    how many windows of 1,024 tokens are measured on. Raises CheckpointError.
    """
    text = text or texts.shipped()
    with opened(checkpoint) as runner:
        bases = list(_bases(runner, checkpoint, text.calibration, progress))
        judge = Judge(runner, texts.windows(checkpoint.tokenizer, text.held_out, held_out, Judge.TOKENS), progress)
        name_of_model = fingerprint(checkpoint, "fp16", folder)
        profiles = []
        for at, (name, step) in enumerate(STEPS.items()):
            profile = profile_of(name, name_of_model, checkpoint.spec, bases, step)
            profile = replace(profile, measured=judge.measure(TransformCodec(profile)))
            write_profile(folder, profile)
            profiles.append(profile)
            progress(name, (at + 1) / len(STEPS))
    return profiles


def opened(checkpoint: Checkpoint) -> NativeRunner:
    """Open the model with room for one window and its restored twin."""
    return NativeRunner(Quantised(checkpoint), kv_blocks=2 * -(-Judge.TOKENS // BLOCK), block_tokens=BLOCK)


def group_heads(spec: ModelSpec) -> int:
    """Return how many KV heads share a transform: as many as divide them and stay within its width."""
    fitting = (n for n in range(1, spec.kv_heads + 1) if spec.kv_heads % n == 0 and n * spec.head_dim <= GROUP_CHANNELS)
    return max(fitting, default=1)


def profile_of(name: ProfileName, model: str, spec: ModelSpec, bases: list[Basis], step: float) -> Profile:
    """Make a profile of one step. K's errors have one size in all layers, V's are of their layer's own size."""
    steps = step * sizes_of(spec, bases)
    transforms = tuple(basis.transform(float(size)) for basis, size in zip(bases, steps, strict=True))
    shape = Shape(spec.layers, spec.kv_heads, spec.head_dim, group_heads(spec))
    return Profile(name, model, shape, transforms, NOTHING)


def sizes_of(spec: ModelSpec, bases: list[Basis]) -> NDArray[np.float64]:
    """Return the unit of each basis's step."""
    powers = np.array([basis.power for basis in bases]).reshape(spec.layers, 2, -1)
    sizes = np.empty_like(powers)
    layer_sizes = np.sqrt(powers.mean(2))
    sizes[:, 0] = np.exp(np.log(np.maximum(layer_sizes[:, 0], 1e-30)).mean())
    sizes[:, 1] = np.maximum(layer_sizes[:, 1], 1e-30)[:, None]
    return sizes.reshape(-1)


def _bases(runner: NativeRunner, checkpoint: Checkpoint, text: str, progress: Progress) -> Iterator[Basis]:
    """Yield the axes by layer, K before V, and group of heads."""
    spec, heads, rotation = checkpoint.spec, group_heads(checkpoint.spec), Rotation(checkpoint)
    moments, norms = Moments.empty(spec), query_norms(checkpoint)
    windows = texts.windows(checkpoint.tokenizer, text, WINDOWS)
    for at, window in enumerate(windows):
        moments.add(runner, window.astype(np.int32), rotation, norms)
        progress("reading", (at + 1) / len(windows))
    for layer in range(spec.layers):
        key_weights = np.stack([rotation.averaged(moment) for moment in moments.queries[layer]])
        for part, weights in enumerate((key_weights / moments.count, value_weights(checkpoint, layer))):
            mean, covariance = moments.covariance(part, layer)
            for first in range(0, spec.kv_heads, heads):
                within = slice(first * spec.head_dim, (first + heads) * spec.head_dim)
                yield basis_of(mean[within], covariance[within, within], _diagonal(weights[first : first + heads]))
        progress("axes", (layer + 1) / spec.layers)


def _diagonal(parts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the heads' matrices on the diagonal of one."""
    heads, width, _ = parts.shape
    whole = np.zeros((heads * width, heads * width))
    for head, part in enumerate(parts):
        whole[head * width : (head + 1) * width, head * width : (head + 1) * width] = part
    return whole
