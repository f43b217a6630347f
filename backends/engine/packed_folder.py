"""A Hugging Face folder whose linear layers GPTQ or AWQ have quantised. Refuses to know who reads it.

Codes come over as they are wherever our grid holds theirs (`grids.py`): nothing is rounded a second time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.engine import safetensors_file
from backends.engine.files import read_json
from backends.engine.grids import PackedLayout, from_awq, from_gptq
from backends.engine.hf_folder import HfFolder, stored_name
from backends.engine.problems import CheckpointError
from backends.engine.quant import QuantError, QuantTensor, dequantize

PARTS = ("qweight", "qzeros", "scales", "g_idx")
BITS = (2, 3, 4, 8)


class PackedFolder(HfFolder):
    """See `weights.Source`. Packed matrices also come on their own grid."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {**safetensors_file.WIDTHS, **safetensors_file.WORDS})
        self.method, self.layout = self._read_layout(self.config["quantization_config"])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """See `weights.Source`."""
        parts = self._parts(name)
        if "qweight" not in parts or "scales" not in parts:
            return super().shape(name)
        packed, rows = parts["qweight"].shape[0], parts["scales"].shape[1]
        if "g_idx" in parts:
            return rows, len(parts["g_idx"])
        return rows, packed if self.method == "awq" else packed * 32 // self.layout.bits

    def tensor(self, name: str) -> NDArray[np.float32]:
        """See `weights.Source`."""
        matrix = self.matrix(name)
        return super().tensor(name) if matrix is None else dequantize(matrix)

    def raw(self, name: str) -> tuple[str, NDArray[np.uint8]]:
        """Return a packed matrix's codes under the method's name; see `weights.Source`."""
        packed = self.tensors.get(stored_name(name).removesuffix("weight") + "qweight")
        return super().raw(name) if packed is None else (self.method, packed.bytes.reshape(packed.shape[0], -1))

    def matrix(self, name: str) -> QuantTensor | None:
        """Return a matrix as it was quantised; None where it was left as it is."""
        parts = self._parts(name)
        if "qweight" not in parts:
            return None
        try:
            return (from_awq if self.method == "awq" else from_gptq)(parts, self.layout)
        except (QuantError, KeyError, ValueError, IndexError) as exc:
            raise CheckpointError(f"{self.folder}: {name} cannot be read as {self.method}: {exc}") from exc

    def _parts(self, name: str) -> dict[str, NDArray[np.generic]]:
        stem = stored_name(name).removesuffix("weight")
        found = {part: tensor for part in PARTS if (tensor := self.tensors.get(stem + part)) is not None}
        return {part: tensor.as_float32() if part == "scales" else tensor.values for part, tensor in found.items()}

    def _read_layout(self, config: Any) -> tuple[str, PackedLayout]:
        match config:
            case {"quant_method": "gptq", "bits": int(bits), "group_size": int(group)} if bits in BITS:
                return "gptq", PackedLayout(bits, group, 0 if config.get("checkpoint_format") == "gptq_v2" else 1)
            case {"quant_method": "awq", "bits": 4, "group_size": int(group)} if config.get("version") == "gemm":
                return "awq", PackedLayout(4, group, 0)
        raise self._problem(
            f"quantization_config {config} is not read: GPTQ of {BITS} bits and AWQ of 4 bits, version gemm, are; "
            "run `tidegate quantize` on the original model instead"
        )


def open_folder(folder: Path) -> HfFolder:
    """Open a Hugging Face folder in either form; raises CheckpointError."""
    is_packed = read_json(folder / "config.json").get("quantization_config")
    return PackedFolder(folder) if is_packed else HfFolder(folder)
