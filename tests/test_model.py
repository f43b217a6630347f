"""TorchRunner computes what transformers computes, alone and in any company.

Tolerances, on logits of size ~20: both sides compute in fp32, but the sums of a product of 576 to 1,536 terms may run
in another order (other kernels for other row counts, merged matrices), and 30 layers carry that on: 1e-3 is 25 times
what was measured. Greedy tokens must be equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from backends.api import Call, Message
from backends.engine.model import TorchRunner
from backends.engine.runner import Batch
from backends.engine.weights import open_checkpoint

LOGITS_TOLERANCE = 1e-3
ANSWER = 64
BLOCK = 16
PROMPTS = (
    "What is gravity?",
    "Write a Python function that reverses a list.",
    "Name three rivers in Europe and say one sentence about each of them. " * 4,
    "Übersetze ins Deutsche: The weather is nice today. 😀",
    "2, 4, 6, 8, ... What comes next, and why?",
)


@dataclass
class Sequence:
    """One greedy answer on its way."""

    prompt: list[int]
    arrives: int = 0
    answer: list[int] = field(default_factory=list)
    done: int = 0
    table: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)

    @property
    def tokens(self):
        """Give the prompt and what was answered so far."""
        return self.prompt + self.answer


def run(runner, sequences, budget=40):
    """Answer all greedily: decoding first, then chunks of prompts while the step's budget lasts."""
    free = list(np.random.default_rng(3).permutation(runner.kv_blocks))
    step = 0
    while waiting := [s for s in sequences if len(s.answer) < ANSWER]:
        here = sorted((s for s in waiting if s.arrives <= step), key=lambda s: len(s.tokens) - s.done)
        forward(runner, plan(here, budget), free)
        step += 1


def plan(sequences, budget):
    """Choose chunks for one step: decodes and prompts by age, within the budget."""
    chosen = []
    for sequence in sequences:
        count = min(budget, len(sequence.tokens) - sequence.done)
        if count:
            chosen.append((sequence, count))
        budget -= count
    return chosen


def forward(runner, chosen, free):
    """Compute one step of the chosen chunks."""
    for sequence, count in chosen:
        while len(sequence.table) * BLOCK < sequence.done + count:
            sequence.table.append(free.pop())
    batch, finished = as_batch(chosen)
    logits = runner.forward(batch)
    for row, sequence in zip(logits, finished, strict=True):
        sequence.logits.append(row)
        sequence.answer.append(int(row.argmax()))


def as_batch(chosen):
    """Lay the chosen chunks out as the runner wants them."""
    counts = [count for _, count in chosen]
    starts = np.cumsum([0, *counts], dtype=np.int32)
    tokens = [t for s, count in chosen for t in s.tokens[s.done : s.done + count]]
    positions = [p for s, count in chosen for p in range(s.done, s.done + count)]
    blocks = np.full((len(chosen), max(len(s.table) for s, _ in chosen)), -1, np.int32)
    for row, (sequence, count) in enumerate(chosen):
        blocks[row, : len(sequence.table)] = sequence.table
        sequence.done += count
    ends = [(s, end - 1) for (s, _), end in zip(chosen, starts[1:], strict=True) if s.done == len(s.tokens)]
    lengths = np.array([s.done for s, _ in chosen], np.int32)
    sampled = np.array([end for _, end in ends], np.int32)
    batch = Batch(np.array(tokens, np.int32), np.array(positions, np.int32), starts, lengths, blocks, sampled)
    return batch, [s for s, _ in ends]


