"""Writes a quantised model as `artifact.py` reads it. Refuses to know how it was rounded."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import orjson
from numpy.typing import NDArray

from backends.engine import gguf_file
from backends.engine.artifact import DESCRIPTION, FORMAT, GGUF_TOKENIZER, LAYOUT, VERSION, WEIGHTS
from backends.engine.packing import ALIGNMENT, pack
from backends.engine.quant import QuantTensor
from backends.engine.runner import ModelSpec

HF_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Quantised:
    """A rounded model in memory: matrices and vectors by their checkpoint names."""

    spec: ModelSpec
    matrices: Mapping[str, QuantTensor]
    vectors: Mapping[str, NDArray[np.float32]]
    activations: str


def write(folder: Path, model: Quantised, report: Mapping[str, Any]) -> None:
    """Write weights, then quant.json: a folder that was not finished is not taken for a model."""
    panels = {name: pack(tensor) for name, tensor in model.matrices.items()}
    _write_safetensors(folder / WEIGHTS, {**panels, **model.vectors})
    schemes = {name: {"shape": list(m.shape), **asdict(m.scheme)} for name, m in model.matrices.items()}
    description = {
        "format": FORMAT,
        "version": VERSION,
        "layout": LAYOUT,
        "activations": model.activations,
        "model": asdict(model.spec),
        "matrices": schemes,
        "quality": dict(report),
    }
    (folder / DESCRIPTION).write_bytes(orjson.dumps(description, option=orjson.OPT_INDENT_2))


def copy_tokenizer(files: tuple[Path, ...], folder: Path) -> None:
    """Bring along what the tokenizer of a checkpoint with these files is made from."""
    first = files[0]
    if first.suffix == ".gguf":
        _write_gguf_keys(first, folder / GGUF_TOKENIZER)
        return
    for name in (*HF_FILES, GGUF_TOKENIZER):
        if (first.parent / name).exists():
            shutil.copyfile(first.parent / name, folder / name)


def header_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bound the bytes that names and alignment add to the tensors of a file."""
    return sum(len(name) + 160 + ALIGNMENT for name in shapes) + ALIGNMENT


def _write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Write tensors at multiples of ALIGNMENT; each gap is a `padding` tensor, as the format allows no holes."""
    table: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        kind = {"uint8": "U8", "float32": "F32"}[str(tensor.dtype)]
        table[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
        if gap := -end % ALIGNMENT:
            table[f"padding.{end}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
            end += gap
    header = orjson.dumps(table)
    header += b" " * (-(len(header) + 8) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).data)
            file.write(bytes(-tensor.nbytes % ALIGNMENT))


def _write_gguf_keys(source: Path, target: Path) -> None:
    """Copy a GGUF's keys, tokenizer and chat template among them, without any tensor."""
    file = gguf_file.read(source)
    writer = gguf.GGUFWriter(target, str(file.metadata["general.architecture"]))
    for key, value in file.metadata.items():
        if key.startswith("tokenizer."):
            _add(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def _add(writer: Any, key: str, value: gguf_file.Value) -> None:
    kind = gguf.GGUFValueType
    match value:
        case str():
            writer.add_string(key, value)
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            names = {"i4": kind.INT32, "u4": kind.UINT32, "f4": kind.FLOAT32, "i8": kind.INT64, "b1": kind.BOOL}
            element = names[value.dtype.str[1:]]
            writer.add_key_value(key, value.tolist(), kind.ARRAY, sub_type=element)
