"""A file that lies is a CheckpointError that names it: bounded memory, no crash, no hang, whatever the bytes are."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from backends.engine.native import NativeRunner
from backends.engine.problems import CheckpointError
from backends.engine.quantised import Quantised
from backends.engine.weights import open_checkpoint
from backends.kernels.cpu import native_missing
from tests import hostile

ROOT = Path(__file__).parent.parent
SMOKE_S = 10


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, hostile.Sample]:
    """Write a tiny checkpoint of each kind."""
    return {sample.folder.name: sample for sample in hostile.samples(tmp_path_factory.mktemp("whole"))}


@pytest.fixture
def damaged(whole, tmp_path):
    """Give copies that a test may damage."""

    def copied(kind: str) -> Path:
        return shutil.copytree(whole[kind].folder, tmp_path / kind)

    return copied


def change_json(file: Path, **changes: object) -> None:
    """Set keys of a JSON file."""
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | changes))


def change_header(file: Path, **changes: object) -> None:
    """Set keys of a safetensors header."""
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = orjson.dumps(orjson.loads(whole[8 : 8 + size]) | changes)
    file.write_bytes(struct.pack("<Q", len(header)) + header + whole[8 + size :])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rms_norm_eps": []}, "rms_norm_eps is"),
        ({"rms_norm_eps": "\x00"}, "rms_norm_eps is"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1; a positive"),
        ({"eos_token_id": ["a"]}, "eos_token_id is"),
        ({"eos_token_id": [[]]}, "eos_token_id is"),
    ],
)
def test_a_setting_of_another_kind_is_refused_by_name(damaged, changes, words):
    """config.json may hold anything under any key."""
    folder = damaged("hf")
    change_json(folder / "config.json", **changes)

    with pytest.raises(CheckpointError, match=rf"config\.json: {words}"):
        _ = open_checkpoint(str(folder)).tokenizer


@pytest.mark.parametrize("template", [[], {"default": "x"}, 7])
def test_a_chat_template_that_is_no_text_is_refused(damaged, template):
    """The error comes when the model is loaded, not with the first chat."""
    folder = damaged("hf")
    (folder / "tokenizer_config.json").write_bytes(orjson.dumps({"chat_template": template}))

    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template"):
        _ = open_checkpoint(str(folder)).tokenizer


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_a_template_file_that_is_no_text_is_refused(damaged, content):
    """Neither bytes that are not UTF-8 nor a folder."""
    folder = damaged("hf")
    template = folder / "chat_template.jinja"
    template.mkdir() if content is None else template.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read"):
        _ = open_checkpoint(str(folder)).tokenizer


def test_an_index_that_is_no_table_is_refused(damaged):
    """weight_map is a table from tensors to files."""
    folder = damaged("hf")
    (folder / "model.safetensors.index.json").write_bytes(b'{"weight_map": 7}')

    with pytest.raises(CheckpointError, match="weight_map must name files"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(damaged, name):
    """Opening one would wait for a writer for ever."""
    folder = damaged("hf")
    (folder / name).unlink()
    os.mkfifo(folder / name)

    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(str(folder))


def test_a_shape_of_thousands_of_dimensions_is_refused_at_once(damaged):
    """Their product would have a million digits."""
    folder = damaged("hf")
    change_header(
        folder / "model.safetensors", a={"dtype": "F32", "shape": [(1 << 64) - 1] * 50_000, "data_offsets": [0, 4]}
    )

    with pytest.raises(CheckpointError, match="'a' is malformed"):
        open_checkpoint(str(folder))


def test_safetensors_that_share_bytes_are_refused(damaged):
    """One of two overlapping tensors is not what its name says."""
    folder = damaged("hf")
    change_header(folder / "model.safetensors", a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})

    with pytest.raises(CheckpointError, match="overlap at byte"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(("offset", "words"), [(32, "overlap at byte"), (33, "no multiple of 32")])
def test_gguf_tensors_that_share_bytes_or_lie_askew_are_refused(tmp_path, offset, words):
    """The second tensor's offset is the file's word, not the writer's."""
    entries = b"".join(
        struct.pack("<Q", 1) + name + struct.pack("<IQIQ", 1, 16, 0, at) for name, at in ((b"a", 0), (b"b", offset))
    )
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + entries + bytes(200))

    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(str(tmp_path / "x.gguf"))


