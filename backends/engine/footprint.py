"""What the releases of a configuration need of this machine's memory, before any worker starts: `tidegate plan`.

Refuses to know torch; opens checkpoints, and reads no weights but one row of each kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from backends.engine.encoder_folder import encoder_bytes, is_encoder
from backends.engine.loading import Choice, choose, opened, token_bytes
from backends.engine.machine import memory_bytes
from backends.engine.packing import panel_shape
from backends.engine.planning import KvPlan, Settings, plan_kv
from backends.engine.problems import CheckpointError
from backends.engine.quantised import Quantised
from backends.engine.runner import ModelSpec
from backends.engine.weights import Checkpoint, expected_shapes

# What a worker weighs besides weights and KV, measured as its resident memory once it is ready: Python, tokenizer and
# chat template, and for torch its own code.
PROCESS_BYTES = {"native": 64 << 20, "torch": 256 << 20}
TYPICAL_TOKENS = (1024, 4096, 16384)


@dataclass(frozen=True, slots=True)
class Asked:
    """A release by name with its worker's settings and how many workers it has."""

    name: str
    replicas: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one worker of a release holds at most."""

    choice: Choice
    spec: ModelSpec
    plan: KvPlan
    weight_bytes: int
    token_bytes: int
    step_bytes: int
    kv_bytes: int

    @property
    def worker_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.kv_bytes + self.step_bytes + PROCESS_BYTES[self.choice.runner]


def footprint(settings: Settings) -> Footprint:
    """Say what a worker with these settings will hold; CheckpointError when it could not start."""
    choice, checkpoint = choose(settings), opened(settings)
    spec, per_token = checkpoint.spec, token_bytes(choice, checkpoint.spec, settings.kv_format)
    plan = plan_kv(spec, settings, token_bytes=per_token)
    return Footprint(
        choice,
        spec,
        plan,
        weight_bytes=_weight_bytes(choice, checkpoint),
        token_bytes=per_token,
        step_bytes=_step_bytes(spec, settings),
        kv_bytes=plan.blocks * settings.block_tokens * per_token,
    )


def _weight_bytes(choice: Choice, checkpoint: Checkpoint) -> int:
    total = 0
    for name, shape in expected_shapes(checkpoint.spec):
        if choice.runner == "torch" or len(shape) == 1:
            total += 4 * shape[0] * (shape[1] if len(shape) == 2 else 1)
        else:
            panels, _, stride = panel_shape(Quantised(checkpoint).scheme(name), shape[0], shape[1])
            total += panels * stride
    return total


def _step_bytes(spec: ModelSpec, settings: Settings) -> int:
    """Activations of the largest step and the logits of a full batch, in fp32."""
    heads = 2 * (spec.heads + spec.kv_heads) * spec.head_dim
    return 4 * (settings.token_budget * (2 * spec.hidden + heads + spec.ffn) + settings.max_batch * spec.vocabulary)


def tell(asked: Sequence[Asked], say: Callable[[str], None]) -> bool:
    """Tell each release's footprint and a verdict; return whether everything fits."""
    total, is_sound = 0, True
    for each in asked:
        try:
            if is_encoder(each.settings.source):
                total += each.replicas * _tell_encoder(each, say)
                continue
            found = footprint(each.settings)
        except CheckpointError as exc:
            say(f"{each.name}: cannot start: {exc}")
            is_sound = False
            continue
        total += each.replicas * found.worker_bytes
        for line in _lines(each, found):
            say(line)
    has = memory_bytes()
    says = "fits" if total <= has else "does not fit: lower [batching] kv_memory, replicas, or choose a smaller model"
    say(f"all workers: {_size(total)} of {_size(has)}: {says}")
    return is_sound and total <= has


def _tell_encoder(asked: Asked, say: Callable[[str], None]) -> int:
    """Tell what a model that makes vectors holds: it has no KV cache."""
    weights, batch = encoder_bytes(asked.settings.source)
    worker = weights + batch + PROCESS_BYTES["native"]
    say(f"{asked.name}: {asked.replicas} worker{'s' if asked.replicas > 1 else ''}, an encoder")
    say(f"  weights             {_size(weights)}")
    say(f"  memory a worker     {_size(worker)} at most")
    return worker


def _lines(asked: Asked, found: Footprint) -> Iterator[str]:
    plan, settings = found.plan, asked.settings
    workers = f"{asked.replicas} worker{'s' if asked.replicas > 1 else ''}"
    yield f"{asked.name}: {workers}, computing in {found.choice.runner}"
    if found.choice.reason:
        yield f"  not natively        {found.choice.reason}"
    yield f"  weights             {_size(found.weight_bytes)}"
    tokens = plan.blocks * settings.block_tokens
    yield (
        f"  KV cache            {_size(found.kv_bytes)}: {plan.blocks:,} blocks of {settings.block_tokens} tokens, "
        f"{found.token_bytes:,} bytes a token"
    )
    yield f"  step and process    {_size(found.step_bytes + PROCESS_BYTES[found.choice.runner])}"
    yield f"  longest context     {plan.context_tokens:,} tokens{_why_shorter(found)}"
    yield f"  tokens at once      {tokens:,}: {_sequences(found, settings)}"
    yield f"  memory a worker     {_size(found.worker_bytes)} at most"


def _why_shorter(found: Footprint) -> str:
    own, context = found.spec.context_tokens, found.plan.context_tokens
    return f", of {own:,} that the model can" if context < own else ""


def _sequences(found: Footprint, settings: Settings) -> str:
    """Count how many conversations of typical lengths fit, at most `max_batch` of which are computed together."""
    tokens = found.plan.blocks * settings.block_tokens
    lengths = [length for length in TYPICAL_TOKENS if length < found.plan.context_tokens]
    counts = [f"{tokens // length} of {length:,}" for length in (*lengths, found.plan.context_tokens)]
    return f"{', '.join(counts)} (max_batch = {settings.max_batch})"


def _size(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):,.0f} MiB"
