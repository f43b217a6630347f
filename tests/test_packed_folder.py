"""Folders that GPTQ or AWQ have quantised open like any other, with the values their packing stands for."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends.engine.grids import AWQ_ORDER
from backends.engine.problems import CheckpointError
from backends.engine.quant import Scheme, dequantize
from backends.engine.quantised import Quantised
from backends.engine.weights import open_checkpoint
from tests.tiny_checkpoint import weights, write_tiny

NAMES = ("layers.0.attention.k.weight", "layers.1.ffn.down.weight")
HF_NAMES = ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight")


def gptq(weight: np.ndarray, bits: int, group: int, *, act_order: bool, symmetric: bool) -> dict[str, np.ndarray]:
    """Quantise and pack a matrix [N, K] as GPTQ files hold it, and give beside it what it stands for."""
    columns = weight.shape[1]
    size = columns if group == -1 else group
    order = np.arange(columns) // size
    if act_order:
        order = np.random.default_rng(0).permutation(order)
    groups = order.max() + 1
    low = np.stack([weight[:, order == at].min(1) for at in range(groups)])
    high = np.stack([weight[:, order == at].max(1) for at in range(groups)])
    scales = ((high - low) / (2**bits - 1)).astype(np.float16)
    middle = np.full_like(low, 2 ** (bits - 1))
    zeros = middle if symmetric else np.clip(np.rint(-low / scales), 1, 2**bits - 1)
    codes = np.clip(np.rint(weight.T / scales[order] + zeros[order]), 0, 2**bits - 1)
    return {
        "qweight": words(codes, bits), "qzeros": words(zeros.T - 1, bits).T, "scales": scales,
        "g_idx": order.astype(np.int32), "stands for": (scales.astype(np.float32)[order] * (codes - zeros[order])).T,
    }  # fmt: skip


def awq(weight: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """Do the same as AWQ's gemm version has it: eight interleaved columns of the transpose a word, plain zeros."""
    packed = gptq(weight, 4, group, act_order=False, symmetric=False)
    scales, order = packed["scales"], packed["g_idx"]
    codes, zeros = unpacked(packed["qweight"]), unpacked(packed["qzeros"].T).T + 1
    return {"qweight": nibbles(codes), "qzeros": nibbles(zeros), "scales": scales} | {
        "stands for": (scales.astype(np.float32)[order] * (codes - zeros[order].astype(np.float32))).T
    }


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along axis 0 into int32 words, lowest bits first."""
    planes = np.unpackbits(codes.T[..., None].astype(np.uint8), axis=2, bitorder="little")[..., :bits]
    stream = np.packbits(planes.reshape(codes.shape[1], -1), axis=1, bitorder="little")
    return np.ascontiguousarray(np.ascontiguousarray(stream).view(np.int32).T)


def unpacked(packed: np.ndarray) -> np.ndarray:
    """Unpack 4-bit words along axis 0."""
    return (packed[:, None] >> (4 * np.arange(8))[:, None] & 15).reshape(-1, packed.shape[1])


def nibbles(values: np.ndarray) -> np.ndarray:
    """Pack eight columns into each int32."""
    ordered = values.reshape(len(values), -1, 8)[..., list(AWQ_ORDER)].astype(np.uint32)
    return (ordered << 4 * np.arange(8, dtype=np.uint32)).sum(2).astype(np.uint32).view(np.int32)


def packed_folder(folder, pack, config):
    """Write the tiny model with its linear layers packed; give its source and what the matrices stand for."""
    write_tiny(folder)
    stored, meant = {}, {}
    for name, tensor in weights(tied=True).items():
        if "proj" not in name:
            stored[name] = tensor
            continue
        parts = pack(tensor)
        meant[name] = parts.pop("stands for")
        stored |= {name.replace("weight", part): np.ascontiguousarray(value) for part, value in parts.items()}
    save_file(stored, folder / "model.safetensors")
    described = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (folder / "config.json").write_text(json.dumps(described))
    return str(folder), [meant[name] for name in HF_NAMES]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 64), (8, 128), (3, 32), (4, -1), (2, 256)])
def test_a_gptq_folder_is_read_without_rounding_again(tmp_path, bits, group, symmetric):
    """Widths of 2 to 8 bits, short last groups, one group a row: symmetric exact, else up to fp16 of the minimum."""
    source, meant = packed_folder(
        tmp_path / "model",
        lambda weight: gptq(weight, bits, group, act_order=False, symmetric=symmetric),
        {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False},
    )

    quantised = Quantised(open_checkpoint(source))

    for name, wanted in zip(NAMES, meant, strict=True):
        matrix = quantised.matrix(name)
        assert (matrix.scheme.bits, matrix.scheme.symmetric) == (max(bits, 4), symmetric)
        error = np.abs(dequantize(matrix) - wanted).max()
        assert error <= (1e-6 if symmetric else np.abs(wanted).max() * 2**-9)
        assert np.array_equal(dequantize(matrix), quantised.checkpoint.tensor(name))
    assert quantised.checkpoint.raw(NAMES[0])[0] == "gptq"


def test_an_act_order_folder_is_rounded_again_at_8_bits(tmp_path):
    """Groups that are scattered over K fit no groups of ours: 8 bits lose less than 1/100 of what 4 bits had lost."""
    source, meant = packed_folder(
        tmp_path / "model",
        lambda weight: gptq(weight, 4, 32, act_order=True, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
    )

    matrix = Quantised(open_checkpoint(source)).matrix(NAMES[1])

    original = weights(tied=True)["model.layers.1.mlp.down_proj.weight"]
    lost, added = (np.square(other - meant[1]).mean() for other in (original, dequantize(matrix)))
    assert matrix.scheme == Scheme(8, 32, symmetric=True)
    assert added < lost / 100


def test_an_awq_folder_is_read_without_rounding_again(tmp_path):
    """AWQ's interleaved columns and plain zeros come out as the values they stand for."""
    source, meant = packed_folder(
        tmp_path / "model",
        lambda weight: awq(weight, 32),
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
    )

    quantised = Quantised(open_checkpoint(source))

    for name, wanted in zip(NAMES, meant, strict=True):
        assert quantised.matrix(name).scheme == Scheme(4, 32)
        assert np.abs(dequantize(quantised.matrix(name)) - wanted).max() <= np.abs(wanted).max() * 2**-9


