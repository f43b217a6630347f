"""The calibrated codec: close to what it was given, no larger than promised, and safe to hand anything to."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zstandard

from backends.engine.kvbasis import basis_of
from backends.engine.kvcalibrate import calibrate
from backends.engine.kvcodec import CHUNK_TOKENS, open_codec
from backends.engine.kvprofile import Measured, Profile, Shape, Transform, path_of, read_profile, write_profile
from backends.engine.kvstatistics import Rotation, batch_of, read_cache
from backends.engine.kvtransform import TransformCodec
from backends.engine.native import NativeRunner
from backends.engine.problems import CheckpointError
from backends.engine.quant import Scheme
from backends.engine.weights import Checkpoint
from backends.kernels.cpu import isa_name, native_missing
from tests.random_model import RandomModel, spec_of

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
MODEL_ID = "ab" * 16
MEASURED = Measured(positions=1, ratio=4.0, kl=0.001, top1=0.98, decisive=0.995, perplexity=1.0)


def model(heads: int, kv_heads: int, head_dim: int) -> RandomModel:
    """Give a model of random weights whose values fit no register."""
    return RandomModel(spec_of(heads=heads, kv_heads=kv_heads, head_dim=head_dim), Scheme(8, 32, symmetric=True))


def transform(channels: int, step: float, seed: int = 1) -> Transform:
    """Make the transform of channels that lean on each other, for errors that weigh unlike each other."""
    chance = np.random.default_rng(seed)
    mixed, weighed = chance.normal(size=(2, channels, channels)) / np.sqrt(channels)
    basis = basis_of(
        chance.normal(size=channels) / 4, mixed @ mixed.T + np.eye(channels), weighed @ weighed.T + np.eye(channels)
    )
    return basis.transform(step)


def profile_of(spec, group_heads: int, step: float = 0.05) -> Profile:
    """Give a profile that was not calibrated to anything."""
    shape = Shape(spec.layers, spec.kv_heads, spec.head_dim, group_heads)
    transforms = tuple(transform(shape.channels, step, at) for at in range(shape.layers * shape.parts))
    return Profile("balanced", MODEL_ID, shape, transforms, MEASURED)


def filled(runner: NativeRunner, count: int = 2 * CHUNK_TOKENS) -> NativeRunner:
    """Read random tokens, so that the cache holds what a model writes."""
    tokens = np.random.default_rng(3).integers(0, runner.spec.vocabulary, count)
    runner.greedy(batch_of(tokens.astype(np.int32), 0, runner.block_tokens, all_rows=False))
    return runner


def restored(runner: NativeRunner, codec: TransformCodec, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Return K and V of a chunk before and after it went through the codec."""
    before = np.stack(read_cache(runner, 2 * CHUNK_TOKENS))[:, :, first : first + CHUNK_TOKENS]
    width = runner.block_tokens
    blocks = range(first // width, -(-(first + CHUNK_TOKENS) // width))
    layers = codec.encode(runner, blocks, first)
    runner.cache[:, blocks.start : blocks.stop] = 0
    codec.decode(runner, layers, blocks, first)
    return before, np.stack(read_cache(runner, 2 * CHUNK_TOKENS))[:, :, first : first + CHUNK_TOKENS]


@pytest.mark.parametrize("block_tokens", [16, 128])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "group"), [(4, 2, 24, 2), (4, 4, 10, 2), (3, 1, 64, 1)])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_a_chunk_comes_back_close(isa, heads: int, kv_heads: int, head_dim: int, group: int, block_tokens: int) -> None:
    """On every instruction set, for heads of any width and blocks of any size, in any chunk of the sequence."""
    if isa_name(isa) is None:
        pytest.skip(f"this machine has no {isa}")
    weights = model(heads, kv_heads, head_dim)
    with NativeRunner(weights, kv_blocks=64, block_tokens=block_tokens, threads=1, isa=isa) as runner:
        filled(runner)

        before, after = restored(runner, TransformCodec(profile_of(weights.spec, group)), CHUNK_TOKENS)

    assert np.abs(after - before).max() < 0.25
    assert np.sqrt(np.mean((after - before) ** 2)) < 0.04 * np.sqrt(np.mean(before**2))


