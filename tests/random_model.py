"""A random model of any shape on the quantised grids, for the native runner; see `native.Weights`."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from backends.engine.quant import QuantTensor, Scheme
from backends.engine.runner import ModelSpec


def spec_of(*, heads: int, kv_heads: int, head_dim: int, hidden: int = 72, context_tokens: int = 1024) -> ModelSpec:
    """Describe two layers whose sizes fit no register: 72 and 104 columns, 99 tokens."""
    return ModelSpec(
        architecture="random",
        layers=2,
        hidden=hidden,
        ffn=104,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=99,
        context_tokens=context_tokens,
        norm_eps=1e-5,
        rope_theta=10000.0,
        tied_head=True,
        attention_bias=True,
        qk_norm=True,
    )


@dataclass(frozen=True, slots=True)
class RandomModel:
    """Matrices of `scheme` and norms around 1, drawn from each tensor's name; the vector `broken` holds a NaN."""

    spec: ModelSpec
    scheme: Scheme
    rope_factors: NDArray[np.float32] | None = None
    broken: str = ""

    def matrix(self, name: str) -> QuantTensor:
        """Draw codes, and scales that keep the sums near 1."""
        rows, columns = self._shape(name.removesuffix(".weight").split(".")[-1])
        random, scheme = np.random.default_rng(crc32(name.encode())), self.scheme
        codes = random.integers(0, 1 << scheme.bits, (rows, columns), dtype=np.uint8)
        spread = 3.5 / (1 << scheme.bits) / np.sqrt(columns)
        scales = (random.uniform(0.5, 1.5, (rows, scheme.groups(columns))) * spread).astype(np.float16)
        minimums = None if scheme.symmetric else (-(2 ** (scheme.bits - 1)) * scales).astype(np.float16)
        return QuantTensor(scheme, codes, scales, minimums)

    def vector(self, name: str) -> NDArray[np.float32]:
        """Draw a norm or a bias."""
        part = name.split(".")[-2]
        count = self.spec.head_dim if part.endswith("_norm") else self._shape(part)[0]
        mean = 0 if name.endswith("bias") else 1
        values = np.random.default_rng(crc32(name.encode())).normal(mean, 0.2, count).astype(np.float32)
        values[:1] = np.nan if name == self.broken else values[:1]
        return values

    def _shape(self, part: str) -> tuple[int, int]:
        spec = self.spec
        q, kv = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        shapes = {"q": (q, spec.hidden), "k": (kv, spec.hidden), "v": (kv, spec.hidden), "o": (spec.hidden, q)}
        shapes |= dict.fromkeys(("gate", "up"), (spec.ffn, spec.hidden)) | {"down": (spec.hidden, spec.ffn)}
        shapes |= {"norm": (spec.hidden, 0), "embed": (spec.vocabulary, spec.hidden)}
        return shapes[part]
