"""A KV codec brings back what it was given, wherever it is put, and takes nothing else for a payload."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from backends.engine.fingerprint import KEPT, fingerprint
from backends.engine.kvchunk import CHUNK_TOKENS, ExactCodec
from backends.engine.native import NativeRunner
from backends.engine.quant import Scheme
from backends.engine.weights import Checkpoint, open_checkpoint
from backends.kernels.cpu import KV_BITS, KvFormat, native_missing
from tests.random_model import RandomModel, spec_of

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
MODEL = RandomModel(spec_of(heads=4, kv_heads=2, head_dim=24), Scheme(8, 32, symmetric=True))


def opened(kv_format: KvFormat = "fp16", block_tokens: int = 16) -> NativeRunner:
    """Open a small model with room for two chunks."""
    blocks = 2 * (CHUNK_TOKENS // block_tokens + 2)
    return NativeRunner(MODEL, kv_blocks=blocks, block_tokens=block_tokens, threads=1, kv_format=kv_format)


def scribbled(runner: NativeRunner) -> NativeRunner:
    """Fill the cache with random halves, or codes."""
    values = np.random.default_rng(5).normal(size=runner.kv_bytes // 2)
    runner.cache.reshape(-1).view(np.float16)[:] = values
    return runner


def table_of(runner: NativeRunner) -> tuple[list[int], list[int]]:
    """Give two tables of blocks, in no order, each with room for a chunk that begins within a block."""
    blocks = random.Random(2).sample(range(runner.kv_blocks), runner.kv_blocks)
    return blocks[: len(blocks) // 2], blocks[len(blocks) // 2 :]


def chunk_bytes(runner: NativeRunner, blocks: list[int], first: int) -> bytes:
    """Read the chunk's tokens from the cache one run at a time."""
    runs = [
        runner.cache[
            :, blocks[at // runner.block_tokens - first // runner.block_tokens], :, at % runner.block_tokens // 16
        ]
        for at in range(first, first + CHUNK_TOKENS, 16)
    ]
    return np.stack(runs).tobytes()


@pytest.mark.parametrize("block_tokens", [16, 32, 48, 64, 112, 128])
@pytest.mark.parametrize("kv_format", KV_BITS)
def test_exact_brings_back_every_bit(kv_format: KvFormat, block_tokens: int) -> None:
    """Into other blocks, for every format of the cache and every size of a block, those that cut a chunk too."""
    with scribbled(opened(kv_format, block_tokens)) as runner:
        source, target = table_of(runner)
        before = chunk_bytes(runner, source, 256)

        layers = ExactCodec().encode(runner, source, 256)
        runner.cache[:, target] = 0
        ExactCodec().decode(runner, layers, target, 256)

        assert chunk_bytes(runner, target, 256) == before


def test_exact_touches_no_other_block() -> None:
    """Decoding writes the tokens of the chunk and not a byte beside them."""
    with scribbled(opened(block_tokens=48)) as runner:
        source, target = table_of(runner)
        layers = ExactCodec().encode(runner, source, 256)
        before = runner.cache.copy()

        ExactCodec().decode(runner, layers, source, 256)

        assert (runner.cache == before).all()
        assert target


def bomb() -> bytes:
    """Give a frame of a few bytes that says it holds a gibibyte."""
    return zstandard.ZstdCompressor().compress(bytes(1 << 24))


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x28\xb5\x2f\xfd", bytes(100), bomb(), zstandard.ZstdCompressor(write_content_size=False).compress(b"x")],
)
def test_what_is_no_payload_is_refused(payload: bytes) -> None:
    """Before memory is taken for what it claims."""
    with opened() as runner:
        layers = ExactCodec().encode(runner, range(16), 0)

        with pytest.raises(ValueError, match="payload"):
            ExactCodec().decode(runner, [layers[0], payload], range(16), 0)


def test_a_damaged_payload_is_refused_or_read_within_bounds() -> None:
    """Whatever was changed: a ValueError, or bytes that stay in the chunk's own blocks."""
    chance = random.Random(3)
    with scribbled(opened()) as runner:
        layers = ExactCodec().encode(runner, range(16), 0)
        beside = runner.cache[:, 16:].copy()
        for _ in range(300):
            mutated = bytearray(layers[0])
            mutated[chance.randrange(min(64, len(mutated)))] ^= 1 << chance.randrange(8)
            try:
                ExactCodec().decode(runner, [bytes(mutated), layers[1]], range(16), 0)
            except ValueError:
                continue

        assert (runner.cache[:, 16:] == beside).all()


@pytest.mark.parametrize(
    ("blocks", "first", "says"),
    [
        (range(15), 0, "needs 16 blocks"),
        (range(16), 100, "no chunk begins"),
        (range(16), -256, "no chunk begins"),
        (range(16), 1024, "no chunk begins"),
        ([*range(15), 36], 0, "are not all among"),
        ([*range(15), -1], 0, "are not all among"),
    ],
)
def test_a_chunk_that_is_not_in_the_blocks_is_refused(blocks, first: int, says: str) -> None:
    """Both ways, in words."""
    with opened() as runner:
        with pytest.raises(ValueError, match=says):
            ExactCodec().encode(runner, blocks, first)
        with pytest.raises(ValueError, match=says):
            ExactCodec().decode(runner, [b"", b""], blocks, first)


def test_payloads_of_another_number_of_layers_are_refused() -> None:
    """Before any is read."""
    with opened() as runner, pytest.raises(ValueError, match="2 layers"):
        ExactCodec().decode(runner, [b""], range(16), 0)


def test_the_fingerprint_is_that_of_the_contents(checkpoint: Checkpoint, smollm2_path: Path, tmp_path: Path) -> None:
    """A copy has the same; another cache format, another stretch or another byte has another."""
    copied = tmp_path / "other-name.gguf"
    shutil.copyfile(smollm2_path, copied)
    same = fingerprint(open_checkpoint(str(copied)), "fp16")
    with copied.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")

    prints = [
        fingerprint(checkpoint, "fp16"),
        fingerprint(checkpoint, "int8"),
        fingerprint(checkpoint.stretched("linear", 2.0), "fp16"),
        fingerprint(open_checkpoint(str(copied)), "fp16"),
    ]

    assert same == prints[0]
    assert len(set(prints)) == 4


def test_a_known_file_is_not_read_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its digest is kept by path, size and time; what is kept broken is computed again."""
    first = fingerprint(checkpoint, "fp16", tmp_path)
    kept = orjson.loads((tmp_path / KEPT).read_bytes())
    (tmp_path / KEPT).write_bytes(orjson.dumps(dict.fromkeys(kept, "0" * 64)))
    from_kept = fingerprint(checkpoint, "fp16", tmp_path)
    (tmp_path / KEPT).write_bytes(b"[")

    assert first == fingerprint(checkpoint, "fp16", tmp_path) == fingerprint(checkpoint, "fp16")
    assert from_kept != first


def test_a_context_of_another_length_is_the_same_model(checkpoint: Checkpoint) -> None:
    """What a release is held to changes no token's keys and values."""
    assert fingerprint(replace(checkpoint, context_tokens=512), "fp16") == fingerprint(checkpoint, "fp16")
