"""What `tidegate quantize` wrote is served with the quality that its report claims."""

from __future__ import annotations

import numpy as np
import openai
import orjson
import pytest
from rich.console import Console

from backends.engine import quantizer, texts
from backends.engine.model import TorchRunner
from backends.engine.native import NativeRunner
from backends.engine.quantised import Quantised
from backends.engine.quantize import Order
from backends.engine.runner import Batch, Runner
from backends.engine.weights import Checkpoint, open_checkpoint
from backends.kernels.cpu import native_missing
from tests.serving import serving
from tests.tiny_checkpoint import write_tiny

BLOCKS = texts.WINDOW // 16


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Checkpoint:
    """Quantise a model that predicts the held-out text, and open what came of it."""
    folder = tmp_path_factory.mktemp("quantised")
    source = write_tiny(folder / "source", tied=False)
    assert quantizer.quantize(Order(str(source), folder / "out", 0.4, 0.5, "int8", None, None, 0), quiet()) == 0
    return open_checkpoint(str(folder / "out"))


def quiet() -> Console:
    """Show nothing."""
    return Console(quiet=True)


def claimed(written: Checkpoint, activations: str) -> float:
    """Read the perplexity that the report states."""
    return orjson.loads(written.source.files[0].read_bytes())["quality"]["quality"][activations]["perplexity"]


def perplexity(runner: Runner, checkpoint: Checkpoint) -> float:
    """Measure a runner on the text that the report is about."""
    windows = texts.windows(checkpoint.tokenizer, texts.shipped().held_out, quantizer.HELD_OUT_WINDOWS)
    losses = [loss(runner.forward(whole(tokens)), tokens) for tokens in windows.astype(np.int32)]
    return float(np.exp(np.mean(losses)))


def whole(tokens: np.ndarray) -> Batch:
    """Give one sequence as one step that wants every row."""
    count = len(tokens)
    every = np.arange(count, dtype=np.int32)
    starts, lengths = np.array([0, count], np.int32), np.array([count], np.int32)
    return Batch(tokens, every, starts, lengths, np.arange(BLOCKS, dtype=np.int32)[None], every)


def loss(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Give the negative log-likelihood of each next token."""
    shifted = logits[:-1].astype(np.float64) - logits[:-1].max(1, keepdims=True)
    return np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(tokens) - 1), tokens[1:]]


def test_a_report_says_what_the_model_was_compared_with(written):
    """The reference, its stored type and the text stand beside every figure of quality."""
    quality = orjson.loads(written.source.files[0].read_bytes())["quality"]

    assert "computed in fp32, its matrices being stored as F32 (16)" in quality["against"]
    assert "pydoc_data.topics" in quality["text"]


@pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
def test_the_native_library_serves_what_the_report_claims_for_int8(written):
    """Perplexity through a worker's own kernels is the claimed one within 0.2 %: KV is fp16 there, fp32 here."""
    with NativeRunner(Quantised(written), kv_blocks=BLOCKS) as runner:
        assert perplexity(runner, written) == pytest.approx(claimed(written, "int8"), rel=0.002)


def test_the_reference_serves_what_the_report_claims_for_fp32(written):
    """With fp32 activations the measured perplexity is the claimed one."""
    runner = TorchRunner(written, kv_blocks=BLOCKS, block_tokens=16, threads=1)

    assert perplexity(runner, written) == pytest.approx(claimed(written, "fp32"), rel=1e-4)


def test_a_gateway_serves_the_written_folder(written, tmp_path):
    """The folder is a release's source: a worker loads it and answers."""
    models = f'[[models]]\nname = "small"\nreleases = [{{ source = "{written.source.files[0].parent}" }}]\n'
    with serving(tmp_path, models=models) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="k") as client:
        answer = client.completions.create(model="small", prompt="The ", max_tokens=5, extra_body={"ignore_eos": True})

    assert answer.usage.completion_tokens == 5
