"""A Hugging Face folder as a checkpoint: config.json, safetensors, tokenizer.json. Refuses to know GGUF."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.engine import safetensors_file, tokens
from backends.engine.files import read_json, read_text
from backends.engine.problems import CheckpointError
from backends.engine.rope import Stretch, factors_of, stretch_of
from backends.engine.runner import ModelSpec

ARCHITECTURES = ("llama", "qwen2", "qwen3")
TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
LAYER = {
    "attention.norm": "input_layernorm", "attention.q": "self_attn.q_proj", "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj", "attention.o": "self_attn.o_proj", "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm", "ffn.norm": "post_attention_layernorm", "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj",
}  # fmt: skip


class HfFolder:
    """See `weights.Source`."""

    def __init__(self, folder: Path, widths: Mapping[str, int] = safetensors_file.WIDTHS) -> None:
        self.folder = folder
        self.config = read_json(folder / "config.json")
        parts = _parts(folder)
        self.files = (folder / "config.json", *parts)
        self.tensors = {name: tensor for part in parts for name, tensor in safetensors_file.read(part, widths).items()}
        self._stretch = self._read_stretch()
        self.spec = self._read_spec()
        self.rope_factors = factors_of(self._stretch, self.spec)

    @cached_property
    def tokenizer(self) -> tokens.Tokenizer:
        """Built on first use."""
        return tokenizer_of(self.folder)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `weights.Source`."""
        tensor = self.tensors.get(stored_name(name))
        return tensor.shape if tensor else None

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `weights.Source`."""
        return self.tensors[stored_name(name)].as_float32()

    def raw(self, name: str) -> tuple[str, NDArray[np.uint8]]:
        """See `weights.Source`."""
        tensor = self.tensors[stored_name(name)]
        return tensor.type, tensor.bytes.reshape(math.prod(tensor.shape[:-1]), -1)

    def _read_spec(self) -> ModelSpec:
        architecture = self.config.get("model_type")
        if architecture not in ARCHITECTURES:
            raise self._problem(f"model_type {architecture!r} is not supported; {', '.join(ARCHITECTURES)} are")
        self._refuse_variants()
        heads, hidden = self._count("num_attention_heads"), self._count("hidden_size")
        return ModelSpec(
            architecture=architecture,
            layers=self._count("num_hidden_layers"),
            hidden=hidden,
            ffn=self._count("intermediate_size"),
            heads=heads,
            kv_heads=self._count("num_key_value_heads", heads),
            head_dim=self._count("head_dim", hidden // heads),
            vocabulary=self._count("vocab_size"),
            context_tokens=self._context(),
            norm_eps=self._positive("rms_norm_eps", self.config.get("rms_norm_eps", 1e-6)),
            rope_theta=self._theta(),
            rope_scale=self._stretch.scale if self._stretch else 1.0,
            tied_head=not any(name.startswith("lm_head.") for name in self.tensors),
            attention_bias="model.layers.0.self_attn.q_proj.bias" in self.tensors,
            qk_norm="model.layers.0.self_attn.q_norm.weight" in self.tensors,
        )

    def _refuse_variants(self) -> None:
        """Refuse what would compute wrong answers in silence."""
        if self.config.get("hidden_act", "silu") != "silu":
            raise self._problem(f"hidden_act {self.config['hidden_act']!r} is not supported; silu is")
        for key in ("use_sliding_window", "mlp_bias"):
            if self.config.get(key):
                raise self._problem(f"{key} is set, which is not supported")

    def _read_stretch(self) -> Stretch | None:
        try:
            return stretch_of(self._rope(), theta=self._theta(), context=self._count("max_position_embeddings"))
        except ValueError as exc:
            raise self._problem(str(exc)) from exc

    def _context(self) -> int:
        """Files that add YaRN to a model often leave the context at what it was trained with."""
        stretch = self._stretch
        stretched = int(stretch.original_context * stretch.factor) if stretch and stretch.kind == "yarn" else 0
        return max(self._count("max_position_embeddings"), stretched)

    def _theta(self) -> float:
        return self._positive("rope_theta", self._rope().get("rope_theta", self.config.get("rope_theta", 10000.0)))

    def _positive(self, key: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self._problem(f"{key} is {value!r}; a positive number is needed")
        return float(value)

    def _rope(self) -> dict[str, Any]:
        said = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(said, dict):
            raise self._problem(f"the rope parameters are {said!r}; a table is needed")
        return said

    def _count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or not 0 < value < 1 << 31:
            raise self._problem(f"{key} is {value!r}; a positive count is needed")
        return value

    def _problem(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.folder / 'config.json'}: {text}")


def tokenizer_of(folder: Path) -> tokens.Tokenizer:
    """Build a folder's tokenizer, with its chat template and the tokens that end an answer."""
    settings_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    settings = read_json(settings_file) if settings_file.exists() else {}
    template = read_text(template_file) if template_file.exists() else settings.get("chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{settings_file}: chat_template is {template!r:.80}; a text is needed")
    return tokens.from_folder(folder / "tokenizer.json", settings, _eos_ids(folder), template)


def _eos_ids(folder: Path) -> list[int]:
    generation = folder / "generation_config.json"
    file = generation if generation.exists() else folder / "config.json"
    found = read_json(file).get("eos_token_id", [])
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(token_id, int) for token_id in ids):
        raise CheckpointError(f"{file}: eos_token_id is {found!r:.80}; a token or a list of tokens is needed")
    return ids


def _parts(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    weight_map = read_json(index).get("weight_map", {})
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    if not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index}: weight_map must name files of this folder")
    return [folder / name for name in sorted(set(names))]


def stored_name(name: str) -> str:
    """Turn a canonical name into the one that Hugging Face's files have."""
    part, _, end = name.rpartition(".")
    if part in TOP:
        return f"{TOP[part]}.{end}"
    _, layer, inside = part.split(".", 2)
    return f"model.layers.{layer}.{LAYER[inside]}.{end}"
