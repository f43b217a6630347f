"""Text to tokens and back, as the checkpoint itself says. Refuses to know models, steps and HTTP.

A user's or a tool's text cannot forge a special token: where it spells one, such as `<|im_end|>`, that spelling is
encoded as ordinary text (transformers and llama.cpp would end the turn there). Every other prompt is encoded exactly
as transformers does. System and assistant texts are the application's own and may spell special tokens.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from backends.api import Call, Message, Tool
from backends.engine.gguf_file import GgufFile
from backends.engine.problems import CheckpointError, TemplateError
from backends.engine.sentencepiece import sentencepiece_bpe, spelled
from backends.engine.template import ChatTemplate
from backends.engine.thoughts import CLOSE, OPEN, ThoughtParser
from backends.engine.toolcalls import Syntax, renders_tools, syntax_of
from backends.engine.toolprompt import spelled_out

# Tokens that end an answer under every checkpoint that has them, whether or not its metadata says so.
END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|end|>", "<end_of_turn>")
# Unicode noncharacters, removed from every text that comes in: they fence spellings of special tokens.
FENCE_OPEN, FENCE_CLOSE = "\ufdd0", "\ufdd1"
PIECE_CHARACTERS = 1024  # every split of a piece is tried: a longer one costs the square of its length
CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type
_THOUGHT_TAGS = {OPEN.encode(), CLOSE.encode()}
_TAIL_TOKENS = 16  # in which a tag at the end of a prompt stands, were each of its characters a token

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a checkpoint says about its tokens besides the tokenizer proper."""

    prefix: tuple[int, ...]
    eos_ids: frozenset[int]
    template: str | None
    specials: dict[str, str]
    is_byte_level: bool = True  # else SentencePiece's spelling: ▁ is a space, <0x0A> a byte


class Tokenizer:
    """A checkpoint's tokenizer and chat template. Safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
        self._backend, self._vocabulary = backend, vocabulary
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self._spellings = re.compile("|".join(re.escape(added[i].content) for i in self._special_ids) or r"(?!)")
        knows_tags = set(self._added.values()) >= _THOUGHT_TAGS
        self._thinks = knows_tags or CLOSE in (vocabulary.template or "")
        self._shown: dict[int, bytes] = {}
        self.eos_ids = vocabulary.eos_ids

    @property
    def size(self) -> int:
        """How many token ids there are."""
        return self._backend.get_vocab_size()

    @property
    def syntax(self) -> Syntax:
        """How the model was taught to call a tool."""
        return syntax_of(self._vocabulary.template or "")

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the text's tokens; `special` says whether spellings of special tokens become those tokens."""
        backend = self._backend if special else self._plain
        return backend.encode(text, add_special_tokens=False).ids

    def thoughts(self, prompt: Sequence[int]) -> ThoughtParser | None:
        """Return what finds thoughts in an answer to `prompt`; None for a model that was not taught to think."""
        if not self._thinks:
            return None
        tail = b"".join(map(self.token_bytes, prompt[-_TAIL_TOKENS:])).decode(errors="replace")
        return ThoughtParser(is_open=tail.rstrip().endswith(OPEN))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, thinking: bool | None = None) -> str:
        """Return the chat as the model reads it, with tools in plain words for one that was taught none.

        Raises TemplateError.
        """
        if renders_tools(self._vocabulary.template or ""):
            return self._template.render(messages, tools, thinking=thinking)
        return self._template.render(spelled_out(messages, tools), thinking=thinking)

    def prompt(self, call: Call) -> list[list[int]]:
        """Return the tokens of each of the call's prompts; a chat is one prompt. Raises TemplateError."""
        if not call.prompts:
            tools = () if call.tool_choice.mode == "none" else call.tools
            fenced = [self._fenced(message) for message in call.messages]
            return [self._encode_fenced(self.render(fenced, tools, thinking=call.thinking))]
        return [
            [*self._vocabulary.prefix, *self.encode(prompt, special=True)] if isinstance(prompt, str) else list(prompt)
            for prompt in call.prompts
        ]

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; part of a character for some."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self._backend.id_to_token(token_id)
        if token is None:  # embeddings are often padded beyond the vocabulary
            return b""
        if not self._vocabulary.is_byte_level:
            return spelled(token)
        return bytes(BYTE_OF[char] for char in token) if BYTE_OF.keys() >= set(token) else token.encode()

    def shown_bytes(self, token_id: int) -> bytes:
        """Return the bytes that an answer shows of a token, remembered: control tokens show nothing."""
        shown = self._shown.get(token_id)
        if shown is None:
            shown = self.token_bytes(token_id)
            if self.is_special(token_id) and shown not in _THOUGHT_TAGS:  # which some files count among them
                shown = b""
            self._shown[token_id] = shown
        return shown

    def token_text(self, token_id: int) -> str:
        """Return a token's text, U+FFFD where it holds only a part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def detokenizer(self) -> Detokenizer:
        """Return a fresh one for one answer."""
        return Detokenizer(self)

    def is_special(self, token_id: int) -> bool:
        """Say whether a token is a control token, which answers do not show."""
        return token_id in self._special_ids

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._backend.to_str())
        plain.encode_special_tokens = True
        return plain

    @cached_property
    def _template(self) -> ChatTemplate:
        if self._vocabulary.template is None:
            raise TemplateError("this checkpoint has no chat template; use /v1/completions with a prompt of your own")
        return ChatTemplate(self._vocabulary.template, self._vocabulary.specials)

    def _fenced(self, message: Message) -> Message:
        text = message.text.replace(FENCE_OPEN, "").replace(FENCE_CLOSE, "")
        if message.role in {"user", "tool"}:
            text = self._spellings.sub(lambda match: f"{FENCE_OPEN}{match[0]}{FENCE_CLOSE}", text)
        return replace(message, text=text)

    def _encode_fenced(self, text: str) -> list[int]:
        pieces = re.split(f"{FENCE_OPEN}(.*?){FENCE_CLOSE}", text, flags=re.DOTALL)
        return [
            token_id
            for index, piece in enumerate(pieces)
            for token_id in self.encode(piece, special=index % 2 == 0)
        ]  # fmt: skip


class Detokenizer:
    """Tokens of one answer to text, a token at a time; never ends on a part of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Return the text this token completes; control tokens are not shown."""
        return self._decoder.decode(self._tokenizer.shown_bytes(token_id))

    def flush(self) -> str:
        """Return what was held back, U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)


