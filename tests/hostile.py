"""Damages checkpoints in every way that a seed can think of and opens them: `python -m tests.hostile SEED SECONDS`.

Run as a process of its own, it holds its own memory to a bound and kills itself when an opening hangs. Each trial is
one seed: it prints that before it opens anything, so that even a crash of the process says how to repeat it.
"""

from __future__ import annotations

import copy
import faulthandler
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import orjson

from backends.api import Message
from backends.engine import artifact_writer
from backends.engine.native import NativeRunner
from backends.engine.problems import CheckpointError, TemplateError
from backends.engine.quant import Scheme, quantize
from backends.engine.quantised import Quantised
from backends.engine.runner import Batch
from backends.engine.weights import Checkpoint, expected_shapes, open_checkpoint
from backends.kernels.cpu import NativeError
from tests.tiny_checkpoint import write_tiny

MEMORY_BYTES = 1 << 30  # beyond what the process has when it starts
HANG_S = 20
NUMBERS = [0, 1, 2, 3, 7, 31, 33, 255, 256, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63]
NUMBERS += [(1 << 64) - 1, (1 << 63) - 1, (1 << 64) - 32]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1 << 31, 1 << 62, -(1 << 63), (1 << 64) - 1, 0.5, -0.0, 1e308, 1e-320, "", "x",
    "NaN", "\x00", "é" * 300, "x" * 100_000, [], {}, [[]], [0] * 5000, ["a", "b"], {"type": "BPE"}, {"a": {"a": {}}},
    "ByteLevel", "F32", "U8", [1 << 62] * 2000, "../model.safetensors", "(a+)+$",
    "{% for x in range(9**9) %}{% endfor %}",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """A whole checkpoint: its folder, and what open_checkpoint is given, relative to it."""

    folder: Path
    source: str


def samples(root: Path) -> list[Sample]:
    """Write the same tiny model in every form that can be opened."""
    hf = write_tiny(root / "hf", tied=False)
    checkpoint = open_checkpoint(str(hf))
    (root / "gguf").mkdir()
    write_gguf(checkpoint, root / "gguf" / "model.gguf", byte_level_keys)
    (root / "pieces").mkdir()
    write_gguf(checkpoint, root / "pieces" / "model.gguf", pieces_keys)
    write_quantised(checkpoint, root / "quant")
    return [Sample(hf, "."), Sample(root / "gguf", "model.gguf"), Sample(root / "pieces", "model.gguf"),
            Sample(root / "quant", ".")]  # fmt: skip


def write_quantised(checkpoint: Checkpoint, folder: Path) -> None:
    """Write it as `tidegate quantize` does."""
    folder.mkdir()
    names = [(name, len(shape) == 2) for name, shape in expected_shapes(checkpoint.spec)]
    matrices = {name: quantize(checkpoint.tensor(name), Scheme(6, 64)) for name, is_matrix in names if is_matrix}
    vectors = {name: checkpoint.tensor(name) for name, is_matrix in names if not is_matrix}
    artifact_writer.write(folder, artifact_writer.Quantised(checkpoint.spec, matrices, vectors, "fp32"), {})
    artifact_writer.copy_tokenizer(checkpoint.source.files, folder)


GGUF_NAMES = {
    "attention.norm": "attn_norm", "attention.q": "attn_q", "attention.k": "attn_k", "attention.v": "attn_v",
    "attention.o": "attn_output", "ffn.norm": "ffn_norm", "ffn.gate": "ffn_gate", "ffn.up": "ffn_up",
    "ffn.down": "ffn_down", "embed": "token_embd", "norm": "output_norm", "head": "output",
}  # fmt: skip


