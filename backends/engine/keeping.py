"""What keeping a model's KV elsewhere needs: its codec, the name of what computes it, and the cache itself.

Refuses to know stores and when anything is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backends.engine.fingerprint import fingerprint
from backends.engine.kvchunk import Payload
from backends.engine.kvcodec import CHUNK_TOKENS, KvCodec, open_codec
from backends.engine.native import NativeRunner
from backends.engine.planning import SessionSettings
from backends.engine.runner import Runner
from backends.engine.weights import Checkpoint


@dataclass(frozen=True, slots=True)
class Kv:
    """A native cache and how its chunks become bytes; any thread may use it on blocks that nobody else writes."""

    runner: NativeRunner
    codec: KvCodec
    model: str

    def encode(self, chunk: int, blocks: Sequence[int]) -> list[bytes]:
        """Return the payloads of a chunk."""
        return self.codec.encode(self.runner, blocks, chunk * CHUNK_TOKENS)

    def decode(self, chunk: int, layers: Sequence[Payload], blocks: Sequence[int]) -> None:
        """Write the payloads of a chunk into blocks; ValueError where they are none."""
        self.codec.decode(self.runner, layers, blocks, chunk * CHUNK_TOKENS)


def open_kv(runner: Runner, checkpoint: Checkpoint, settings: SessionSettings) -> Kv | None:
    """Open the codec for a model; None where torch computes, which has none. CheckpointError without a profile."""
    if not isinstance(runner, NativeRunner):
        return None
    folder = Path(settings.profiles)
    model = fingerprint(checkpoint, runner.kv_format, folder)
    least = settings.min_agreement
    codec = open_codec(settings.codec, model, folder, kv_format=runner.kv_format, min_agreement=least)
    return Kv(runner, codec, model)
