"""What a transform codec was calibrated to and what that was measured to cost: one file for a model and a profile.

Refuses to know how it was calibrated and what a payload is. The file is safetensors: the transforms as the kernels want
them, and in its metadata the numbers that decide whether a deployment may use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from backends.engine.problems import CheckpointError

ProfileName = Literal["safe", "balanced", "dense"]
VERSION = 1
TENSORS = ("mean", "scales", "encode", "decode")


@dataclass(frozen=True, slots=True)
class Transform:
    """Symbols of one group of heads, and back; see TgTransform in kernels/cpu/abi.h."""

    mean: NDArray[np.float32]
    scales: NDArray[np.float32]
    encode: NDArray[np.float32]
    decode: NDArray[np.int8]

    @property
    def kept(self) -> int:
        """Channels that have symbols."""
        return len(self.encode)


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the model's KV, and how many heads share a transform."""

    layers: int
    kv_heads: int
    head_dim: int
    group_heads: int

    @property
    def channels(self) -> int:
        """Channels of a transform."""
        return self.group_heads * self.head_dim

    @property
    def parts(self) -> int:
        """Transforms of a layer."""
        return 2 * (self.kv_heads // self.group_heads)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a restored prefix costs on held-out text: the next tokens against those of the unrestored prefix.

    `decisive` is agreement where the two likeliest tokens are more than 5 points apart. `ratio` is fp16 KV to payload.
    `perplexity` is a ratio too, and `perplexity_error` its standard error over the windows of text.
    """

    positions: int
    ratio: float
    kl: float
    top1: float
    decisive: float
    perplexity: float
    perplexity_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile of one model: `transforms` by layer, K before V, and group of heads."""

    name: ProfileName
    fingerprint: str
    shape: Shape
    transforms: tuple[Transform, ...]
    measured: Measured
    digest: str = ""


def path_of(folder: Path, fingerprint: str, name: str) -> Path:
    """Return where the profile of a model lies."""
    return folder / f"{fingerprint}.{name}.safetensors"


def write_profile(folder: Path, profile: Profile) -> Path:
    """Write a profile whole or not at all; return its path."""
    tensors = {
        f"{at}.{name}": np.ascontiguousarray(getattr(transform, name))
        for at, transform in enumerate(profile.transforms)
        for name in TENSORS
    }
    said = {
        "version": VERSION,
        "name": profile.name,
        "fingerprint": profile.fingerprint,
        "shape": asdict(profile.shape),
        "measured": asdict(profile.measured),
    }
    target = path_of(folder, profile.fingerprint, profile.name)
    folder.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    fresh.write_bytes(save(tensors, {"profile": orjson.dumps(said).decode()}))
    fresh.replace(target)
    return target


def read_profile(folder: Path, fingerprint: str, name: str) -> Profile:
    """Read the profile `name` of a model; CheckpointError says what is wrong and what to do."""
    path = path_of(folder, fingerprint, name)
    if not path.is_file():
        raise CheckpointError(
            f'codec "{name}" is not calibrated for this model ({path} is missing): run `tidegate sessions calibrate`, '
            'or use codec = "exact"'
        )
    try:
        profile = _read(path)
    except (OSError, SafetensorError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, ArithmeticError) as exc:
        raise CheckpointError(f"{path}: is no codec profile: {exc}; run `tidegate sessions calibrate` again") from exc
    if (profile.fingerprint, profile.name) != (fingerprint, name):
        raise CheckpointError(f"{path}: is the profile of another model or name; run `tidegate sessions calibrate`")
    return profile


def _read(path: Path) -> Profile:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with safe_open(path, "np") as opened:
        said = orjson.loads((opened.metadata() or {})["profile"])
        if said["version"] != VERSION:
            raise ValueError(f"its version is {said['version']}, not {VERSION}")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it has no __iter__
    transforms = tuple(_transform(tensors, at) for at in range(len(tensors) // len(TENSORS)))
    shape, measured = Shape(**said["shape"]), Measured(**said["measured"])
    if len(transforms) != shape.layers * shape.parts or any(len(t.mean) != shape.channels for t in transforms):
        raise ValueError(f"its transforms are not {shape.layers * shape.parts} of {shape.channels} channels")
    return Profile(said["name"], said["fingerprint"], shape, transforms, measured, digest[:12])


def _transform(tensors: Mapping[str, NDArray[np.generic]], at: int) -> Transform:
    """Hold a transform's tensors to the shapes that they must have to each other."""
    mean, scales, encode, decode = (tensors[f"{at}.{name}"] for name in TENSORS)
    kept, channels = encode.shape
    shapes = (mean.shape, scales.shape, decode.shape) == ((channels,), (channels,), (channels, kept))
    kinds = all(part.dtype == np.float32 for part in (mean, scales, encode)) and decode.dtype == np.int8
    if not shapes or not kinds or kept % 4 or not kept:
        raise ValueError(f"transform {at} is of another shape or type")
    if not all(np.isfinite(part).all() for part in (mean, scales, encode)):
        raise ValueError(f"transform {at} has values that are not finite")
    return Transform(*(np.ascontiguousarray(part) for part in (mean, scales, encode, decode)))
