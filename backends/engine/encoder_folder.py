"""A folder of sentence-transformers as an `Encoder`: config.json, modules.json, model.safetensors, tokenizer.json.

Refuses to know what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from backends.engine import safetensors_file
from backends.engine.bert import Array, Bert, BertSpec, shapes
from backends.engine.encoder import BATCH_TOKENS, Encoder, Pooling
from backends.engine.files import read_json
from backends.engine.problems import CheckpointError
from backends.engine.safetensors_file import StoredTensor
from backends.engine.weights import located

_POOLINGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "first"}
_WIDTHS = {**safetensors_file.WIDTHS, "I64": 8}  # older folders hold the numbers of the places too
_MODULES = ("Transformer", "Pooling", "Normalize")


def is_encoder(source: str) -> bool:
    """Whether a source makes vectors instead of text."""
    config = located(source) / "config.json"
    return config.is_file() and read_json(config).get("model_type") == "bert"


def encoder_bytes(source: str) -> tuple[int, int]:
    """Return what weights and the largest product of an encoder take, both in fp32; raises CheckpointError."""
    folder = located(source)
    spec = _Config(folder / "config.json", read_json(folder / "config.json")).spec()
    weights = 4 * sum(math.prod(shape) for _, shape in shapes(spec))
    scores = spec.heads * _most_tokens(folder, spec)
    return weights, 4 * BATCH_TOKENS * (6 * spec.hidden + 4 * spec.ffn + 3 * scores)


def open_encoder(source: str, context_tokens: int = 0) -> Encoder:
    """Open a folder; raises CheckpointError."""
    folder = located(source)
    config = _Config(folder / "config.json", read_json(folder / "config.json"))
    spec = config.spec()
    most = _most_tokens(folder, spec)
    if context_tokens > most:
        raise CheckpointError(f"{folder}: context = {context_tokens} is more than the model's own {most}; lower it")
    tensors = safetensors_file.read(folder / "model.safetensors", _WIDTHS)
    _check_shapes(folder / "model.safetensors", spec, tensors)
    tokenizer = _tokenizer(folder / "tokenizer.json")
    if tokenizer.get_vocab_size() > spec.vocabulary:
        raise CheckpointError(f"{folder}: the tokenizer has more tokens than vocab_size = {spec.vocabulary}")

    def tensor(name: str) -> Array:
        return tensors[name].as_float32()

    return Encoder(Bert(spec, tensor), tokenizer, _pooling(folder), context_tokens or most)


@dataclass(frozen=True, slots=True)
class _Config:
    path: Path
    values: Mapping[str, Any]

    def spec(self) -> BertSpec:
        """Read the model's shape; what would be computed in another way is refused."""
        self._only("hidden_act", "gelu")
        self._only("position_embedding_type", "absolute")
        hidden, heads = self._count("hidden_size"), self._count("num_attention_heads")
        if hidden % heads:
            raise CheckpointError(f"{self.path}: hidden_size {hidden} is not a multiple of {heads} heads")
        return BertSpec(
            layers=self._count("num_hidden_layers"),
            hidden=hidden,
            heads=heads,
            ffn=self._count("intermediate_size"),
            positions=self._count("max_position_embeddings"),
            vocabulary=self._count("vocab_size"),
            types=self._count("type_vocab_size"),
            norm_eps=float(self.values.get("layer_norm_eps", 1e-12)),
        )

    def _count(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise CheckpointError(f"{self.path}: {key} is {value!r}; a positive count is needed")
        return value

    def _only(self, key: str, value: str) -> None:
        given = self.values.get(key, value)
        if given != value:
            raise CheckpointError(f"{self.path}: {key} is {given!r}; only {value!r} is supported")


def _check_shapes(path: Path, spec: BertSpec, tensors: Mapping[str, StoredTensor]) -> None:
    for name, wanted in shapes(spec):
        shape = tensors[name].shape if name in tensors else None
        if shape != wanted:
            has = "there is no such tensor" if shape is None else f"its shape is {list(shape)}"
            raise CheckpointError(f"{path}: {name} should be {list(wanted)}, but {has}")


def _most_tokens(folder: Path, spec: BertSpec) -> int:
    """Return the longest text that the model was trained for: often fewer tokens than it has places."""
    limits = folder / "sentence_bert_config.json"
    trained = read_json(limits).get("max_seq_length") if limits.is_file() else None
    return min(trained, spec.positions) if type(trained) is int and trained > 0 else spec.positions


def _pooling(folder: Path) -> Pooling:
    """Find out how the tokens' vectors become the text's."""
    for module in _modules(folder / "modules.json"):
        if module.rpartition(".")[2] not in _MODULES:
            raise CheckpointError(f"{folder / 'modules.json'}: the module {module} is not supported")
    path = folder / "1_Pooling" / "config.json"
    config = read_json(path)
    chosen = [pooling for key, pooling in _POOLINGS.items() if config.get(key)]
    others = [
        key for key, value in config.items() if key.startswith("pooling_mode_") and value and key not in _POOLINGS
    ]
    if len(chosen) != 1 or others:
        raise CheckpointError(f"{path}: one of {', '.join(_POOLINGS)} must be chosen, and nothing else")
    return chosen[0]


def _modules(path: Path) -> list[str]:
    try:
        return [str(module["type"]) for module in orjson.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError, KeyError) as exc:
        raise CheckpointError(f"{path}: cannot be read: {exc}") from exc


def _tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as exc:  # the tokenizers package raises nothing narrower
        raise CheckpointError(f"{path}: cannot be read: {exc}") from exc
