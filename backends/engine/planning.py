"""What a worker is told, and what becomes of its KV memory: blocks, and the longest sequence that is let in.

Refuses to know files, runners and processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backends.engine.problems import CheckpointError
from backends.engine.runner import ModelSpec
from backends.kernels.cpu import KvFormat

RunnerChoice = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a worker keeps sessions: the `store` is a unix socket, `profiles` the folder of codecs and file digests.

    Blocks are saved `write_behind_s` after their session's last answer and stay at least `active_s` where there is
    room. A profile measured below `min_agreement` is refused.
    One restore in `recheck_every` is computed too, to compare; 0 never.
    """

    store: str
    profiles: str
    codec: str = "exact"
    min_agreement: float = 0.97
    write_behind_s: float = 60.0
    active_s: float = 600.0
    min_restore_tokens: int = 512
    recheck_every: int = 64
    fetch_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a worker is told on its standard input. `context_tokens` 0 is the model's own, `threads` 0 all cores."""

    model: str
    source: str
    context_tokens: int = 0
    rope_scaling: Literal["none", "linear", "yarn"] = "none"
    rope_factor: float = 1.0
    runner: RunnerChoice = "auto"
    max_batch: int
    token_budget: int
    window_s: float = 0.0
    step_timeout_s: float = 120.0
    block_tokens: int
    kv_memory_bytes: int
    kv_format: KvFormat = "fp16"
    max_waiting: int
    speculation: Literal["auto", "off"] = "auto"
    threads: int = 0
    sessions: SessionSettings | None = None


def settings_of(told: Mapping[str, Any]) -> Settings:
    """Read what the pool tells a worker."""
    sessions = told.get("sessions")
    return Settings(**{**told, "sessions": SessionSettings(**sessions) if sessions else None})


@dataclass(frozen=True, slots=True)
class KvPlan:
    """How many blocks the cache has, and the longest sequence that is let in: one always fits whole."""

    blocks: int
    context_tokens: int


def plan_kv(spec: ModelSpec, settings: Settings, *, token_bytes: int) -> KvPlan:
    """Divide the KV memory into blocks; a context nobody asked for shrinks to what fits, one asked for must fit."""
    block_bytes = settings.block_tokens * token_bytes
    blocks = settings.kv_memory_bytes // block_bytes
    wanted = settings.context_tokens or spec.context_tokens
    if wanted > spec.context_tokens:
        raise CheckpointError(f"{settings.model}: context = {wanted} is more than {_most(spec, settings)}")
    if blocks < 2 or (settings.context_tokens and blocks * settings.block_tokens < wanted):
        needed = -(-wanted // settings.block_tokens) * block_bytes
        raise CheckpointError(
            f"{settings.model}: kv_memory of {settings.kv_memory_bytes} bytes holds {blocks * settings.block_tokens} "
            f"tokens, but a context of {wanted} needs {needed} bytes; raise [batching] kv_memory or lower context"
        )
    return KvPlan(blocks, min(wanted, blocks * settings.block_tokens))


def _most(spec: ModelSpec, settings: Settings) -> str:
    if settings.rope_scaling == "none":
        return f"the model's own {spec.context_tokens}; lower it, or stretch the model with rope_scaling"
    return f"the {spec.context_tokens} that a rope_scaling factor of {settings.rope_factor:g} gives; raise the factor"