def logits_of(runner, ids):
    """Return the logits of every position of one sequence, computed in one step."""
    count = len(ids)
    table = np.arange(-(-count // BLOCK), dtype=np.int32)[None]
    rows = np.arange(count, dtype=np.int32)
    whole = np.array([count], np.int32)
    return runner.forward(Batch(np.array(ids, np.int32), rows, np.array([0, count], np.int32), whole, table, rows))


@pytest.fixture(scope="module")
def runner(checkpoint):
    """Load the embedded model once."""
    return TorchRunner(checkpoint, kv_blocks=256, block_tokens=BLOCK, threads=1)


@pytest.fixture(scope="module")
def prompts(checkpoint):
    """Give the prompts as tokens."""
    return [checkpoint.tokenizer.prompt(Call("c", "m", messages=(Message("user", p),)))[0] for p in PROMPTS]


@pytest.fixture(scope="module")
def alone(runner, prompts):
    """Every prompt answered by itself."""
    sequences = [Sequence(prompt) for prompt in prompts]
    for sequence in sequences:
        run(runner, [sequence], budget=512)
    return sequences


@pytest.fixture(scope="module")
def peer(smollm2_path):
    """Load the same file in transformers, dequantised to fp32."""
    from transformers import AutoModelForCausalLM, GgufConfig  # noqa: PLC0415  # takes seconds

    return AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent,
        gguf_file=smollm2_path.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()


@pytest.mark.filterwarnings("ignore")
def test_greedy_answers_and_logits_are_those_of_transformers(alone, peer):
    """Given each answer so far, transformers chooses the same next token, 64 times for each of five prompts."""
    for sequence in alone:
        with torch.inference_mode():
            wanted = peer(torch.tensor([sequence.tokens])).logits[0].numpy()

        wanted = wanted[len(sequence.prompt) - 1 : -1]
        assert wanted.argmax(-1).tolist() == sequence.answer
        np.testing.assert_allclose(np.stack(sequence.logits), wanted, atol=LOGITS_TOLERANCE, rtol=0)


def test_an_answer_does_not_depend_on_who_shares_its_batch(runner, prompts, alone):
    """Eight sequences that arrive one after the other, prompts in chunks, answer as each does alone."""
    together = [Sequence(prompts[at % 5], arrives=3 * at) for at in range(8)]

    run(runner, together)

    for at, sequence in enumerate(together):
        assert sequence.answer == alone[at % 5].answer
        wanted = np.stack(alone[at % 5].logits)
        np.testing.assert_allclose(np.stack(sequence.logits), wanted, atol=LOGITS_TOLERANCE, rtol=0)


def test_attention_is_bitwise_the_same_in_any_company(runner, prompts):
    """Steps of equal size give equal bits, whoever the batch mates are."""
    first, second, third = ([5, 6, 7, *prompts[at][:13]] for at in range(3))

    pairs = [[Sequence(list(first)), Sequence(list(other))] for other in (second, third)]
    for pair in pairs:
        forward(runner, [(sequence, 16) for sequence in pair], list(range(8)))

    assert (pairs[0][0].logits[0] == pairs[1][0].logits[0]).all()


def test_a_copied_block_reads_as_the_original(runner, prompts):
    """After copy_block a sequence goes on from the copy exactly as from the original."""
    original = Sequence(prompts[0][:16])
    forward(runner, [(original, 16)], [4])
    runner.copy_block(4, 9)

    copies = [Sequence(prompts[0][:17], done=16, table=[table]) for table in (4, 9)]
    for copy in copies:
        forward(runner, [(copy, 1)], [11])

    assert (copies[0].logits[0] == copies[1].logits[0]).all()


def tiny(kind, **changes):
    """Return a random two-layer model of a family, made by transformers.

    Its weights are ten times larger than by default, where attention is so flat that wrong angles would not show.
    """
    import transformers  # noqa: PLC0415  # takes seconds

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, **changes,
    )  # fmt: skip
    torch.manual_seed(5)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:  # these start as ones and zeros, which would hide a mix-up
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return model


LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
YARN_DETAILS = {"beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "llama, linear rope": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "llama, yarn": ("Llama", {"rope_parameters": YARN}),
    "llama, yarn with everything said": ("Llama", {"rope_parameters": YARN | YARN_DETAILS}),
    "qwen2, yarn with mscale": ("Qwen2", {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}}),
    "llama 3 rope": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_what_transformers_computes(tmp_path, family, dtype):
    """A saved folder gives transformers' logits; bf16 weights are widened on both sides, so they are exact."""
    kind, changes = FAMILIES[family]
    model = tiny(kind, **changes).to(dtype)
    model.save_pretrained(tmp_path)
    ids = [int(at) for at in np.random.default_rng(2).integers(0, 320, 200)]

    got = logits_of(TorchRunner(open_checkpoint(str(tmp_path)), kv_blocks=16, block_tokens=BLOCK, threads=1), ids)

    peer = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()  # model.float() keeps bf16 frequencies
    with torch.inference_mode():
        wanted = peer(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)
