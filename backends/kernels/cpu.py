"""The native CPU library from Python: finds it, loads it, mirrors its structures, checks what ctypes cannot.

Refuses to know models, files and scheduling; see cpu/abi.h for what each field means.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from backends.kernels.build import library_path

Isa = Literal["best", "portable", "avx2", "avx512"]
ISA: Final[dict[Isa, int]] = {"best": -1, "portable": 0, "avx2": 1, "avx512": 2}
LANES: Final = 16
KvFormat = Literal["fp16", "int8", "int4"]
KV_BITS: Final[dict[KvFormat, int]] = {"fp16": 16, "int8": 8, "int4": 4}

_REASONS: Final = {
    -1: "a shape or a size of the model does not fit",
    -2: "a token, position, block or length of the step is out of range",
    -3: "out of memory",
    -4: "this machine lacks the instruction set",
    -5: "the machine gives no more threads",
    -6: "the bytes are none that the codec wrote",
}


class Linear(ctypes.Structure):
    """TgLinear."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("rows", "columns", "bits", "group", "asymmetric", "reserved")),
    )


class Layer(ctypes.Structure):
    """TgLayer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "ffn_norm", "q_norm", "k_norm")),
        *((name, Linear) for name in ("q", "k", "v", "o", "gate", "up", "down")),
    )


class Model(ctypes.Structure):
    """TgModel."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "context")
        ),
        ("norm_eps", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("block_tokens", "kv_blocks", "kv_bits")),
        *((name, ctypes.c_void_p) for name in ("final_norm", "cosines", "sines")),
        ("layer", ctypes.POINTER(Layer)),
        ("embed", Linear),
        ("head", Linear),
        ("kv", ctypes.c_void_p),
        ("kv_bytes", ctypes.c_int64),
    )


class Step(ctypes.Structure):
    """TgStep."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "positions", "starts", "lengths", "blocks", "sampled")),
        *((name, ctypes.c_int32) for name in ("token_count", "sequence_count", "table_width", "sampled_count")),
        ("logits", ctypes.c_void_p),
        ("logits_stride", ctypes.c_int64),
        ("greedy", ctypes.c_void_p),
        ("queries", ctypes.c_void_p),
    )


class Transform(ctypes.Structure):
    """TgTransform."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("mean", "scales", "sums", "encode", "decode")),
        ("channels", ctypes.c_int32),
        ("kept", ctypes.c_int32),
    )


class KvCodec(ctypes.Structure):
    """TgKvCodec."""

    _fields_ = (
        ("transforms", ctypes.POINTER(Transform)),
        *((name, ctypes.c_int32) for name in ("layers", "kv_heads", "head_dim", "group_heads")),
    )


class Chunk(ctypes.Structure):
    """TgChunk."""

    _fields_ = (
        ("blocks", ctypes.c_void_p),
        ("runs", ctypes.c_void_p),
        ("first", ctypes.c_int32),
        ("sinks", ctypes.c_int32),
    )


class NativeError(RuntimeError):
    """The library refused a model or a step."""


def check(status: int, what: str) -> None:
    """Raise NativeError unless `status` is TG_OK."""
    if status:
        raise NativeError(f"{what}: {_REASONS.get(status, f'status {status}')}")


@functools.cache
def library() -> ctypes.CDLL:
    """Load the library of exactly the sources beside this file. Raises OSError when it is not built or not ours."""
    loaded = ctypes.CDLL(str(library_path()))
    kinds = (Linear, Layer, Model, Step, Transform, KvCodec, Chunk)
    sizes = (ctypes.c_int32 * len(kinds))()
    loaded.tg_layout(sizes)
    if list(sizes) != [ctypes.sizeof(kind) for kind in kinds]:
        raise OSError(f"{library_path().name}: its structures differ from cpu.py; build it again")
    loaded.tg_isa.restype = ctypes.c_char_p
    loaded.tg_panel_bytes.restype = ctypes.c_int64
    loaded.tg_close.argtypes = (ctypes.c_void_p,)
    loaded.tg_step.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    loaded.tg_copy_block.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)
    for copy in (loaded.tg_read_kv, loaded.tg_write_kv):
        copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64)
    loaded.tg_encode_kv.argtypes = (*[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_void_p)
    loaded.tg_decode_kv.argtypes = (ctypes.c_void_p,) * 5
    loaded.tg_matmul.argtypes = (ctypes.c_int32, *[ctypes.c_void_p] * 2, ctypes.c_int64, ctypes.c_int32, *_OUTPUTS)
    return loaded


_OUTPUTS: Final = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)


def native_missing() -> str | None:
    """Say why the native engine cannot run here, or None."""
    if not library_path().exists():
        return "the CPU library is not built: run `python -m backends.kernels.build` (it needs g++)"
    try:
        library()
    except OSError as exc:
        return str(exc)
    return None


def isa_name(isa: Isa = "best") -> str | None:
    """Return the instruction set that `isa` means on this machine, or None where it is missing."""
    name = library().tg_isa(ISA[isa])
    return name.decode() if name else None


def kv_head_bytes(kv_format: KvFormat, head_dim: int) -> int:
    """Bytes of one token's K and V of one head, scales and padding included; see cpu/ops.h."""
    registers = -(-head_dim // LANES)
    match kv_format:
        case "fp16":
            return 4 * LANES * registers
        case "int8":
            return 2 * (LANES * registers + 2 * -(-registers // 2))
        case "int4":
            return 2 * (LANES + 4) * -(-registers // 2)


def allowed_cores() -> list[int]:
    """Return the cores this process may use: its affinity, cut to the CPU quota of its control group."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    quota = _quota()
    return cores if quota is None else cores[: max(1, int(quota))]


def _quota() -> float | None:
    """Return the cores' worth of time the control group grants (v2, then v1), or None when it is unlimited."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if limit in {"max", "-1"} else int(limit) / int(period)


def address(array: NDArray[Any] | None, kind: type[np.generic], count: int) -> int | None:
    """Return where a contiguous array of at least `count` values of `kind` lies; None for None."""
    if array is None:
        return None
    if array.dtype != kind or not array.flags.c_contiguous or array.size < count:
        raise NativeError(f"need a contiguous {kind.__name__} array of {count}, not {array.dtype} {array.shape}")
    return array.ctypes.data


def chunk(blocks: NDArray[np.int32], runs: NDArray[np.int32], first: int, sinks: int) -> Chunk:
    """Describe 256 tokens by the block and the run in it of each sixteen; the arrays live as long as it does."""
    made = Chunk(address(blocks, np.int32, 16), address(runs, np.int32, 16), first, sinks)
    made.kept = (blocks, runs)
    return made


def matmul(
    weights: Linear, x: NDArray[np.float32], *, isa: Isa = "best"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return quantised(x) @ w.T [M, rows] and quantised(x) [M, columns]."""
    count, width = x.shape[0], -(-weights.columns // 32) * 32
    padded = np.zeros((count, width), np.float32)
    padded[:, : weights.columns] = x
    out = np.empty((count, -(-weights.rows // LANES) * LANES), np.float32)
    seen = np.empty((count, width), np.float32)
    status = library().tg_matmul(
        ISA[isa],
        ctypes.addressof(weights),
        padded.ctypes.data,
        padded.shape[1],
        count,
        out.ctypes.data,
        out.shape[1],
        seen.ctypes.data,
    )
    check(status, "matmul")
    return out[:, : weights.rows], seen[:, : weights.columns]