def test_what_was_left_as_it_is_is_rounded_when_it_is_loaded(tmp_path):
    """The embedding beside packed layers is fp32 in the file, and 8 bits for the native library."""
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    source, _ = packed_folder(
        tmp_path / "model", lambda weight: gptq(weight, 4, 32, act_order=False, symmetric=True), config
    )

    assert Quantised(open_checkpoint(source)).matrix("embed.weight").scheme == Scheme(8, 32, symmetric=True)


@pytest.mark.parametrize(
    "config",
    [
        {"quant_method": "gptq", "bits": 5, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": "4"},
        True,
    ],
)
def test_packings_that_are_not_read_are_refused(tmp_path, config):
    """What we cannot read is named, with what to do instead; it is never taken for something else."""
    source, _ = packed_folder(tmp_path / "model", lambda weight: {"stands for": weight}, config)

    with pytest.raises(CheckpointError, match=r"quantization_config .*tidegate quantize"):
        open_checkpoint(source)


@pytest.mark.parametrize("damage", ["scales", "g_idx", "group"])
def test_packed_parts_that_do_not_belong_together_are_refused(tmp_path, damage):
    """Scales of another shape, groups out of range and groups that fit nothing are errors that name the tensor."""

    def pack(weight):
        parts = gptq(weight, 4, 32, act_order=False, symmetric=False)
        if damage == "group":
            del parts["g_idx"]
        changes = {
            "scales": {"scales": parts["scales"][:1]},
            "g_idx": {"g_idx": np.full(weight.shape[1], 99, np.int32)},
        }
        return parts | changes.get(damage, {})

    group = 48 if damage == "group" else 32
    source, _ = packed_folder(tmp_path / "model", pack, {"quant_method": "gptq", "bits": 4, "group_size": group})

    with pytest.raises(CheckpointError, match=r"attention\.q\.weight cannot be read as gptq"):
        open_checkpoint(source).tensor("layers.0.attention.q.weight")
