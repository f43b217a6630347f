"""NativeRunner computes the model that the file holds, in however many steps and threads."""

from __future__ import annotations

import numpy as np
import pytest

from backends.api import Call, Message
from backends.engine.model import TorchRunner
from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.runner import Batch, Runner
from backends.engine.weights import Checkpoint
from backends.kernels.cpu import KV_BITS, KvFormat, NativeError, isa_name, native_missing

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
TEXTS = ("Why is the sky blue?", "Write a haiku about the sea.", "def add(a, b):", "1, 2, 3, 4,")


def opened(checkpoint: Checkpoint, **settings) -> NativeRunner:
    """Open the embedded model in the native library."""
    return NativeRunner(Quantised(checkpoint), kv_blocks=64, **({"threads": 2} | settings))


@pytest.fixture(scope="module")
def runner(checkpoint: Checkpoint):
    """Open it once."""
    with opened(checkpoint) as runner:
        yield runner


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    """Give a few chats as tokens."""
    calls = [Call("c", "m", messages=(Message("user", text),)) for text in TEXTS]
    return [checkpoint.tokenizer.prompt(call)[0] for call in calls]


def logits(runner: Runner, *sequences: list[int], past: int = 0) -> np.ndarray:
    """Compute all tokens of each sequence from `past` on in one step; return every row."""
    parts = [sequence[past:] for sequence in sequences]
    starts = np.cumsum([0, *map(len, parts)], dtype=np.int32)
    batch = Batch(
        tokens=np.array([token for part in parts for token in part], np.int32),
        positions=np.concatenate([np.arange(past, len(s), dtype=np.int32) for s in sequences]),
        starts=starts,
        lengths=np.array([len(sequence) for sequence in sequences], np.int32),
        blocks=np.arange(8 * len(sequences), dtype=np.int32).reshape(-1, 8),
        sampled=np.arange(starts[-1], dtype=np.int32),
    )
    return runner.forward(batch).copy()


def test_it_computes_what_the_reference_computes(runner: NativeRunner, checkpoint: Checkpoint, prompts) -> None:
    """Activations in 8 bits are all that differs: 0.993 of the tokens stay, correlation 0.9998."""
    reference = TorchRunner(checkpoint, kv_blocks=64, block_tokens=16, threads=1)

    ours, exact = logits(runner, *prompts), logits(reference, *prompts)

    assert (ours.argmax(1) == exact.argmax(1)).mean() > 0.97
    assert np.corrcoef(ours.ravel(), exact.ravel())[0, 1] > 0.999


def test_chunks_change_no_bit(runner: NativeRunner, prompts) -> None:
    """A prompt read in two steps gives what it gives in one."""
    whole = logits(runner, prompts[0])
    logits(runner, prompts[0][:20])

    rest = logits(runner, prompts[0], past=20)

    assert (rest == whole[20:]).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(runner: NativeRunner, checkpoint: Checkpoint, prompts, threads: int) -> None:
    """The work is cut by rows, never within a sum."""
    with opened(checkpoint, threads=threads) as other:
        assert (logits(other, *prompts) == logits(runner, *prompts)).all()


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_instruction_set_computes_the_same_model(runner: NativeRunner, checkpoint, prompts, isa) -> None:
    """The integer sums are exact; where floats round a step apart an 8-bit activation flips, and that carries on."""
    if isa_name(isa) is None:
        pytest.skip(f"this machine has no {isa}")
    with opened(checkpoint, isa=isa) as other:
        assert np.corrcoef(logits(other, prompts[0]).ravel(), logits(runner, prompts[0]).ravel())[0, 1] > 0.999


def test_greedy_is_the_argmax_of_the_logits(runner: NativeRunner, prompts) -> None:
    """Without the logits being handed out."""
    count = len(prompts[0])
    one = Batch(
        tokens=np.array(prompts[0], np.int32),
        positions=np.arange(count, dtype=np.int32),
        starts=np.array([0, count], np.int32),
        lengths=np.array([count], np.int32),
        blocks=np.arange(8, dtype=np.int32)[None],
        sampled=np.array([count - 1], np.int32),
    )

    assert runner.greedy(one)[0] == runner.forward(one)[0].argmax()


@pytest.mark.parametrize("kv_format", KV_BITS)
def test_a_copied_block_reads_as_the_original(checkpoint: Checkpoint, prompts, kv_format: KvFormat) -> None:
    """After copy_block the copy holds the same keys and values, whatever becomes of the original."""
    with opened(checkpoint, kv_format=kv_format) as runner:
        whole = logits(runner, prompts[0])
        for block in range(8):
            runner.copy_block(block, block + 8)
        logits(runner, prompts[1])

        rest = logits(runner, prompts[2], prompts[0], past=20)

    assert (rest[len(prompts[2]) - 20 :] == whole[20:]).all()


@pytest.mark.parametrize(("kv_format", "least"), [("int8", 0.998), ("int4", 0.94)])
def test_a_cache_in_codes_computes_nearly_the_same(runner, checkpoint, prompts, kv_format: KvFormat, least) -> None:
    """The bounds lie a few times the measured loss away; `make bench-fidelity` measures it on text."""
    with opened(checkpoint, kv_format=kv_format) as other:
        likeness = np.corrcoef(logits(other, *prompts).ravel(), logits(runner, *prompts).ravel())[0, 1]

    assert least < likeness < 1


def test_a_runner_that_is_closed_says_so(checkpoint: Checkpoint, prompts) -> None:
    """Instead of crashing; closing twice is fine."""
    other = opened(checkpoint)
    other.close()
    other.close()

    with pytest.raises(NativeError, match="closed"):
        logits(other, prompts[0])
