"""A release's settings into a ready engine: open the checkpoint, plan the KV cache, pick the runner.

Refuses to know processes and calls.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.util import find_spec

from backends.engine import Engine
from backends.engine.keeping import open_kv
from backends.engine.planning import KvPlan, Settings, plan_kv
from backends.engine.problems import CheckpointError
from backends.engine.runner import ModelSpec, Runner
from backends.engine.weights import Checkpoint, open_checkpoint
from backends.kernels import cpu
from batching.scheduler import Limits

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which form of `Runner` computes, and why not the native one if it is not."""

    runner: str
    reason: str = ""


def load(settings: Settings, progress: Progress, chosen: Callable[[Choice], None]) -> Engine:
    """Load a release; takes from half a second to minutes. Raises CheckpointError."""
    choice = choose(settings)
    chosen(choice)
    progress("checkpoint", 0.0)
    checkpoint = opened(settings)
    plan = plan_kv(checkpoint.spec, settings, token_bytes=token_bytes(choice, checkpoint.spec, settings.kv_format))
    progress("weights", 0.1)
    with ThreadPoolExecutor(1) as beside:
        tokenizer = beside.submit(lambda: checkpoint.tokenizer)
        runner = open_runner(choice, replace(checkpoint, context_tokens=plan.context_tokens), settings, plan)
        progress("weights", 1.0)
        limits = limits_of(settings)
        engine = Engine(runner, tokenizer.result(), limits, context_tokens=plan.context_tokens)
        engine.kv = open_kv(runner, checkpoint, settings.sessions) if settings.sessions is not None else None
        return engine


def limits_of(settings: Settings) -> Limits:
    """Bound the steps as the settings say."""
    limits = Limits(settings.max_batch, settings.token_budget, settings.max_waiting)
    return replace(limits, max_draft=0) if settings.speculation == "off" else limits


def choose(settings: Settings) -> Choice:
    """Pick the native library where it is there, else torch; CheckpointError when what is wanted cannot be had."""
    missing = None if settings.runner == "torch" else cpu.native_missing()
    if settings.runner != "torch" and missing is None:
        return Choice("native")
    if settings.runner == "native":
        raise CheckpointError(f'{settings.model}: [worker] runner is "native", but {missing}')
    if settings.kv_format != "fp16":
        raise CheckpointError(
            f'{settings.model}: [batching] kv_format is "{settings.kv_format}", which only the native library has, but '
            f'{missing or "[worker] runner is torch"}; leave kv_format at "fp16"'
        )
    if find_spec("torch") is None:
        torch = "torch is not installed: pip install 'tidegate[torch]'"
        raise CheckpointError(
            f"{settings.model}: nothing here can compute: {f'{missing}; and ' if missing else ''}{torch}"
        )
    return Choice("torch", missing or "")


def opened(settings: Settings) -> Checkpoint:
    """Open the checkpoint, stretched as the release says."""
    checkpoint = open_checkpoint(settings.source)
    if settings.rope_scaling == "none":
        return checkpoint
    return checkpoint.stretched(settings.rope_scaling, settings.rope_factor)


def token_bytes(choice: Choice, spec: ModelSpec, kv_format: cpu.KvFormat) -> int:
    """Bytes of one token's K and V: torch holds fp32, the native library `kv_format` in whole registers of sixteen."""
    if choice.runner == "torch":
        return 2 * spec.kv_bytes_per_token
    return spec.layers * spec.kv_heads * cpu.kv_head_bytes(kv_format, spec.head_dim)


def open_runner(choice: Choice, checkpoint: Checkpoint, settings: Settings, plan: KvPlan) -> Runner:
    """Load the weights; the imports are here because each form costs what only it needs."""
    threads = settings.threads or len(cpu.allowed_cores())
    if choice.runner == "torch":
        from backends.engine.model import TorchRunner  # noqa: PLC0415 - torch takes seconds and memory to import

        return TorchRunner(checkpoint, kv_blocks=plan.blocks, block_tokens=settings.block_tokens, threads=threads)
    from backends.engine.native import NativeRunner  # noqa: PLC0415
    from backends.engine.quantised import Quantised  # noqa: PLC0415

    try:
        return NativeRunner(
            Quantised(checkpoint),
            kv_blocks=plan.blocks,
            block_tokens=settings.block_tokens,
            threads=threads,
            kv_format=settings.kv_format,
        )
    except cpu.NativeError as exc:
        raise CheckpointError(f"{settings.model}: {exc}") from exc
