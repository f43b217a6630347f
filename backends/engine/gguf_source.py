"""A GGUF file as a checkpoint: its keys as a ModelSpec, its tensors under canonical names. Refuses to know folders."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.engine import gguf_file, tokens
from backends.engine.problems import CheckpointError
from backends.engine.rope import Stretch, checked, factors_of
from backends.engine.runner import ModelSpec

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOP = {"embed": "token_embd", "norm": "output_norm", "head": "output"}
LAYER = {
    "attention.norm": "attn_norm", "attention.q": "attn_q", "attention.k": "attn_k", "attention.v": "attn_v",
    "attention.o": "attn_output", "attention.q_norm": "attn_q_norm", "attention.k_norm": "attn_k_norm",
    "ffn.norm": "ffn_norm", "ffn.gate": "ffn_gate", "ffn.up": "ffn_up", "ffn.down": "ffn_down",
}  # fmt: skip


class GgufSource:
    """See `weights.Source`."""

    def __init__(self, path: Path) -> None:
        self.files = (path,)
        self.file = gguf_file.read(path)
        self._stretch = self._read_stretch()
        self.spec = self._read_spec()
        self.rope_factors = self._read_rope_factors()

    @cached_property
    def tokenizer(self) -> tokens.Tokenizer:
        """Built on first use: 0.1 s for 49,152 tokens."""
        return tokens.from_gguf(self.file)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `weights.Source`."""
        tensor = self.file.tensors.get(_stored_name(name))
        return tensor.shape if tensor else None

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `weights.Source`."""
        kind, rows = self.raw(name)
        shape = self.file.tensors[_stored_name(name)].shape
        return _dequantised(kind, rows).reshape(shape)

    def raw(self, name: str) -> tuple[str, NDArray[np.uint8]]:
        """See `weights.Source`."""
        stored = _stored_name(name)
        rows = self.file.rows(stored)
        part = name.removesuffix(".weight")
        if self.spec.architecture == "llama" and part.endswith(("attention.q", "attention.k")):
            rows = half_rotation_order(rows, self.spec.head_dim)
        return self.file.tensors[stored].type, rows

    def _read_spec(self) -> ModelSpec:
        architecture = self._text("general.architecture")
        if architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.files[0]}: architecture {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are"
            )
        hidden, heads = self._count("embedding_length"), self._count("attention.head_count")
        head_dim = self._count("attention.key_length", hidden // heads)
        if self._count("rope.dimension_count", head_dim) != head_dim or head_dim % 2:
            raise CheckpointError(f"{self.files[0]}: rope over a part of each head is not supported")
        return ModelSpec(
            architecture=architecture,
            layers=self._count("block_count"),
            hidden=hidden,
            ffn=self._count("feed_forward_length"),
            heads=heads,
            kv_heads=self._count("attention.head_count_kv", heads),
            head_dim=head_dim,
            vocabulary=(self.shape("embed.weight") or (0,))[0],
            context_tokens=self._count("context_length"),
            norm_eps=self._number("attention.layer_norm_rms_epsilon"),
            rope_theta=self._number("rope.freq_base", 10000.0),
            rope_scale=self._stretch.scale if self._stretch else 1.0,
            tied_head="output.weight" not in self.file.tensors,
            attention_bias="blk.0.attn_q.bias" in self.file.tensors,
            qk_norm="blk.0.attn_q_norm.weight" in self.file.tensors,
        )

    def _read_rope_factors(self) -> NDArray[np.float32] | None:
        half = self.spec.head_dim // 2
        if "rope_freqs.weight" in self.file.tensors:
            factors = _dequantised(
                self.file.tensors["rope_freqs.weight"].type, self.file.rows("rope_freqs.weight")
            ).reshape(-1)
            if len(factors) != half or not (factors > 0).all():
                raise CheckpointError(f"{self.files[0]}: rope_freqs.weight should be {half} positive factors")
            return factors
        return factors_of(self._stretch, self.spec)

    def _read_stretch(self) -> Stretch | None:
        """Read linear and yarn from the keys; llama3's factors are a tensor of their own."""
        kind = self.file.metadata.get(f"{self._text('general.architecture')}.rope.scaling.type", "none")
        if kind == "none":
            return None
        if kind not in {"linear", "yarn"}:
            raise CheckpointError(f"{self.files[0]}: rope scaling {kind!r} is not supported; linear and yarn are")
        factor = self._number("rope.scaling.factor")
        stretch = Stretch(
            "linear" if kind == "linear" else "yarn",
            factor,
            original_context=self._count("rope.scaling.original_context_length", self._count("context_length")),
            beta_fast=self._number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=self._number("rope.scaling.yarn_beta_slow", 1.0),
            attention_factor=self._number("rope.scaling.attn_factor", 1.0) * Stretch("yarn", factor).scale,
        )
        try:
            checked(stretch, theta=self._number("rope.freq_base", 10000.0))
        except ValueError as exc:
            raise CheckpointError(f"{self.files[0]}: {exc}") from exc
        return stretch

    def _text(self, key: str) -> str:
        value = self.file.metadata.get(key)
        if not isinstance(value, str):
            raise CheckpointError(f"{self.files[0]}: {key} is {value!r}; a text is needed")
        return value

    def _count(self, key: str, default: int | None = None) -> int:
        key = f"{self._text('general.architecture')}.{key}"
        value = self.file.metadata.get(key, default)
        if not isinstance(value, int) or not 0 < value < 1 << 31:
            raise CheckpointError(f"{self.files[0]}: {key} is {value!r}; a positive count is needed")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        key = f"{self._text('general.architecture')}.{key}"
        value = self.file.metadata.get(key, default)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise CheckpointError(f"{self.files[0]}: {key} is {value!r}; a positive number is needed")
        return value


def half_rotation_order(rows: NDArray[np.uint8], head_dim: int) -> NDArray[np.uint8]:
    """Undo the interleaving of rope pairs: rows 0 1 2 3 … of a head become 0 2 4 … 1 3 5 …."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def _stored_name(name: str) -> str:
    part, _, end = name.rpartition(".")
    if part in TOP:
        return f"{TOP[part]}.{end}"
    _, layer, inside = part.split(".", 2)
    return f"blk.{layer}.{LAYER[inside]}.{end}"


def _dequantised(kind: str, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
    if kind == "F32":
        return rows.view("<f4").astype(np.float32)
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415  # a worker that reads blocks as they are needs none

    values: NDArray[np.float32] = quants.dequantize(rows, GGMLQuantizationType[kind])
    return values