def test_instruction_sets_read_each_others_payloads() -> None:
    """What one machine wrote another decodes to the same halves, but for the last bit."""
    weights = model(4, 2, 24)
    codec, seen, layers = TransformCodec(profile_of(weights.spec, 2)), [], []
    for isa in ("portable", "best"):
        with NativeRunner(weights, kv_blocks=64, threads=1, isa=isa) as runner:
            layers = layers or codec.encode(filled(runner), range(16), 0)
            codec.decode(runner, layers, range(16), 0)
            seen.append(np.stack(read_cache(runner, CHUNK_TOKENS)))

    assert np.abs(seen[0] - seen[1]).max() < 0.01


def test_the_first_tokens_of_a_sequence_stay_as_they_are() -> None:
    """Attention leans on them: four tokens come back bit for bit, in the first chunk alone."""
    weights = model(4, 2, 24)
    with NativeRunner(weights, kv_blocks=64, threads=1) as runner:
        before, after = restored(filled(runner), TransformCodec(profile_of(weights.spec, 2)), 0)

    assert (before[:, :, :4] == after[:, :, :4]).all()
    assert (before[:, :, 4:8] != after[:, :, 4:8]).any()


def test_what_no_symbol_reaches_is_kept_beside_them() -> None:
    """Values a thousand steps from the mean come back as close as any, and a token with a NaN bit for bit."""
    weights = model(4, 2, 24)
    with NativeRunner(weights, kv_blocks=64, threads=1) as runner:
        halves = filled(runner).cache.view(np.float16)
        halves[:, 17, :, :, 0] = 40.0
        halves[1, 18, 1, 0, 7] = np.nan

        before, after = restored(runner, TransformCodec(profile_of(weights.spec, 2)), CHUNK_TOKENS)

    broken = np.isnan(before)
    assert broken.any()
    assert (np.isnan(after) == broken).all()
    assert np.abs(np.where(broken, 0, after - before)).max() < 0.25


def test_a_codec_of_another_model_is_refused() -> None:
    """Its shapes are compared before a byte is touched."""
    codec = TransformCodec(profile_of(model(4, 4, 10).spec, 2))
    with NativeRunner(model(4, 2, 24), kv_blocks=64, threads=1) as runner, pytest.raises(Exception, match="encode_kv"):
        codec.encode(runner, range(16), 0)


def mutations(payload: bytes, chance: random.Random) -> bytes:
    """Damage a payload: within the frame, or within what the frame holds, and packed again."""
    if chance.random() < 0.4:
        mutated = bytearray(payload)
    else:
        mutated = bytearray(zstandard.ZstdDecompressor().decompress(payload))
    for _ in range(chance.randint(1, 4)):
        places = [
            chance.randrange(len(mutated)),
            chance.randrange(min(8, len(mutated))),
            len(mutated) - 1 - chance.randrange(64),
        ]
        mutated[chance.choice(places)] = chance.randrange(256)
    if chance.random() < 0.2:
        del mutated[chance.randrange(len(mutated)) :]
    return bytes(mutated) if chance.random() < 0.4 else zstandard.ZstdCompressor().compress(bytes(mutated))


def fuzz(rounds: int, seed: int) -> int:
    """Decode damaged payloads; return how many were refused. Whatever is not refused stays within its blocks."""
    weights, chance, refused = model(4, 2, 24), random.Random(seed), 0
    codec = TransformCodec(profile_of(weights.spec, 2, step=0.02))
    with NativeRunner(weights, kv_blocks=64, threads=1) as runner:
        layers = codec.encode(filled(runner), range(16), 0)
        beside = runner.cache[:, 16:].copy()
        for _ in range(rounds):
            try:
                codec.decode(runner, [mutations(layers[0], chance), layers[1]], range(16), 0)
            except ValueError:
                refused += 1
        assert (runner.cache[:, 16:] == beside).all()
    return refused


def test_a_damaged_payload_is_refused_or_read_within_bounds() -> None:
    """Whatever was changed: a ValueError, or values that stay in the chunk's own blocks."""
    assert 200 < fuzz(600, seed=1) < 600


