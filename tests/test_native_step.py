"""A whole native step is what reference.py computes: norms, rope, KV, attention, SwiGLU and head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.engine.model import TorchRunner
from backends.engine.native import NativeRunner
from backends.engine.quant import Scheme, dequantize
from backends.engine.runner import Batch, ModelSpec, Runner
from backends.kernels import cpu
from tests.random_model import RandomModel, spec_of

pytestmark = pytest.mark.skipif(cpu.native_missing() is not None, reason=str(cpu.native_missing()))
# Activations are rounded to 8 bits before each product, fourteen times in two layers, and KV to fp16: 1.1 to 2.3 % of a
# row's size. One other token among 300 moves it by 7 %, a theta of 9,000 for 10,000 by 12 %.
TOLERANCE = 0.03
HEADS = [(1, 1, 8), (2, 1, 20), (6, 2, 24), (4, 1, 16), (5, 1, 40), (6, 1, 64), (7, 1, 16), (8, 1, 128)]  # GQA 1 … 8
PLAIN = Scheme(8, 32, symmetric=True)
LENGTHS = [1, 2, 15, 16, 17, 255, 256, 257, 1000, 2049, 4097]


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> cpu.Isa:
    """Name each instruction set that this machine has."""
    if cpu.isa_name(request.param) is None:
        pytest.skip(f"this machine has no {request.param}")
    return request.param


@dataclass(frozen=True, slots=True)
class Dense:
    """The same model in fp32, as the reference reads it."""

    model: RandomModel
    rope_factors: None = None

    @property
    def spec(self) -> ModelSpec:
        """Its shape."""
        return self.model.spec

    def has(self, name: str) -> bool:
        """Whether it has an optional tensor; no output projection has a bias here."""
        return self.spec.qk_norm if "_norm" in name else not name.endswith("o.bias")

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return what the codes of a matrix stand for, or a vector."""
        is_matrix = name.endswith(".weight") and "norm" not in name
        return dequantize(self.model.matrix(name)) if is_matrix else self.model.vector(name)


def last_logits(runner: Runner, tokens: NDArray[np.int32], *, chunk: int) -> NDArray[np.float32]:
    """Read a prompt in chunks, its last token by itself; return the logits after it."""
    blocks = np.arange(runner.kv_blocks - 1, -1, -1, dtype=np.int32)[None]
    cuts = [*range(0, len(tokens) - 1, chunk), len(tokens) - 1, len(tokens)]
    for first, end in pairwise(cuts):
        batch = Batch(
            tokens=tokens[first:end],
            positions=np.arange(first, end, dtype=np.int32),
            starts=np.array([0, end - first], np.int32),
            lengths=np.array([end], np.int32),
            blocks=blocks,
            sampled=np.array([end - first - 1], np.int32),
        )
        logits = runner.forward(batch)
    return logits[0].copy()


def error(model: RandomModel, length: int, isa: cpu.Isa, *, block_tokens: int = 16) -> float:
    """Return how far the two are apart, as a share of the logits' size."""
    blocks, tokens = -(-length // block_tokens), np.random.default_rng(length).integers(0, 99, length).astype(np.int32)
    reference = TorchRunner(Dense(model), kv_blocks=blocks, block_tokens=block_tokens, threads=1)
    with NativeRunner(model, kv_blocks=blocks, block_tokens=block_tokens, threads=2, isa=isa) as runner:
        ours = last_logits(runner, tokens, chunk=500)
    exact = last_logits(reference, tokens, chunk=2000)
    return float(np.linalg.norm(ours - exact) / np.linalg.norm(exact))


def model_of(shape: tuple[int, int, int], scheme: Scheme = PLAIN) -> RandomModel:
    """Draw a model with heads, KV heads and head_dim of `shape`."""
    heads, kv_heads, head_dim = shape
    return RandomModel(spec_of(heads=heads, kv_heads=kv_heads, head_dim=head_dim, context_tokens=4200), scheme)


@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_every_sharing_of_heads_attends_as_the_reference(shape: tuple[int, int, int], isa: cpu.Isa) -> None:
    """One to eight query heads to a KV head, head sizes that fill registers and ones that do not."""
    assert error(model_of(shape), 300, isa) < TOLERANCE


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_attends_as_the_reference(length: int, isa: cpu.Isa) -> None:
    """Around the edges of blocks, of chunks of attention, and far beyond them."""
    assert error(model_of((6, 2, 20)), length, isa) < TOLERANCE


@pytest.mark.parametrize("block_tokens", [32, 64, 128])
def test_every_block_size_attends_as_the_reference(block_tokens: int, isa: cpu.Isa) -> None:
    """Whatever the blocks, and in whatever order they lie."""
    assert error(model_of((4, 2, 24)), 530, isa, block_tokens=block_tokens) < TOLERANCE


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_every_grid_steps_as_the_reference(bits: int, group: int, isa: cpu.Isa, *, symmetric: bool) -> None:
    """The merged products, SwiGLU, the embedding's rows and the head on each grid; 72 and 104 columns fit none."""
    assert error(model_of((6, 2, 20), Scheme(bits, group, symmetric=symmetric)), 40, isa) < TOLERANCE


def test_without_biases_and_norms_of_heads_it_steps_as_the_reference(isa: cpu.Isa) -> None:
    """A plain Llama has neither."""
    model = model_of((9, 3, 64))
    plain = replace(model, spec=replace(model.spec, attention_bias=False, qk_norm=False, hidden=96))

    assert error(plain, 300, isa) < TOLERANCE
