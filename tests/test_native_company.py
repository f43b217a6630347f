"""What the native runner computes for a sequence depends on that sequence alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.engine.native import NativeRunner
from backends.engine.quant import Scheme
from backends.engine.runner import Batch
from backends.kernels.cpu import KV_BITS, Isa, KvFormat, isa_name, native_missing
from tests.random_model import RandomModel, spec_of

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
# heads, kv heads, head_dim and the format of the cache
Form = tuple[int, int, int, KvFormat]
FORMS = [(*shape, kv_format) for shape in ((1, 1, 8), (8, 1, 24), (6, 2, 20), (9, 3, 40)) for kv_format in KV_BITS]
SEATS, SEAT_BLOCKS = 4, 8
TEXTS = np.random.default_rng(5).integers(0, 99, (6, 120)).astype(np.int32)

# One run of a sequence's tokens in a step: which text, until which token, and where in the cache it lies.
Part = tuple[int, int, int]


def opened(form: Form, isa: Isa) -> NativeRunner:
    """Open a random model of that form."""
    heads, kv_heads, head_dim, kv_format = form
    model = RandomModel(spec_of(heads=heads, kv_heads=kv_heads, head_dim=head_dim), Scheme(5, 32, symmetric=False))
    return NativeRunner(model, kv_blocks=SEATS * SEAT_BLOCKS, threads=2, isa=isa, kv_format=kv_format)


def run(runner: NativeRunner, parts: list[tuple[NDArray[np.int32], int, int]]) -> list[NDArray[np.float32]]:
    """Run one step of (tokens from the start, how many are in the cache already, seat); return each part's rows."""
    counts = [len(tokens) - past for tokens, past, _ in parts]
    starts = np.cumsum([0, *counts], dtype=np.int32)
    batch = Batch(
        tokens=np.concatenate([tokens[past:] for tokens, past, _ in parts]),
        positions=np.concatenate([np.arange(past, len(tokens), dtype=np.int32) for tokens, past, _ in parts]),
        starts=starts,
        lengths=np.array([len(tokens) for tokens, _, _ in parts], np.int32),
        blocks=np.array([np.arange(SEAT_BLOCKS) + SEAT_BLOCKS * seat for *_, seat in parts], np.int32),
        sampled=np.arange(starts[-1], dtype=np.int32),
    )
    return np.split(runner.forward(batch).copy(), starts[1:-1])


def alone(form: Form, isa: Isa, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Compute a sequence token by token in a runner that has done nothing before."""
    with opened(form, isa) as fresh:
        return np.concatenate([run(fresh, [(tokens[: n + 1], n, 0)])[0] for n in range(len(tokens))])


steps = st.lists(
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 120)), min_size=1, max_size=SEATS),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("form", FORMS, ids=str)
@settings(max_examples=6)
@given(history=steps, text=st.integers(0, 5), cuts=st.sets(st.integers(1, 119), max_size=3), data=st.data())
def test_neither_history_nor_company_nor_cuts_change_a_bit(form, isa, history, text, cuts, data) -> None:
    """In any seat, after any steps, beside any others, in any pieces: the logits of the sequence alone."""
    if isa_name(isa) is None:
        pytest.skip(f"this machine has no {isa}")
    with opened(form, isa) as runner:
        for step in history:
            run(runner, [(TEXTS[i, :count], 0, seat) for seat, (i, count) in enumerate(step)])
        rows, past, seat = [], 0, data.draw(st.integers(0, SEATS - 1))
        for cut in [*sorted(cuts), 120]:
            others = [(TEXTS[i, :count], 0, (seat + 1 + n) % SEATS) for n, (i, count) in enumerate(history[0][:3])]
            place = data.draw(st.integers(0, len(others)))
            parts = [*others[:place], (TEXTS[text, :cut], past, seat), *others[place:]]
            rows.append(run(runner, parts)[place])
            past = cut

    np.testing.assert_array_equal(np.concatenate(rows), alone(form, isa, TEXTS[text]))
