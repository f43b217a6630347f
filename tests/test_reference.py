"""The reference ops compute their equations, checked in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backends.kernels.reference import attention, rms_norm, rope, rope_table, swiglu

RNG = np.random.default_rng(1)
# fp32 sums of at most 4,097 terms of size ~1, compared with float64
TOLERANCE = 2e-5


def values(*shape):
    """Draw fp32 values."""
    return torch.from_numpy(RNG.normal(size=shape).astype(np.float32))


def exact_attention(q, k, v):
    """Compute causal attention in fp64, a head and a row at a time."""
    count, heads, dim = q.shape
    out = np.empty((count, heads, dim))
    for row in range(count):
        seen = len(k) - count + row + 1
        for head in range(heads):
            kv = head // (heads // k.shape[1])
            scores = k[:seen, kv] @ q[row, head] / np.sqrt(dim)
            weights = np.exp(scores - scores.max())
            out[row, head] = weights / weights.sum() @ v[:seen, kv]
    return out.reshape(count, -1)


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 4097), (5, 5), (3, 17), (16, 64)])
def test_attention_is_causal_softmax_over_shared_heads(groups, count, length):
    """Each query sees the positions up to its own; `groups` query heads read one kv head."""
    q, k, v = values(count, 2 * groups, 16), values(length, 2, 16), values(length, 2, 16)

    got = attention(q, k, v)

    wanted = exact_attention(*(tensor.double().numpy() for tensor in (q, k, v)))
    np.testing.assert_allclose(got.numpy(), wanted, atol=TOLERANCE)


def test_rms_norm_divides_by_the_root_of_the_mean_square():
    """Each row by itself, scaled by the weight."""
    x, weight = values(7, 33), values(33)

    wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()

    torch.testing.assert_close(rms_norm(x, weight, 1e-5).double(), wanted, atol=TOLERANCE, rtol=0)


def test_rope_turns_each_pair_as_a_complex_number():
    """Value j of a head with value j + half is multiplied by e^(i · position · frequency)."""
    x, positions = values(5, 3, 8), torch.tensor([0, 1, 7, 100, 8000])
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])

    got = rope(x, *rope_table(positions, frequencies))

    turns = torch.exp(1j * positions.double()[:, None, None] * frequencies.double())
    wanted = torch.complex(x[..., :4].double(), x[..., 4:].double()) * turns
    # the angle itself is fp32 as in transformers: 8000 radians carry an error of 5e-4
    torch.testing.assert_close(got.double(), torch.cat([wanted.real, wanted.imag], -1), atol=1e-3, rtol=0)


def test_swiglu_gates_the_second_half_by_the_first():
    """Y = gate · sigmoid(gate) · up."""
    x = values(4, 12)
    gate, up = x[:, :6], x[:, 6:]

    torch.testing.assert_close(swiglu(x), gate * torch.sigmoid(gate) * up)