def _bytes_of_characters() -> dict[str, int]:
    """Return the bytes behind the characters of byte-level BPE: printable Latin-1 is itself, the rest follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}


BYTE_OF = _bytes_of_characters()


def from_gguf(file: GgufFile) -> Tokenizer:
    """Build a file's tokenizer from its `tokenizer.*` keys; raises CheckpointError."""
    texts = _texts(file, "tokenizer.ggml.tokens")
    kinds = _token_kinds(file, len(texts))
    match file.metadata.get("tokenizer.ggml.model"):
        case "gpt2":
            backend = _byte_level_bpe(file, texts)
        case "llama":
            backend = _sentencepiece_bpe(file, texts)
        case other:
            raise CheckpointError(
                f"{file.path}: tokenizer {other!r} is not supported; byte-level BPE ('gpt2') and SentencePiece BPE "
                "('llama') are: use a model with such a tokenizer"
            )
    backend.add_special_tokens([AddedToken(texts[i], normalized=False) for i in np.flatnonzero(kinds == CONTROL)])
    backend.add_tokens([AddedToken(texts[i], normalized=False) for i in np.flatnonzero(kinds == USER_DEFINED)])
    return Tokenizer(backend, _gguf_vocabulary(file, texts))


def _byte_level_bpe(file: GgufFile, texts: list[str]) -> tokenizers.Tokenizer:
    merges = [_pair(file, merge) for merge in _texts(file, "tokenizer.ggml.merges")]
    pre = file.metadata.get("tokenizer.ggml.pre", "gpt-2")
    try:
        model = models.BPE({text: at for at, text in enumerate(texts)}, merges, ignore_merges=pre == "llama-bpe")
    except Exception as exc:  # tokenizers raises bare Exception for a merge that is not in the vocabulary
        raise CheckpointError(f"{file.path}: its tokenizer's merges and tokens do not fit: {exc}") from exc
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _pre_tokenizer(file, pre)
    return backend


def _sentencepiece_bpe(file: GgufFile, texts: list[str]) -> tokenizers.Tokenizer:
    scores = file.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(texts):
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.scores should have one entry for each of {len(texts)} tokens"
        )
    if (longest := max(map(len, texts))) > PIECE_CHARACTERS:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.tokens holds a text of {longest} characters, no piece")
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not isinstance(unknown, int) or not 0 <= unknown < len(texts):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.unknown_token_id is {unknown!r}, which is no token")
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    return sentencepiece_bpe(texts, scores.astype(np.float32), unknown=texts[unknown], add_space_prefix=prefix)


