"""Text to calibrate on and text to judge by, with no network: Python's own reference ships with every Python.

Refuses to know models. Calibration and held-out text never share a topic (or, for a file of the user's, a paragraph).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray

from backends.engine.problems import CheckpointError
from backends.engine.tokens import Tokenizer

WINDOW = 512
"""Tokens of one window; every window starts cold, as a prompt does."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Two texts without common parts, and what they are, for the report."""

    calibration: str
    held_out: str
    origin: str


def shipped() -> Texts:
    """Every other topic of `pydoc_data.topics` for calibration, the rest held out.

    Topics repeat each other's paragraphs; what calibration text has said is dropped from the held-out text.
    """
    names = sorted(topics)
    calibration, rest = ([part for name in names[at::2] for part in topics[name].split("\n\n")] for at in (0, 1))
    known = {part.strip() for part in calibration}
    held_out = [part for part in rest if part.strip() not in known]
    return Texts("\n\n".join(calibration), "\n\n".join(held_out), "pydoc_data.topics: even topics against odd ones")


def from_file(path: Path) -> Texts:
    """Nine of ten paragraphs of a text for calibration, every tenth held out."""
    try:
        paragraphs = path.read_text().split("\n\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{path}: cannot be read as text: {exc}") from exc
    held_out = paragraphs[9::10]
    kept = [part for at, part in enumerate(paragraphs) if at % 10 != 9]
    return Texts("\n\n".join(kept), "\n\n".join(held_out), f"{path}: every tenth paragraph held out")


def windows(tokenizer: Tokenizer, text: str, count: int, length: int = WINDOW) -> NDArray[np.int64]:
    """Cut up to `count` windows [count, length], spread evenly over the text; raises CheckpointError for too little."""
    tokens = np.array(tokenizer.encode(text, special=False), np.int64)
    whole = len(tokens) // length
    if whole < 1:
        raise CheckpointError(f"a text of {len(tokens)} tokens is too short; {length} is the least, 20,000 are good")
    chosen = np.linspace(0, whole - 1, min(count, whole)).round().astype(int)
    cut: NDArray[np.int64] = tokens[: whole * length].reshape(whole, length)[chosen]
    return cut
