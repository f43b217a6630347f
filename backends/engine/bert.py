"""BERT's encoder in numpy, fp32: token ids to one vector a token. Refuses to know files, text and pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensor = Callable[[str], Array]
_HIDDEN_SCORE = np.float32(-1e9)  # e to the power of it is 0 in fp32


@dataclass(frozen=True, slots=True)
class BertSpec:
    """The shape of an encoder; `positions` is the longest text that it has places for."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    positions: int
    vocabulary: int
    types: int
    norm_eps: float


@dataclass(frozen=True, slots=True)
class _Norm:
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, row-wise."""

    weight: Array
    bias: Array
    eps: float

    def __call__(self, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        normed: Array = centred / np.sqrt(variance + np.float32(self.eps)) * self.weight + self.bias
        return normed


@dataclass(frozen=True, slots=True)
class _Linear:
    """y = x @ weight.T + bias; the weight is kept transposed."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1]) @ self.weight  # one large product instead of one a text
        return (flat + self.bias).reshape(*x.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: _Linear
    out: _Linear
    norm: _Norm
    up: _Linear
    down: _Linear
    last_norm: _Norm


class Bert:
    """An encoder with its weights."""

    def __init__(self, spec: BertSpec, tensor: Tensor) -> None:
        self.spec = spec
        # Every text is the first of its pair: what says so is the same for all tokens.
        self._words = tensor("embeddings.word_embeddings.weight")
        self._places = (
            tensor("embeddings.position_embeddings.weight") + tensor("embeddings.token_type_embeddings.weight")[0]
        )
        self._norm = _norm(tensor, "embeddings.LayerNorm", spec.norm_eps)
        self._layers = [_layer(tensor, f"encoder.layer.{i}", spec.norm_eps) for i in range(spec.layers)]

    def forward(self, ids: NDArray[np.int64], is_there: NDArray[np.bool_]) -> Array:
        """Return [texts, tokens, hidden] for [texts, tokens] ids; where `is_there` is false, a row is filled up."""
        x = self._norm(self._words[ids] + self._places[: ids.shape[1]])
        hidden = np.where(is_there, np.float32(0), _HIDDEN_SCORE)[:, None, None, :]
        for layer in self._layers:
            x = layer.norm(x + layer.out(self._attend(layer.qkv(x), hidden)))
            x = layer.last_norm(x + layer.down(_gelu(layer.up(x))))
        return x

    def _attend(self, qkv: Array, hidden: Array) -> Array:
        """softmax(q @ k.T / sqrt(d)) @ v for each head; every token sees every one that is there."""
        texts, tokens, _ = qkv.shape
        heads = qkv.reshape(texts, tokens, 3, self.spec.heads, -1).transpose(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(q.shape[-1])) + hidden
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed: Array = (weights @ v).swapaxes(1, 2).reshape(texts, tokens, -1)
        return mixed


def _gelu(x: Array) -> Array:
    """Return x * (1 + erf(x / sqrt(2))) / 2, with erf by Abramowitz and Stegun's 7.1.26: off by 1.5e-7 at most."""
    z = np.abs(x) * np.float32(0.7071067811865476)
    t: Array = np.reciprocal(1 + np.float32(0.3275911) * z)
    series: Array = np.full_like(t, 1.061405429)
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(coefficient)
    tail = series * t * np.exp(-z * z)
    active: Array = np.float32(0.5) * x * np.where(x < 0, tail, 2 - tail)
    return active


def shapes(spec: BertSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor that an encoder of this shape must have."""
    for name, rows in (("word", spec.vocabulary), ("position", spec.positions), ("token_type", spec.types)):
        yield f"embeddings.{name}_embeddings.weight", (rows, spec.hidden)
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}" for i in range(spec.layers)):
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        sizes = dict.fromkeys(square, (spec.hidden, spec.hidden))
        sizes |= {"intermediate.dense": (spec.ffn, spec.hidden), "output.dense": (spec.hidden, spec.ffn)}
        for name, size in sizes.items():
            yield f"{layer}.{name}.weight", size
            yield f"{layer}.{name}.bias", size[:1]
    for name in norms:
        yield f"{name}.weight", (spec.hidden,)
        yield f"{name}.bias", (spec.hidden,)


def _layer(tensor: Tensor, name: str, eps: float) -> _Layer:
    parts = [_linear(tensor, f"{name}.attention.self.{part}") for part in ("query", "key", "value")]
    return _Layer(
        qkv=_Linear(np.hstack([part.weight for part in parts]), np.hstack([part.bias for part in parts])),
        out=_linear(tensor, f"{name}.attention.output.dense"),
        norm=_norm(tensor, f"{name}.attention.output.LayerNorm", eps),
        up=_linear(tensor, f"{name}.intermediate.dense"),
        down=_linear(tensor, f"{name}.output.dense"),
        last_norm=_norm(tensor, f"{name}.output.LayerNorm", eps),
    )


def _linear(tensor: Tensor, name: str) -> _Linear:
    return _Linear(np.ascontiguousarray(tensor(f"{name}.weight").T), tensor(f"{name}.bias"))


def _norm(tensor: Tensor, name: str, eps: float) -> _Norm:
    return _Norm(tensor(f"{name}.weight"), tensor(f"{name}.bias"), eps)
