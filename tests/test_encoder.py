"""The encoder: the same vectors as the reference, whatever is computed beside; what it cannot read it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from backends.api import BackendError, Call
from backends.engine.encoder import Encoder
from backends.engine.encoder_folder import is_encoder, open_encoder
from backends.engine.problems import CheckpointError
from backends.engine.weights import located
from tests.conftest import MINILM, SMOLLM2

TEXTS = ("hello world", "", "Ünïcode 漢字 😀", "The quick brown fox jumps over the lazy dog. " * 20, "a", "b c " * 40)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Open all-MiniLM-L6-v2."""
    return open_encoder(MINILM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy its folder, to break it; the weights are linked."""
    copy = tmp_path / "model"
    shutil.copytree(located(MINILM), copy, ignore=shutil.ignore_patterns("model.safetensors"))
    (copy / "model.safetensors").symlink_to(located(MINILM) / "model.safetensors")
    return copy


def vectors(encoder: Encoder, *prompts: str | tuple[int, ...]) -> np.ndarray:
    """Embed prompts."""
    made = encoder.embed(Call("id", "m", prompts=prompts))
    return np.array([np.frombuffer(vector, "<f4") for vector in made.vectors])


def reference(texts: Sequence[str]) -> np.ndarray:
    """Do what the model's card says: transformers, the mean over the tokens, length 1."""
    tokens = AutoTokenizer.from_pretrained(located(MINILM))(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        rows = AutoModel.from_pretrained(located(MINILM))(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None].float()
    return torch.nn.functional.normalize((rows * mask).sum(1) / mask.sum(1), dim=1).numpy()


def test_the_vectors_are_those_of_the_reference(encoder: Encoder) -> None:
    """To 1e-5 in each number, for short, long, empty and foreign texts in one call."""
    made = vectors(encoder, *TEXTS)

    assert np.abs(made - reference(TEXTS)).max() < 1e-5
    assert np.allclose(np.linalg.norm(made, axis=1), 1, atol=1e-6)


def test_what_is_computed_beside_changes_nothing(encoder: Encoder) -> None:
    """A text has the same vector alone, among others, and twice."""
    together = vectors(encoder, *TEXTS, TEXTS[0])

    alone = np.concatenate([vectors(encoder, text) for text in TEXTS])

    assert np.abs(together[:-1] - alone).max() < 1e-6
    assert np.abs(together[0] - together[-1]).max() < 1e-6


def test_many_texts_are_split_into_batches(encoder: Encoder) -> None:
    """More than one product holds comes back in the order in which it was sent."""
    texts = [f"number {i} " * (i % 7 + 1) for i in range(400)]

    made = vectors(encoder, *texts)

    assert np.abs(made[::57] - vectors(encoder, *texts[::57])).max() < 1e-6


def test_tokens_are_as_good_as_their_text(encoder: Encoder) -> None:
    """Who has tokens already may send them; counts are exact."""
    (tokens,) = encoder.tokens(Call("id", "m", prompts=("hello world",)))

    assert np.allclose(vectors(encoder, tuple(tokens)), vectors(encoder, "hello world"))
    assert encoder.embed(Call("id", "m", prompts=("hello world", "a"))).prompt_tokens == 4 + 3
    assert encoder.text(tokens) == "[CLS] hello world [SEP]"


@pytest.mark.parametrize(
    ("call", "param", "words"),
    [
        (Call("id", "m", prompts=("a", "word " * 300)), "input[1]", "has 302 tokens, but the model's context is 256"),
        (Call("id", "m", prompts=((),)), "input[0]", "is empty"),
        (Call("id", "m", prompts=((30522,),)), "input[0]", "0 to 30521"),
        (Call("id", "m", prompts=("a",), dimensions=128), "dimensions", "this model gives 384"),
    ],
)
def test_what_would_have_another_meaning_is_refused(encoder: Encoder, call: Call, param: str, words: str) -> None:
    """A text is not cut, a vector not shortened; the field at fault is named."""
    with pytest.raises(BackendError, match=words.replace("[", r"\[")) as refused:
        encoder.embed(call)

    assert (refused.value.kind, refused.value.param) == ("rejected", param)


def test_an_encoder_is_told_from_other_models() -> None:
    """By what its folder says that it is."""
    assert is_encoder(MINILM)
    assert not is_encoder(SMOLLM2)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"hidden_size": 768}, "should be"),
        ("config.json", {"num_hidden_layers": 7}, "there is no such tensor"),
        ("config.json", {"num_attention_heads": 7}, "not a multiple"),
        ("config.json", {"hidden_act": "relu"}, "only 'gelu'"),
        ("config.json", {"vocab_size": None}, "vocab_size is None"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "nothing else"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": False}, "must be chosen"),
    ],
)
def test_a_folder_that_means_something_else_is_refused(folder: Path, file: str, change: object, words: str) -> None:
    """Nothing is computed in another way than the model was trained in."""
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**values, **change}))

    with pytest.raises(CheckpointError, match=words):
        open_encoder(str(folder))


@pytest.mark.parametrize("file", ["tokenizer.json", "modules.json", "config.json", "1_Pooling/config.json"])
def test_a_broken_file_is_named(folder: Path, file: str) -> None:
    """Whoever copied half of it sees which half."""
    (folder / file).write_text('{"half')

    with pytest.raises(CheckpointError, match=file):
        open_encoder(str(folder))


def test_a_module_that_is_not_known_is_refused(folder: Path) -> None:
    """A dense layer after the pooling would be left out silently."""
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))

    with pytest.raises(CheckpointError, match="Dense is not supported"):
        open_encoder(str(folder))


def test_the_context_can_be_lowered_but_not_raised() -> None:
    """A release's context holds for encoders too."""
    assert open_encoder(MINILM, 16).context_tokens == 16
    with pytest.raises(CheckpointError, match="more than the model's own 256"):
        open_encoder(MINILM, 512)