def _pre_tokenizer(file: GgufFile, pre: object) -> pre_tokenizers.PreTokenizer:
    match pre:
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        case "gpt-2" | "default":
            return pre_tokenizers.ByteLevel(add_prefix_space=False)
        case "qwen2" | "llama-bpe":
            split = pre_tokenizers.Split(Regex(QWEN2_SPLIT if pre == "qwen2" else LLAMA3_SPLIT), "isolated")
            bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            return pre_tokenizers.Sequence([split, bytes_only])
        case _:
            raise CheckpointError(
                f"{file.path}: tokenizer.ggml.pre {pre!r} is not supported; smollm, gpt-2, qwen2 and llama-bpe are"
            )


def _gguf_vocabulary(file: GgufFile, texts: list[str]) -> Vocabulary:
    def token_id(role: str) -> int | None:
        found = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if found is not None and not (isinstance(found, int) and 0 <= found < len(texts)):
            raise CheckpointError(f"{file.path}: tokenizer.ggml.{role}_token_id is {found!r}, which is no token")
        return found

    named = {role: token_id(role) for role in ("bos", "eos", "eot", "eom")}
    template = file.metadata.get("tokenizer.chat_template")
    bos = named["bos"]
    return Vocabulary(
        prefix=(bos,) if bos is not None and file.metadata.get("tokenizer.ggml.add_bos_token") else (),
        eos_ids=_end_ids(
            [named["eos"], named["eot"], named["eom"]], {t: texts.index(t) for t in END_TOKENS if t in texts}
        ),
        template=template if isinstance(template, str) else None,
        specials={f"{role}_token": texts[at] for role, at in named.items() if at is not None},
        is_byte_level=file.metadata.get("tokenizer.ggml.model") == "gpt2",
    )


def _end_ids(named: Iterable[int | None], known: Mapping[str, int]) -> frozenset[int]:
    return frozenset(token_id for token_id in (*named, *known.values()) if token_id is not None)


def _texts(file: GgufFile, key: str) -> list[str]:
    value = file.metadata.get(key)
    if not isinstance(value, list) or not value:
        raise CheckpointError(f"{file.path}: {key} is missing; the file has no usable tokenizer")
    return value


def _token_kinds(file: GgufFile, count: int) -> np.ndarray[Any, Any]:
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, np.ndarray) or len(kinds) != count:
        raise CheckpointError(
            f"{file.path}: tokenizer.ggml.token_type should have one entry for each of {count} tokens"
        )
    return kinds


def _pair(file: GgufFile, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.merges holds {merge!r}, which is not a pair")
    return left, right


def from_folder(file: Path, settings: Mapping[str, Any], eos_ids: Iterable[int], template: str | None) -> Tokenizer:
    """Build the tokenizer of a tokenizer.json; `settings` is tokenizer_config.json. Raises CheckpointError."""
    try:
        stored = file.read_text()
        backend = tokenizers.Tokenizer.from_str(stored)
        decoder = orjson.dumps(orjson.loads(stored)["decoder"])
    except Exception as exc:  # tokenizers raises bare Exception for a malformed file
        raise CheckpointError(f"{file}: cannot be read: {exc}") from exc
    if b"ByteLevel" not in decoder and b"ByteFallback" not in decoder:
        raise CheckpointError(f"{file}: only byte-level and SentencePiece BPE tokenizers are supported")
    backend.no_truncation()
    backend.no_padding()
    specials = _named_specials(settings)
    known = {
        token: at
        for token in (*END_TOKENS, specials.get("eos_token", ""))
        if (at := backend.token_to_id(token)) is not None
    }
    return Tokenizer(
        backend,
        Vocabulary(
            prefix=tuple(backend.encode("").ids),  # what the post-processor puts before every text
            eos_ids=_end_ids(eos_ids, known),
            template=template,
            specials=specials,
            is_byte_level=b"ByteLevel" in decoder,
        ),
    )


def _named_specials(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return bos_token and the like as texts; some files wrap them in an object."""
    named = {role: settings.get(f"{role}_token") for role in ("bos", "eos", "pad", "unk")}
    texts = {role: value.get("content") if isinstance(value, dict) else value for role, value in named.items()}
    return {f"{role}_token": text for role, text in texts.items() if isinstance(text, str)}
