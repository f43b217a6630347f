"""A release's settings into a ready engine: open the checkpoint, plan the KV cache, pick the runner.

Refuses to know processes and calls.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.engine import Engine
from backends.engine.problems import CheckpointError
from backends.engine.runner import ModelSpec
from backends.engine.weights import open_checkpoint
from batching.scheduler import Limits

Progress = Callable[[str, float], None]
FP32 = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker is told on its standard input. `context_tokens` 0 is the model's own, `threads` 0 all cores."""

    model: str
    source: str
    context_tokens: int
    max_batch: int
    token_budget: int
    block_tokens: int
    kv_memory_bytes: int
    max_waiting: int
    threads: int


@dataclass(frozen=True, slots=True)
class KvPlan:
    """How many blocks the cache has, and the longest sequence that is let in: one always fits whole."""

    blocks: int
    context_tokens: int


def plan_kv(spec: ModelSpec, settings: Settings, *, value_bytes: int) -> KvPlan:
    """Divide the KV memory into blocks; a context nobody asked for shrinks to what fits, one asked for must fit."""
    block_bytes = settings.block_tokens * spec.kv_bytes_per_token // 2 * value_bytes
    blocks = settings.kv_memory_bytes // block_bytes
    wanted = settings.context_tokens or spec.context_tokens
    if wanted > spec.context_tokens:
        raise CheckpointError(
            f"{settings.model}: context = {wanted} is more than the model's own {spec.context_tokens}; lower it"
        )
    if blocks < 2 or (settings.context_tokens and blocks * settings.block_tokens < wanted):
        needed = -(-wanted // settings.block_tokens) * block_bytes
        raise CheckpointError(
            f"{settings.model}: kv_memory of {settings.kv_memory_bytes} bytes holds {blocks * settings.block_tokens} "
            f"tokens, but a context of {wanted} needs {needed} bytes; raise [batching] kv_memory or lower context"
        )
    return KvPlan(blocks, min(wanted, blocks * settings.block_tokens))


def load(settings: Settings, progress: Progress) -> Engine:
    """Load a release; takes seconds to minutes. Raises CheckpointError."""
    progress("checkpoint", 0.0)
    checkpoint = open_checkpoint(settings.source)
    plan = plan_kv(checkpoint.spec, settings, value_bytes=FP32)
    progress("weights", 0.1)
    from backends.engine.model import TorchRunner  # noqa: PLC0415 - torch takes seconds and memory to import

    runner = TorchRunner(
        checkpoint, kv_blocks=plan.blocks, block_tokens=settings.block_tokens, threads=settings.threads
    )
    progress("weights", 1.0)
    limits = Limits(settings.max_batch, settings.token_budget, settings.max_waiting)
    return Engine(runner, checkpoint.tokenizer, limits, context_tokens=plan.context_tokens)