def test_a_piece_of_a_million_characters_is_refused(damaged):
    """SentencePiece's merges are found by trying every split: the square of a piece's length."""
    file = damaged("pieces") / "model.gguf"
    whole, piece = file.read_bytes(), struct.pack("<Q", 5) + b"<unk>"
    file.write_bytes(whole.replace(piece, struct.pack("<Q", 1 << 20) + b"x" * (1 << 20), 1) + bytes(32))

    with pytest.raises(CheckpointError, match=r"model\.gguf: tokenizer\.ggml\.tokens holds a text of 1048576"):
        _ = open_checkpoint(str(file)).tokenizer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 1e300}, "model.layers is"),
        ({"layers": True}, "model.layers is"),
        ({"hidden": -96}, "model.hidden is"),
        ({"norm_eps": 0}, "model.norm_eps is"),
        ({"tied_head": "no"}, "model.tied_head is"),
        ({"architecture": []}, "model.architecture is"),
    ],
)
def test_a_shape_that_no_model_can_have_is_refused(damaged, changes, words):
    """quant.json is JSON: every field may come as another kind."""
    file = damaged("quant") / "quant.json"
    model = orjson.loads(file.read_bytes())["model"]
    change_json(file, model=model | changes)

    with pytest.raises(CheckpointError, match=rf"quant\.json: {words}"):
        open_checkpoint(str(file.parent))


@pytest.mark.parametrize("matrices", [7, [], "x"])
def test_matrices_that_are_no_table_are_refused(damaged, matrices):
    """The table of matrices is one."""
    folder = damaged("quant")
    change_json(folder / "quant.json", matrices=matrices)

    with pytest.raises(CheckpointError, match=r"quant\.json"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("bad", [b"\x00\x7e", b"\x00\x7c", b"\x00\xfc"], ids=["nan", "inf", "-inf"])
def test_scales_that_are_no_numbers_are_refused_when_the_weights_are_read(damaged, bad):
    """A worker would answer nonsense, or nothing, until somebody looked."""
    folder = damaged("quant")
    weights = folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    size = int.from_bytes(whole[:8], "little")
    start = orjson.loads(whole[8 : 8 + size])["layers.0.ffn.up.weight"]["data_offsets"][0] + 8 + size
    whole[start : start + 2] = bad
    weights.write_bytes(whole)

    with pytest.raises(CheckpointError, match=r"model\.safetensors: layers\.0\.ffn\.up\.weight holds a scale"):
        open_checkpoint(str(folder)).tensor("layers.0.ffn.up.weight")


@pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))
def test_numbers_of_any_size_make_no_step_crash(damaged):
    """Norms as large as fp32 has them overflow every sum; the step says so in its logits and the process lives."""
    folder = damaged("hf")
    weights = open_checkpoint(str(folder))
    held = Quantised(replace(weights, context_tokens=32))
    vector = Quantised.vector

    class Overflowing(Quantised):
        def vector(self, name: str) -> np.ndarray:
            return np.full_like(vector(self, name), 3e38)

    with NativeRunner(Overflowing(held.checkpoint), kv_blocks=2, threads=2) as runner:
        logits = runner.forward(hostile.step_of(np.array([1, 2, 3], np.int32)))

    assert not np.isfinite(logits).all()


def fuzz(seconds: float, seed: str) -> subprocess.CompletedProcess[str]:
    """Damage checkpoints for a while in a process whose memory is bounded and which ends itself when it hangs."""
    command = [sys.executable, "-m", "tests.hostile", seed, str(seconds)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_damaged_files_are_refused_or_harmless():
    """A short run with a fixed seed; the long one is below."""
    run = fuzz(SMOKE_S, "smoke")

    assert run.returncode == 0, run.stdout + run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_damaged_files_are_refused_or_harmless_for_ten_minutes():
    """FUZZ_SECONDS and FUZZ_SEED change how long and where it starts."""
    run = fuzz(float(os.environ.get("FUZZ_SECONDS", "600")), os.environ.get("FUZZ_SEED", "long"))

    print(run.stdout)  # noqa: T201 - how many openings, for who runs it with -s
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
