"""A Hugging Face folder small enough to quantise in a second: random weights, a tokenizer whose tokens are bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from backends.engine import texts

HIDDEN, FFN, HEADS, KV_HEADS, LAYERS, VOCABULARY = 96, 160, 3, 1, 2, 256
CONFIG = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": 32, "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "eos_token_id": 0,
}  # fmt: skip


def write_tiny(folder: Path, *, tied: bool = True) -> Path:
    """Write config, weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_bytes(orjson.dumps(CONFIG))
    save_file(weights(tied=tied), folder / "model.safetensors")
    tokenizer = tokenizers.Tokenizer(models.BPE({char: at for at, char in enumerate(alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def alphabet() -> list[str]:
    """List the characters that stand for bytes."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def weights(*, tied: bool) -> dict[str, np.ndarray]:
    """Draw weights whose columns differ in size, as real ones do; an untied model knows which byte follows which."""
    rng = np.random.default_rng(3)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns)) * rng.lognormal(0, 0.5, columns) / columns**0.5

    shapes = {
        "self_attn.q_proj": (HEADS * 32, HIDDEN), "self_attn.k_proj": (KV_HEADS * 32, HIDDEN),
        "self_attn.v_proj": (KV_HEADS * 32, HIDDEN), "self_attn.o_proj": (HIDDEN, HEADS * 32),
        "mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN),
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": 3 * matrix(VOCABULARY, HIDDEN), "model.norm.weight": np.ones(HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}{name}.weight": 0.3 * matrix(*shape) for name, shape in shapes.items()}
        norms = ("input_layernorm", "post_attention_layernorm")
        tensors |= {f"{prefix}{name}.weight": rng.uniform(0.5, 1, HIDDEN) for name in norms}
    if not tied:
        tensors["model.embed_tokens.weight"], tensors["lm_head.weight"] = bigrams(rng)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def bigrams(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Give an embedding and a head that predict the shipped text's next byte: rounding them can only do harm."""
    ids = {char: at for at, char in enumerate(alphabet())}
    tokens = np.array([ids[char] for char in byte_characters(texts.shipped().held_out)])
    counts = np.full((VOCABULARY, VOCABULARY), 0.05)
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1)
    frequent = np.argsort(-counts.sum(1))[:HIDDEN]
    places = np.full(VOCABULARY, HIDDEN - 1)
    places[frequent] = np.arange(HIDDEN)
    turn, _ = np.linalg.qr(rng.standard_normal((HIDDEN, HIDDEN)))
    logprobs = np.log(counts[frequent] / counts[frequent].sum(1, keepdims=True))
    return 10 * np.eye(HIDDEN)[places] @ turn, logprobs.T @ turn / HIDDEN**0.5


def byte_characters(text: str) -> str:
    """Spell a text in the characters that stand for its bytes."""
    return "".join(piece for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text))
