"""What a long piece of work has found so far, on disk, so that it can be stopped and run again. Refuses to know what.

Results belong to a key; under another key nothing old is used.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Work:
    """Results by name in one folder."""

    folder: Path

    def tensors(self, name: str, make: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return the stored tensors of this name, or make and store them; a crash leaves nothing half written."""
        path = self.folder / f"{name}.safetensors"
        try:
            return load_file(path)
        except (FileNotFoundError, SafetensorError):
            made = {key: tensor.contiguous() for key, tensor in make().items()}
            part = path.with_suffix(".part")
            save_file(made, part)
            part.replace(path)
            return made

    def forget(self) -> None:
        """Delete everything found."""
        shutil.rmtree(self.folder)


def open_work(folder: Path, key: Mapping[str, Any]) -> Work:
    """Open the folder of this key, deleting what belongs to another."""
    digest = hashlib.sha256(orjson.dumps(key, option=orjson.OPT_SORT_KEYS)).hexdigest()
    mark = folder / "key"
    if folder.exists() and not (mark.exists() and mark.read_text() == digest):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(digest)
    return Work(folder)
