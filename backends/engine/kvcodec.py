"""Which codec a deployment gets: the one it names, if that is calibrated for its model and good enough.

Refuses to know how codecs work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from backends.engine.kvchunk import CHUNK_TOKENS, ExactCodec, KvCodec
from backends.engine.kvprofile import Profile, read_profile
from backends.engine.kvtransform import TransformCodec
from backends.engine.problems import CheckpointError
from backends.kernels.cpu import KvFormat

__all__ = ["CHUNK_TOKENS", "CodecName", "KvCodec", "open_codec"]

CodecName = Literal["exact", "safe", "balanced", "dense"]


def open_codec(
    name: str,
    fingerprint: str,
    folder: Path,
    *,
    kv_format: KvFormat = "fp16",
    min_agreement: float = 0.0,
) -> KvCodec:
    """Return the codec `name` for the model of this fingerprint, with its profile from `folder`.

    `min_agreement` is the least share of decisive positions at which a restored prefix must have the same likeliest
    token as the unrestored. Raises CheckpointError, which says what is wrong and what to do.
    """
    if name == "exact":
        return ExactCodec()
    if name not in get_args(CodecName):
        raise CheckpointError(f'codec "{name}" is not known; {", ".join(get_args(CodecName))} are')
    if kv_format != "fp16":
        raise CheckpointError(
            f'codec "{name}" is for kv_format "fp16", and "{kv_format}" is compressed already: use codec = "exact"'
        )
    profile = read_profile(folder, fingerprint, name)
    _check_agreement(profile, min_agreement)
    try:
        return TransformCodec(profile)
    except ValueError as exc:
        raise CheckpointError(f'codec "{name}": {exc}; run `tidegate sessions calibrate` again') from exc


def _check_agreement(profile: Profile, least: float) -> None:
    found = profile.measured.decisive
    if found < least:
        raise CheckpointError(
            f'codec "{profile.name}" has the same likeliest token in {found:.2%} of the decisive positions measured, '
            f'and min_agreement is {least:.2%}: use "safe" or "exact", or lower min_agreement'
        )