def write_gguf(checkpoint: Checkpoint, path: Path, keys: Callable[[gguf.GGUFWriter, Checkpoint], None]) -> None:
    """Write a GGUF in which matrices alternate between blocks of four kinds."""
    spec, writer = checkpoint.spec, gguf.GGUFWriter(path, "llama")
    writer.add_block_count(spec.layers)
    writer.add_context_length(spec.context_tokens)
    writer.add_embedding_length(spec.hidden)
    writer.add_feed_forward_length(spec.ffn)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_rope_dimension_count(spec.head_dim)
    keys(writer, checkpoint)
    kinds = [gguf.GGMLQuantizationType[kind] for kind in ("Q4_1", "Q8_0", "F16", "Q5_0")]
    for at, (name, shape) in enumerate(expected_shapes(spec)):
        part = name.removeprefix("layers.").removesuffix(".weight")
        layer, _, inside = part.partition(".") if part[0].isdigit() else ("", "", part)
        stored = f"blk.{layer}.{GGUF_NAMES[inside]}.weight" if layer else f"{GGUF_NAMES[inside]}.weight"
        kind = kinds[at % 4] if len(shape) == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(stored, gguf.quants.quantize(checkpoint.tensor(name), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def byte_level_keys(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    """Tokens that are bytes, with merges."""
    tokens = [checkpoint.tokenizer._backend.id_to_token(at) for at in range(254)] + ["th", "the"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_merges(["t h", "th e"])
    writer.add_token_types([3] + [1] * 255)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")


def pieces_keys(writer: gguf.GGUFWriter, _: Checkpoint) -> None:
    """Pieces with scores, as SentencePiece has them."""
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "\u2581the", "the", "t", "h", "e", "th"]
    pieces += [f"<0x{at:02X}>" for at in range(256 - len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces)
    writer.add_token_scores([-float(at) for at in range(256)])
    writer.add_token_types([2, 3, 3] + [1] * 253)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)


def damage(folder: Path, chance: Random) -> str:
    """Change one file of the folder; say what was done."""
    file = chance.choice(sorted(folder.iterdir()))
    whole = file.read_bytes()
    if file.suffix == ".json" and chance.random() < 0.8:
        file.write_bytes(damaged_json(whole, chance))
        return f"{file.name}: JSON"
    if file.suffix == ".safetensors" and chance.random() < 0.6:
        size = int.from_bytes(whole[:8], "little")
        header = damaged_json(whole[8 : 8 + size], chance)
        file.write_bytes(struct.pack("<Q", len(header)) + header + whole[8 + size :])
        return f"{file.name}: header"
    file.write_bytes(damaged_bytes(whole, chance))
    return f"{file.name}: bytes"


def damaged_bytes(whole: bytes, chance: Random) -> bytes:
    """Flip, overwrite, cut, double or drop a few runs of bytes, most often near the start, where the structure is."""
    changed = bytearray(whole)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        end = max(1, min(len(changed), chance.choice([32, 400, 4000, 20_000, len(changed)])))
        at = chance.randrange(end)
        match chance.randrange(9):
            case 0:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes([changed[at] ^ 1 << chance.randrange(8)]) if changed else b""
            case 2 | 3:
                changed[at : at + 8] = struct.pack("<Q", chance.choice([*NUMBERS, len(changed), len(changed) - at]))
            case 4 | 5:
                changed[at : at + 4] = struct.pack("<I", chance.choice(NUMBERS) % (1 << 32))
            case 6:
                changed[at : at + 4] = chance.choice([b"\0\x7c\0\x7c", b"\xff" * 4, b"\0\0\x80\x7f", b"\0\0\xc0\x7f"])
            case 7:
                del changed[at : at + chance.choice([1, 4, 8, 100, len(changed)])]
            case _:
                changed[at:at] = changed[at : at + chance.choice([1, 8, 64, 4096])]
    return bytes(changed)


def damaged_json(text: bytes, chance: Random) -> bytes:
    """Change a few values of a JSON text, of whatever kind they are, or nest one deeply."""
    value = orjson.loads(text)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        value = _damaged_value(value, chance)
    written = orjson.dumps(value)
    if chance.random() < 0.03:
        depth = chance.choice([100, 1000, 200_000])
        return written[:-1] + b',"z":' + b"[" * depth + b"]" * depth + b"}"
    return written


def _damaged_value(value: Any, chance: Random) -> Any:
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return copy.deepcopy(chance.choice(VALUES))
    key = chance.choice(sorted(value)) if isinstance(value, dict) else chance.randrange(len(value))
    changed = copy.copy(value)
    match chance.randrange(12):
        case 0:
            del changed[key]
        case 1 if isinstance(changed, dict):
            changed[str(chance.choice(VALUES))[:50]] = changed.pop(key)
        case 2 if isinstance(changed, dict):
            changed[key] = copy.deepcopy(changed[chance.choice(sorted(changed))])
        case 3 if isinstance(changed[key], int):
            changed[key] += chance.choice([-1, 1, -64, 64])
        case _:
            changed[key] = _damaged_value(changed[key], chance)
    return changed


def open_whole(source: str) -> None:
    """Open a checkpoint and use everything of it, as a worker does: tokenizer, template, weights, one step."""
    checkpoint = open_checkpoint(source)
    tokens = checkpoint.tokenizer.encode("Then the 7 seas <s> \u2603", special=True)
    checkpoint.tokenizer.detokenizer().push(tokens[0] if tokens else 0)
    checkpoint.tokenizer.token_bytes(255)
    with suppress(TemplateError):  # told to the client whose chat it is; completions go on
        checkpoint.tokenizer.render([Message("user", "the")])
    held = replace(checkpoint, context_tokens=min(32, checkpoint.spec.context_tokens))  # by the KV plan
    with NativeRunner(Quantised(held), kv_blocks=2, threads=1) as runner:
        last = runner.spec.vocabulary - 1
        runner.forward(step_of(np.array([0, min(5, last), last], np.int32)))


def step_of(tokens: np.ndarray[Any, np.dtype[np.int32]]) -> Batch:
    """Run these tokens as one sequence from its start, and want the last one's logits."""
    count = len(tokens)
    return Batch(
        tokens,
        np.arange(count, dtype=np.int32),
        np.array([0, count], np.int32),
        np.array([count], np.int32),
        np.array([[0]], np.int32),
        np.array([count - 1], np.int32),
    )


def trial(sample: Sample, seed: str, folder: Path) -> str | None:
    """Open one damaged copy; return what is wrong with how that went, None when nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sample.folder, folder)
    what = damage(folder, Random(seed))
    try:
        open_whole(str(folder / sample.source))
    except (CheckpointError, NativeError) as exc:
        is_named = any(file.name in str(exc) for file in sample.folder.iterdir()) or isinstance(exc, NativeError)
        return None if is_named else f"{what}: the message names no file: {exc}"
    except BaseException as exc:  # noqa: BLE001 - a panic of a Rust library is no Exception
        last = traceback.extract_tb(exc.__traceback__)
        ours = [frame for frame in last if "/backends/" in frame.filename][-1]
        return f"{what}: {type(exc).__name__} at {Path(ours.filename).name}:{ours.lineno}: {str(exc)[:200]}"
    return None


def bound_memory() -> None:
    """Let the process grow by a fixed amount, however large a file claims to be."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))


def main(seed: str, seconds: float) -> int:
    """Try until the time is over; print every kind of finding once, with a seed that repeats it."""
    findings: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="tidegate-hostile-") as root:
        kinds = samples(Path(root))
        for sample in kinds:
            open_whole(str(sample.folder / sample.source))  # whole, they open
        bound_memory()
        end, count = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            name, sample = f"{seed}.{count}", kinds[count % len(kinds)]
            sys.stderr.write(f"{sample.folder.name} {name}\n")
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            if (finding := trial(sample, name, Path(root) / "damaged")) is not None:
                kind = finding.rsplit(": ", 1)[0]
                findings[kind] += 1
                if findings[kind] == 1:
                    sys.stdout.write(f"{sample.folder.name} {name}: {finding}\n")
                    sys.stdout.flush()
            faulthandler.cancel_dump_traceback_later()
            count += 1
    sys.stdout.write(f"{count} openings, {sum(findings.values())} findings of {len(findings)} kinds\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
