"""A GGUF with a SentencePiece tokenizer is read as SentencePiece itself reads the model it was made from."""

from __future__ import annotations

import io
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from backends.engine import gguf_file
from backends.engine.problems import CheckpointError
from backends.engine.tokens import Tokenizer, from_gguf

# What the pieces are learnt from: our own manual, so that no text need be fetched.
CORPUS = Path(__file__).parents[1].joinpath("gateway.toml").read_text("utf-8").splitlines()
TEXTS = ("Hello world", "  two  spaces", "def f(x):\n\treturn x", "naïve 😀 日本語", "1234567", " ", "the the the", "")


@pytest.fixture(scope="module")
def peer() -> sentencepiece.SentencePieceProcessor:
    """Train a tokenizer with the settings of Llama's."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def written(peer: sentencepiece.SentencePieceProcessor, path: Path, *, scores: int | None = None) -> Path:
    """Write the model as llama.cpp's converter does; `scores` cuts their list short."""
    ids = range(peer.get_piece_size())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([peer.id_to_piece(at) for at in ids])
    writer.add_token_scores([peer.get_score(at) for at in ids][:scores])
    writer.add_token_types([
        2 if peer.is_unknown(at) else 3 if peer.is_control(at) else 6 if peer.is_byte(at) else 1 for at in ids
    ])  # fmt: skip
    writer.add_unk_token_id(peer.unk_id())
    writer.add_bos_token_id(peer.bos_id())
    writer.add_eos_token_id(peer.eos_id())
    writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tokenizer(peer: sentencepiece.SentencePieceProcessor, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Read it back."""
    return from_gguf(gguf_file.read(written(peer, tmp_path_factory.mktemp("spm") / "m.gguf")))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_sentencepiece(tokenizer: Tokenizer, peer: sentencepiece.SentencePieceProcessor, text: str):
    """Spaces, digits, line breaks and characters without a piece of their own included."""
    assert tokenizer.encode(text, special=True) == peer.encode(text)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581"), max_size=40))
def test_any_text_has_sentencepiece_s_tokens(tokenizer: Tokenizer, peer: sentencepiece.SentencePieceProcessor, text):
    """The merges made of scores join what the scores join; unassigned characters become their bytes."""
    assert tokenizer.encode(text, special=False) == peer.encode(text)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581"), min_size=1, max_size=40))
def test_text_comes_back_with_the_space_that_was_put_before_it(tokenizer: Tokenizer, text: str):
    """A token at a time; bytes are held back until they are a character."""
    shown = tokenizer.detokenizer()

    pieces = [shown.push(token) for token in tokenizer.encode(text, special=False)]

    assert "".join(pieces) + shown.flush() == " " + text


def test_a_piece_without_a_score_is_refused(peer: sentencepiece.SentencePieceProcessor, tmp_path: Path):
    """The file is named, and what is wrong with it."""
    with pytest.raises(CheckpointError, match="scores should have one entry"):
        from_gguf(gguf_file.read(written(peer, tmp_path / "cut.gguf", scores=7)))
