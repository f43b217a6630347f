"""Stretched positions are those of transformers, in both runners, from a file's own words or a release's."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import openai
import pytest
import torch
from gguf import GGUFWriter, RopeScalingType

from backends.engine.model import TorchRunner
from backends.engine.native import NativeRunner, rope_tables
from backends.engine.planning import Settings, plan_kv
from backends.engine.problems import CheckpointError
from backends.engine.quantised import Quantised
from backends.engine.rope import stretch_of
from backends.engine.runner import Batch, Runner
from backends.engine.weights import Checkpoint, open_checkpoint
from backends.kernels.cpu import native_missing
from tests.conftest import SMOLLM2
from tests.serving import serving
from tests.tiny_checkpoint import write_tiny

needs_native = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
ALIKE = 0.97  # correlation of logits where one side has 8 bits for weights and activations; 0.984 and more measured
CONTEXT, FACTOR, VOCABULARY = 64, 4.0, 320
MODEL = '[[models]]\nname = "m"\nreleases = [{}]\n'
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": FACTOR, "original_max_position_embeddings": CONTEXT}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": FACTOR}


def tiny(**changes):
    """Make a tiny Qwen2 of transformers, whose weights are random."""
    import transformers  # noqa: PLC0415 - takes seconds

    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, initializer_range=0.2, rms_norm_eps=1e-6, **changes,
    )  # fmt: skip
    torch.manual_seed(5)
    return transformers.Qwen2ForCausalLM(config).eval()


def tokens(count: int) -> list[int]:
    """Draw a prompt."""
    return [int(at) for at in np.random.default_rng(2).integers(0, VOCABULARY, count)]


def logits_of(runner: Runner, ids: list[int], budget: int = 512) -> np.ndarray:
    """Return the logits of the last chunk's positions, reading `budget` tokens a step."""
    table = np.arange(runner.kv_blocks, dtype=np.int32)[None]
    for start in range(0, len(ids), budget):
        positions = np.arange(start, min(start + budget, len(ids)), dtype=np.int32)
        rows, end = np.arange(len(positions), dtype=np.int32), int(positions[-1]) + 1
        part = np.array(ids[start:end], np.int32)
        starts, lengths = np.array([0, len(part)], np.int32), np.array([end], np.int32)
        logits = runner.forward(Batch(part, positions, starts, lengths, table, rows))
    return logits


