"""What a codec must know of a model's keys, values and queries, gathered as the native runner reads text.

Refuses to know codecs. Torch is not needed: K and V come out of the blocks of the cache, queries out of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backends.engine.kvchunk import RUN_TOKENS
from backends.engine.kvtransform import SINKS
from backends.engine.native import NativeRunner, rope_tables
from backends.engine.runner import Batch, ModelSpec
from backends.engine.weights import Checkpoint

Matrix = NDArray[np.float64]
DISTANCES = 64


def batch_of(tokens: NDArray[np.int32], past: int, block_tokens: int, *, all_rows: bool) -> Batch:
    """Plan a step of one sequence whose blocks are 0, 1, 2 and so on."""
    count = len(tokens)
    length = past + count
    return Batch(
        tokens=np.ascontiguousarray(tokens, np.int32),
        positions=np.arange(past, length, dtype=np.int32),
        starts=np.array([0, count], np.int32),
        lengths=np.array([length], np.int32),
        blocks=np.arange(-(-length // block_tokens), dtype=np.int32)[None],
        sampled=np.arange(0 if all_rows else count - 1, count, dtype=np.int32),
    )


def read_cache(runner: NativeRunner, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return K, still rotated, and V [layers, count, kv_heads, head_dim] of the tokens in blocks 0, 1, 2 and so on."""
    spec, blocks = runner.spec, -(-count // runner.block_tokens)
    width = -(-spec.head_dim // RUN_TOKENS) * RUN_TOKENS
    halves = runner.cache[:, :blocks].view(np.float16).reshape(spec.layers, blocks, spec.kv_heads, -1, 2, 16 * width)
    across, along = halves[..., 0, :], halves[..., 1, :]
    keys = across.reshape(*across.shape[:-1], width, 16).transpose(0, 1, 3, 5, 2, 4)
    values = along.reshape(*along.shape[:-1], 16, width).transpose(0, 1, 3, 4, 2, 5)
    shape = (spec.layers, -1, spec.kv_heads, width)
    return tuple(part.reshape(shape)[:, :count, :, : spec.head_dim].astype(np.float32) for part in (keys, values))  # type: ignore[return-value]


class Rotation:
    """The rotation of keys by their positions, and queries' second moments averaged over it."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._cosines, self._sines = rope_tables(checkpoint.spec, checkpoint.rope_factors)

    def undone(self, keys: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn the keys [layers, T, heads, head_dim] of positions 0 … T - 1 back to position 0."""
        count, half = keys.shape[1], keys.shape[-1] // 2
        cosines, sines = self._cosines[:count, None], self._sines[:count, None]
        square = cosines**2 + sines**2  # not 1 where YaRN scales
        a, b = keys[..., :half], keys[..., half:]
        return np.concatenate([(a * cosines + b * sines) / square, (b * cosines - a * sines) / square], -1)

    def averaged(self, moment: Matrix) -> Matrix:
        """Return the mean over distances d of R(d)^T moment R(d): how much errors of a key before rotation weigh."""
        most = len(self._cosines) - 1
        distances = np.unique(np.geomspace(1, most, DISTANCES).astype(int))
        turned = []
        for distance in distances:
            c, s = (np.diag(table[distance].astype(np.float64)) for table in (self._cosines, self._sines))
            turn = np.block([[c, -s], [s, c]])
            turned.append(turn.T @ moment @ turn)
        mean: Matrix = np.mean(turned, axis=0)
        return mean


@dataclass(slots=True)
class Moments:
    """Sums over tokens: [layers, channels] and [layers, channels, channels] of K and V, of queries by KV head."""

    count: int
    means: NDArray[np.float64]
    squares: NDArray[np.float64]
    queries: NDArray[np.float64]

    @classmethod
    def empty(cls, spec: ModelSpec) -> Moments:
        """Begin with no token."""
        channels = spec.kv_heads * spec.head_dim
        return cls(
            0,
            np.zeros((2, spec.layers, channels)),
            np.zeros((2, spec.layers, channels, channels)),
            np.zeros((spec.layers, spec.kv_heads, spec.head_dim, spec.head_dim)),
        )

    def add(
        self, runner: NativeRunner, tokens: NDArray[np.int32], rotation: Rotation, norms: NDArray[np.float32]
    ) -> None:
        """Read a window of tokens; the first ones are kept out, as the codec keeps them apart."""
        spec = runner.spec
        queries = runner.queries(batch_of(tokens, 0, runner.block_tokens, all_rows=False))[:, SINKS:]
        keys, values = read_cache(runner, len(tokens))
        self.count += len(tokens) - SINKS
        for at, part in enumerate((rotation.undone(keys), values)):
            flat = part[:, SINKS:].reshape(spec.layers, -1, spec.kv_heads * spec.head_dim)
            self.means[at] += flat.sum(1)
            self.squares[at] += flat.transpose(0, 2, 1) @ flat
        grouped = _normed(queries, spec, norms).reshape(
            spec.layers, -1, spec.kv_heads, spec.heads // spec.kv_heads, spec.head_dim
        )
        heads = grouped.transpose(0, 2, 1, 3, 4).reshape(spec.layers, spec.kv_heads, -1, spec.head_dim)
        self.queries += heads.transpose(0, 1, 3, 2) @ heads

    def covariance(self, part: int, layer: int) -> tuple[NDArray[np.float64], Matrix]:
        """Return mean and covariance of K (0) or V (1) in a layer."""
        mean = self.means[part, layer] / self.count
        return mean, self.squares[part, layer] / self.count - np.outer(mean, mean)


def query_norms(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """Return the weights of the norm of queries [layers, head_dim]; empty where the model has none."""
    spec = checkpoint.spec
    if not spec.qk_norm:
        return np.empty((spec.layers, 0), np.float32)
    return np.stack([checkpoint.tensor(f"layers.{at}.attention.q_norm.weight") for at in range(spec.layers)])


def _normed(queries: NDArray[np.float32], spec: ModelSpec, norms: NDArray[np.float32]) -> NDArray[np.float32]:
    if not norms.size:
        return queries
    rms = np.sqrt(np.mean(queries**2, -1, keepdims=True) + spec.norm_eps)
    normed: NDArray[np.float32] = queries / rms * norms[:, None, None]
    return normed


def value_weights(checkpoint: Checkpoint, layer: int) -> NDArray[np.float64]:
    """Return the metric of V's errors [kv_heads, head_dim, head_dim]: what W_o makes of them, over a head's queries."""
    spec = checkpoint.spec
    out = checkpoint.tensor(f"layers.{layer}.attention.o.weight").astype(np.float32)
    heads = out.reshape(spec.hidden, spec.kv_heads, -1, spec.head_dim).transpose(1, 0, 2, 3)
    flat = heads.reshape(spec.kv_heads, -1, spec.head_dim)
    return (flat.transpose(0, 2, 1) @ flat).astype(np.float64)
