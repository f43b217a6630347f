"""How rotary frequencies are stretched so that a model reads beyond the positions it was trained on.

A frequency theta^(-2j / head_dim) is divided by its factor; YaRN also scales cosines and sines. All equal to what
`transformers` computes. Refuses to know files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backends.engine.runner import ModelSpec

Factors = NDArray[np.float32]
Kind = Literal["linear", "llama3", "yarn"]
KINDS: tuple[Kind, ...] = ("linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Stretch:
    """One kind of stretching with its numbers, named as Hugging Face's rope_parameters name them.

    `original_context` is the context that the model was trained with; linear needs none.
    """

    kind: Kind
    factor: float
    original_context: float = 0.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def factors(self, theta: float, head_dim: int) -> Factors:
        """Return the divisor of each frequency, [head_dim / 2]."""
        match self.kind:
            case "linear":
                return np.full(head_dim // 2, self.factor, np.float32)
            case "llama3":
                return self._llama3(theta, head_dim // 2)
            case "yarn":
                return self._yarn(theta, head_dim)

    @property
    def scale(self) -> float:
        """What cosines and sines are multiplied with: attention grows sharper as there is more to choose from."""
        if self.kind != "yarn":
            return 1.0
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor

    def _llama3(self, theta: float, half: int) -> Factors:
        """Divide slow frequencies by `factor`, keep fast ones, and blend between the two wavelengths of Llama 3."""
        wavelength = 2 * math.pi * np.power(theta, np.arange(half) / half)
        span = self.high_freq_factor - self.low_freq_factor
        return self._blended((self.original_context / wavelength - self.low_freq_factor) / span)

    def _yarn(self, theta: float, head_dim: int) -> Factors:
        """Divide frequencies of less than `beta_slow` turns in the original context, keep those of `beta_fast`."""
        low, high = (
            head_dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        return self._blended(1 - (np.arange(head_dim // 2) - low) / max(high - low, 0.001))

    def _blended(self, kept: NDArray[np.floating]) -> Factors:
        share = np.clip(kept, 0, 1)
        return np.asarray(1 / (share + (1 - share) / self.factor), np.float32)


def factors_of(stretch: Stretch | None, spec: ModelSpec) -> Factors | None:
    """Return the divisors for a model's frequencies, None when they are plain."""
    return stretch.factors(spec.rope_theta, spec.head_dim) if stretch else None


def stretch_of(said: Mapping[str, object], *, theta: float, context: int) -> Stretch | None:
    """Read Hugging Face's rope_parameters or rope_scaling; ValueError says what is wrong with it."""
    kind = said.get("rope_type", said.get("type", "default"))
    if kind == "default":
        return None
    if kind not in KINDS:
        raise ValueError(f"rope scaling {kind!r} is not supported; {', '.join(KINDS)} are")
    stretch = Stretch(
        kind,
        factor=_number(said, "factor"),
        original_context=_number(said, "original_max_position_embeddings", float(context)),
        low_freq_factor=_number(said, "low_freq_factor", 1.0),
        high_freq_factor=_number(said, "high_freq_factor", 4.0),
        beta_fast=_number(said, "beta_fast", 32.0),
        beta_slow=_number(said, "beta_slow", 1.0),
        truncate=said.get("truncate") is not False,
        attention_factor=_attention_factor(said),
    )
    checked(stretch, theta=theta)
    return stretch


def checked(stretch: Stretch, *, theta: float) -> None:
    """Refuse numbers that the equations cannot take."""
    if not math.isfinite(theta) or theta <= 1:
        raise ValueError(f"a rope base of {theta:g} cannot be stretched; it must be more than 1")
    if stretch.kind == "llama3" and stretch.high_freq_factor <= stretch.low_freq_factor:
        raise ValueError("high_freq_factor must be more than low_freq_factor")


def _attention_factor(said: Mapping[str, object]) -> float | None:
    """Return what DeepSeek's two `mscale`s or `attention_factor` itself say, None when the factor decides."""
    if said.get("attention_factor") is not None:
        return _number(said, "attention_factor")
    if not (said.get("mscale") and said.get("mscale_all_dim")):
        return None
    growth = 0.1 * max(math.log(_number(said, "factor")), 0.0)
    return (growth * _number(said, "mscale") + 1) / (growth * _number(said, "mscale_all_dim") + 1)


def _number(said: Mapping[str, object], key: str, default: float | None = None) -> float:
    value = said.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e12:
        raise ValueError(f"rope scaling needs {key} as a positive number, not {value!r}")
    return float(value)