def torch_logits(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """Compute in the reference runner."""
    return logits_of(TorchRunner(checkpoint, kv_blocks=-(-len(ids) // 16), block_tokens=16, threads=1), ids)


def native_logits(checkpoint: Checkpoint, ids: list[int]) -> np.ndarray:
    """Compute in the native library."""
    with NativeRunner(Quantised(checkpoint), kv_blocks=-(-len(ids) // 16), threads=2) as runner:
        return logits_of(runner, ids).copy()


def transformers_logits(model, ids: list[int], **settings: int) -> np.ndarray:
    """Compute in transformers."""
    with torch.inference_mode():
        return model(torch.tensor([ids]), **settings).logits[0].numpy()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "rope"), [("yarn", YARN), ("linear", LINEAR)])
def test_a_release_stretches_a_plain_model_as_its_config_would(tmp_path, kind, rope) -> None:
    """What `rope_scaling` says of a release is what transformers makes of the same words in config.json."""
    tiny(rope_parameters={"rope_type": "default", "rope_theta": 1e4}).save_pretrained(tmp_path)
    ids = tokens(200)

    checkpoint = open_checkpoint(str(tmp_path)).stretched(kind, FACTOR)

    assert checkpoint.spec.context_tokens == CONTEXT * FACTOR
    wanted = transformers_logits(tiny(rope_parameters=rope), ids)
    np.testing.assert_allclose(torch_logits(checkpoint, ids), wanted, atol=1e-4, rtol=0)


@needs_native
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rope", [YARN, LINEAR])
def test_the_native_library_turns_by_the_angles_of_transformers(tmp_path, rope) -> None:
    """Its tables are transformers' cosines and sines; beyond them only the 8 bits of the weights differ."""
    model, ids = tiny(rope_parameters=rope), tokens(200)
    model.save_pretrained(tmp_path)
    checkpoint = replace(open_checkpoint(str(tmp_path)), context_tokens=200)

    tables = rope_tables(checkpoint.spec, checkpoint.rope_factors)

    wanted = [part[0, :, :8].numpy() for part in model.model.rotary_emb(torch.zeros(1), torch.arange(200)[None])]
    np.testing.assert_allclose(tables, wanted, atol=2e-5)
    got = native_logits(checkpoint, ids)
    assert np.corrcoef(got.ravel(), transformers_logits(model, ids).ravel())[0, 1] > ALIKE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [RopeScalingType.YARN, RopeScalingType.LINEAR])
def test_a_gguf_says_its_stretching_in_its_keys(tmp_path, kind) -> None:
    """The same model as GGUF with rope.scaling keys gives transformers' logits."""
    model = tiny(rope_parameters=YARN if kind == RopeScalingType.YARN else LINEAR, tie_word_embeddings=True)
    write_gguf(tmp_path / "m.gguf", model, kind)
    ids = tokens(200)

    got = torch_logits(open_checkpoint(str(tmp_path / "m.gguf")), ids)

    np.testing.assert_allclose(got, transformers_logits(model, ids), atol=1e-4, rtol=0)


def write_gguf(path, model, kind: RopeScalingType) -> None:
    """Write a Qwen2 of transformers, whose rows need no reordering, as fp32 GGUF."""
    writer, config = GGUFWriter(path, "qwen2"), model.config
    writer.add_block_count(2)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_context_length(int(CONTEXT * FACTOR))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(FACTOR)
    writer.add_rope_scaling_orig_ctx_len(CONTEXT)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(gguf_name(name), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """Translate a name of transformers."""
    for theirs, ours in {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm",
    }.items():  # fmt: skip
        name = name.replace(theirs, ours)
    return name


@needs_native
@pytest.mark.filterwarnings("ignore")
def test_a_prompt_of_13000_tokens_is_read_beyond_the_models_own_context(tmp_path) -> None:
    """A model of 64 positions, stretched 256 times, reads it in chunks as transformers does in one piece."""
    tiny(rope_parameters={"rope_type": "default", "rope_theta": 1e4}).save_pretrained(tmp_path)
    ids = tokens(13_000)

    got = native_logits(open_checkpoint(str(tmp_path)).stretched("yarn", 256.0), ids)

    model = tiny(rope_parameters=YARN | {"factor": 256.0})
    wanted = transformers_logits(model, ids, logits_to_keep=len(got))
    assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > ALIKE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_embedded_model_takes_an_agents_prompt_once_it_is_stretched(tmp_path) -> None:
    """With the lines that gateway.toml names, 13,000 tokens are answered through the server, and 40,000 refused."""
    release = f'{{ source = "{SMOLLM2}", context = 32768, rope_scaling = {{ type = "yarn", factor = 4.0 }} }}'
    with serving(tmp_path, server='request_timeout = "30m"', models=MODEL.format(release)) as served:
        served.event("worker.ready")
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0, timeout=1800)

        answer = client.completions.create(model="m", prompt=[260] * 13_000, max_tokens=4)
        with pytest.raises(openai.BadRequestError, match="40000 tokens, but the model's context is 32768"):
            client.completions.create(model="m", prompt=[260] * 40_000, max_tokens=4)

    assert answer.usage.prompt_tokens == 13_000
    assert answer.usage.completion_tokens == 4


def test_a_file_that_is_stretched_already_is_not_stretched_again(tmp_path) -> None:
    """Two stretchings on top of each other are nobody's intention."""
    tiny(rope_parameters=YARN).save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match="stretched to 256 tokens already; take rope_scaling out"):
        open_checkpoint(str(tmp_path)).stretched("yarn", 2.0)


def test_equal_files_with_other_stretches_have_other_digests(tmp_path) -> None:
    """Their KV cannot be shared."""
    plain = open_checkpoint(str(write_tiny(tmp_path)))

    digests = {plain.digest, plain.stretched("yarn", 2.0).digest, plain.stretched("yarn", 4.0).digest}

    assert len(digests) == 3


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"rope_type": "longrope"}, "'longrope' is not supported; linear, llama3, yarn are"),
        ({"rope_type": "yarn"}, "needs factor as a positive number, not None"),
        ({"type": "linear", "factor": "4"}, "needs factor as a positive number, not '4'"),
        ({"type": "linear", "factor": math.nan}, "not nan"),
        ({"type": "llama3", "factor": 8, "low_freq_factor": 4.0, "high_freq_factor": 4}, "must be more than"),
    ],
)
def test_words_that_mean_nothing_are_refused(said, words) -> None:
    """The error says which number is missing or wrong."""
    with pytest.raises(ValueError, match=words):
        stretch_of(said, theta=1e4, context=64)


@pytest.mark.parametrize(
    ("stretch", "words"),
    [
        ({}, "context = 5000 is more than the model's own 1024; lower it, or stretch the model with rope_scaling"),
        ({"rope_scaling": "yarn", "rope_factor": 4.0}, "more than the 4096 that a rope_scaling factor of 4 gives"),
    ],
)
def test_a_context_beyond_the_stretch_says_what_to_raise(tmp_path, stretch, words) -> None:
    """Whoever asks for more context than there is reads how to get it."""
    checkpoint = open_checkpoint(str(write_tiny(tmp_path)))
    settings = Settings(
        model="m", source="", context_tokens=5000, max_batch=1, token_budget=1, block_tokens=16,
        kv_memory_bytes=1 << 30, max_waiting=1, **stretch,
    )  # fmt: skip
    if stretch:
        checkpoint = checkpoint.stretched("yarn", 4.0)

    with pytest.raises(CheckpointError, match=words):
        plan_kv(checkpoint.spec, settings, token_bytes=4)