@pytest.mark.slow
def test_many_damaged_payloads() -> None:
    """The same for as long as a night allows."""
    assert fuzz(100_000, seed=2) > 1000


def test_a_profile_reads_as_it_was_written(tmp_path: Path) -> None:
    """Its transforms and what was measured; the codec's id names its contents."""
    profile = profile_of(model(4, 2, 24).spec, 1)
    write_profile(tmp_path, profile)

    found = read_profile(tmp_path, MODEL_ID, "balanced")

    assert found.measured == MEASURED
    assert all((a.decode == b.decode).all() for a, b in zip(found.transforms, profile.transforms, strict=True))
    assert open_codec("balanced", MODEL_ID, tmp_path).id == f"balanced-1-{found.digest}"


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("zip", {}, "is not known; exact, safe"),
        ("safe", {}, "is not calibrated for this model"),
        ("balanced", {"min_agreement": 0.999}, "99.50% of the decisive positions"),
        ("balanced", {"kv_format": "int8"}, 'use codec = "exact"'),
    ],
)
def test_a_codec_that_cannot_be_had_is_refused(name: str, options, says: str, tmp_path: Path) -> None:
    """In words that say what to do."""
    write_profile(tmp_path, profile_of(model(4, 2, 24).spec, 2))

    with pytest.raises(CheckpointError, match=says):
        open_codec(name, MODEL_ID, tmp_path, **options)


def test_exact_needs_no_profile(tmp_path: Path) -> None:
    """It loses nothing, so there is nothing to calibrate."""
    assert open_codec("exact", MODEL_ID, tmp_path, kv_format="int4").id == "exact-2"


def test_a_damaged_profile_is_refused(tmp_path: Path) -> None:
    """Cut short, of another model, of shapes that do not fit: named, with what to do."""
    profile = profile_of(model(4, 2, 24).spec, 2)
    written = write_profile(tmp_path, profile).read_bytes()
    odd = replace(profile, fingerprint="odd", shape=replace(profile.shape, layers=3))
    write_profile(tmp_path, odd)
    path_of(tmp_path, "cut", "balanced").write_bytes(written[:-100])
    path_of(tmp_path, "other", "balanced").write_bytes(written)

    for fingerprint in ("odd", "cut", "other"):
        with pytest.raises(CheckpointError, match="run `tidegate sessions calibrate`"):
            open_codec("balanced", fingerprint, tmp_path)


def test_keys_are_turned_back_as_they_were_turned(checkpoint: Checkpoint) -> None:
    """Python's un-rotation, which calibration sees, is the inverse of the kernels' rotation, stretched models too."""
    for stretched in (checkpoint, checkpoint.stretched("yarn", 4.0)):
        rotation = Rotation(stretched)
        keys = np.random.default_rng(1).normal(size=(1, 40, 3, 64)).astype(np.float32)
        c, s = rotation._cosines[:40, None], rotation._sines[:40, None]
        a, b = keys[..., :32], keys[..., 32:]
        turned = np.concatenate([a * c - b * s, b * c + a * s], -1)

        assert np.allclose(rotation.undone(turned), keys, atol=1e-5)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> dict[str, Profile]:
    """Calibrate the embedded model once."""
    folder = tmp_path_factory.mktemp("profiles")
    profiles = calibrate(checkpoint, folder, lambda _phase, _done: None, held_out=2)
    assert [read_profile(folder, p.fingerprint, p.name).measured for p in profiles] == [p.measured for p in profiles]
    return {profile.name: profile for profile in profiles}


def test_calibration_keeps_what_the_table_promises(calibrated: dict[str, Profile]) -> None:
    """On text of other topics than it saw; the bounds leave room for noise. `make bench-codec` has the table."""
    safe, balanced, dense = (calibrated[name].measured for name in ("safe", "balanced", "dense"))

    assert safe.ratio > 3.2
    assert balanced.ratio > 4.1
    assert dense.ratio > 5.2
    assert min(safe.top1, balanced.top1) > 0.96
    assert min(safe.decisive, balanced.decisive, dense.decisive) > 0.98
    assert max(safe.perplexity, balanced.perplexity, dense.perplexity) < 1.02
