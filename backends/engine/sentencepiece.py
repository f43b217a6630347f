"""SentencePiece's BPE, as Llama 2, Mistral and TinyLlama have it, rebuilt from pieces and their scores.

Refuses to know files. SentencePiece stores no merges: it joins whichever neighbours give the piece of the best score.
As merges for `tokenizers`: every way to split a piece into two pieces, ranked by the score of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, normalizers

SPACE = "\u2581"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def spelled(token: str) -> bytes:
    """Return the bytes a piece stands for."""
    if byte := BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(SPACE, " ").encode()


def sentencepiece_bpe(
    pieces: Sequence[str], scores: NDArray[np.float32], *, unknown: str, add_space_prefix: bool
) -> tokenizers.Tokenizer:
    """Build the tokenizer; `scores` [len(pieces)], higher merges first."""
    ids = {piece: at for at, piece in enumerate(pieces)}
    model = models.BPE(ids, merges_of(ids, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prepended = [normalizers.Prepend(SPACE)] if add_space_prefix else []
    backend.normalizer = normalizers.Sequence([*prepended, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def merges_of(ids: Mapping[str, int], scores: NDArray[np.float32]) -> list[tuple[str, str]]:
    """Return all pairs of pieces that make a piece, the best score first."""
    ranked = sorted(ids, key=lambda piece: (-float(scores[ids[piece]]), ids[piece]))
    return [pair for piece in ranked for pair in _splits(piece, ids)]


def _splits(piece: str, ids: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield the splits of a piece whose parts are pieces; among equals the earlier pieces come first."""
    pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    yield from sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
