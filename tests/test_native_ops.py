"""The native products are those of the matrices that the codes stand for; what is not finite shows."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.engine.native import NativeRunner
from backends.engine.packing import pack
from backends.engine.quant import QuantTensor, Scheme, dequantize
from backends.engine.runner import Batch
from backends.kernels import cpu
from tests.random_model import RandomModel, spec_of

pytestmark = pytest.mark.skipif(cpu.native_missing() is not None, reason=str(cpu.native_missing()))
SCHEMES = [Scheme(bits, group, symmetric=even) for bits in (4, 5, 6, 8) for group in (32, 64, 128) for even in (0, 1)]
# fp32 sums of 200 columns of size ~1, and those of codes of 8 bits of size ~128 against a minimum that cancels them
TOLERANCE = 2e-5
RNG = np.random.default_rng(11)


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> cpu.Isa:
    """Name each instruction set that this machine has."""
    if cpu.isa_name(request.param) is None:
        pytest.skip(f"this machine has no {request.param}")
    return request.param


def drawn(scheme: Scheme, rows: int, columns: int) -> QuantTensor:
    """Draw a matrix whose values are about as large as 1 / sqrt(columns)."""
    codes = RNG.integers(0, 1 << scheme.bits, (rows, columns), dtype=np.uint8)
    scales = RNG.uniform(0.5, 1, (rows, scheme.groups(columns))) / columns**0.5 / 2 ** (scheme.bits - 1)
    minimums = None if scheme.symmetric else (-(2 ** (scheme.bits - 1)) * scales).astype(np.float16)
    return QuantTensor(scheme, codes, scales.astype(np.float16), minimums)


def product(tensor: QuantTensor, x: NDArray[np.float32], isa: cpu.Isa) -> tuple[NDArray[np.float32], ...]:
    """Return the library's product and what it saw of x."""
    panels, scheme = pack(tensor), tensor.scheme
    rows, columns = tensor.codes.shape
    address, even = panels.ctypes.data, scheme.symmetric
    weights = cpu.Linear(address, panels.nbytes, None, rows, columns, scheme.bits, scheme.group, not even, 0)
    return cpu.matmul(weights, x, isa=isa)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_product_is_that_of_the_matrix_the_codes_stand_for(scheme: Scheme, isa: cpu.Isa) -> None:
    """For every grid, any number of rows, and columns that fill neither a chunk nor a group."""
    for count, rows, columns in ((1, 37, 200), (5, 16, 72), (13, 37, 33), (29, 5, 576)):
        tensor, x = drawn(scheme, rows, columns), RNG.normal(size=(count, columns)).astype(np.float32)

        out, seen = product(tensor, x, isa)

        np.testing.assert_allclose(out, seen.astype(float) @ dequantize(tensor).astype(float).T, atol=TOLERANCE)


def test_a_row_is_rounded_by_its_chunks(isa: cpu.Isa) -> None:
    """To 1/254 of the highest of 32 columns, and 254 times finer where they stand out of their row."""
    x = RNG.normal(size=(7, 320)).astype(np.float32)
    x[:, 64] = 50

    _, seen = product(drawn(Scheme(4, 32), 16, 320), x, isa)

    highest = abs(x).reshape(7, 10, 32).max(-1)
    highest[:, 2] /= 254
    assert (abs(seen - x).reshape(7, 10, 32).max(-1) <= highest / 254 * 1.001).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_gives_nan_and_the_others_what_they_are(isa: cpu.Isa, wrong: float) -> None:
    """No number stands in for it."""
    tensor, x = drawn(Scheme(8, 32, symmetric=True), 40, 96), RNG.normal(size=(4, 96)).astype(np.float32)
    right, _ = product(tensor, x, isa)
    x[2, 17] = wrong

    out, _ = product(tensor, x, isa)

    assert np.isnan(out[2]).all()
    np.testing.assert_array_equal(out[[0, 1, 3]], right[[0, 1, 3]])


@pytest.mark.parametrize("kv_format", cpu.KV_BITS)
def test_logits_of_a_broken_model_are_nan_and_its_greedy_token_is_minus_one(
    isa: cpu.Isa, kv_format: cpu.KvFormat
) -> None:
    """A NaN in layer 0's values reaches the answer instead of becoming text."""
    model = RandomModel(spec_of(heads=2, kv_heads=1, head_dim=24), Scheme(8, 32), broken="layers.0.attention.v.bias")
    batch = Batch(*(np.array(part, np.int32) for part in ([5, 6], [0, 1], [0, 2], [2], [[0]], [1])))
    with NativeRunner(model, kv_blocks=1, threads=1, isa=isa, kv_format=kv_format) as runner:
        assert np.isnan(runner.forward(batch)).all()
        assert runner.greedy(batch)[0] == -1


def test_a_closed_border_refuses_what_does_not_fit() -> None:
    """A matrix of no known grid is an error in words."""
    weights = cpu.Linear(ctypes.addressof(ctypes.create_string_buffer(8)), 8, None, 16, 32, 7, 32, 0, 0)

    with pytest.raises(cpu.NativeError, match="does not fit"):
        cpu.matmul(weights, np.zeros((1, 32), np.float32))
