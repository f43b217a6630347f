"""Quantising a checkpoint: rounding with feedback, the files that come of it, limits, resuming, and equal seeds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import orjson
import pytest
import safetensors.numpy
import torch
from rich.console import Console

from backends.engine import quantizer, recipes, report, texts
from backends.engine.dense import open_dense
from backends.engine.gptq import expected_error, feedback_of, round_with_feedback
from backends.engine.model import TorchRunner
from backends.engine.packing import Panels, pack
from backends.engine.problems import CheckpointError
from backends.engine.quant import Scheme, dequantize, quantize
from backends.engine.quantize import Order
from backends.engine.runner import Batch
from backends.engine.unpacking import unpack
from backends.engine.weights import open_checkpoint
from gateway.cli import main
from tests.serving import TIDEGATE
from tests.tiny_checkpoint import write_tiny

STORED = [Scheme(b, g, symmetric=s) for b in (4, 5, 6, 8) for g in (32, 128) for s in (False, True)]
SCHEMES = [Scheme(4, 128), Scheme(4, 32), Scheme(5, 128, symmetric=True), Scheme(6, 64)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Compute on one thread: products this small lose more to waking a second one than it gains."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Give the path of a tiny checkpoint."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model", tied=False)


@pytest.fixture(scope="module")
def written(source, tmp_path_factory):
    """Give the path of a quantised model."""
    out = tmp_path_factory.mktemp("tiny") / "quantised"
    assert quiet(Order(str(source), out, 0.5, 0.5, "fp32", None, None, seed=0)) == 0
    return out


@pytest.fixture
def tampered(written, tmp_path):
    """Give a copy that a test may damage."""
    return shutil.copytree(written, tmp_path / "tampered")


@pytest.fixture
def order(source, tmp_path):
    """Ask for something that can be had."""
    return Order(str(source), tmp_path / "out", 0.5, 0.5, "fp32", None, None, seed=0)


def quiet(order):
    """Quantise without showing it."""
    return quantizer.quantize(order, Console(quiet=True))


def correlated(columns=200, rows=64):
    """Draw a matrix and the second moments of inputs that depend on each other."""
    draw = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns // 4, columns, generator=draw)
    inputs = torch.randn(4000, columns // 4, generator=draw) @ mixing + 0.5 * torch.randn(4000, columns, generator=draw)
    return torch.randn(rows, columns, generator=draw), inputs.T @ inputs / 4000


def output_errors(weight, tensor, moments):
    """Give diag(D H Dᵀ)."""
    missed = torch.from_numpy(dequantize(tensor)) - weight
    return ((missed @ moments) * missed).sum(1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_feedback_keeps_outputs_closer_than_plain_rounding(scheme):
    """On correlated inputs, the error of outputs is less than a third of plain rounding's."""
    weight, moments = correlated()

    plain = output_errors(weight, quantize(weight.numpy(), scheme, moments.diagonal().numpy()), moments)
    fed_back = output_errors(weight, round_with_feedback(weight, scheme, feedback_of(moments)), moments)

    assert fed_back.sum() < plain.sum() / 3


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_expected_error_is_what_rounding_gives(scheme):
    """The loss that allocation adds up is within a third of what rounding then costs."""
    weight, moments = correlated()
    feedback = feedback_of(moments)
    rounded = round_with_feedback(weight, scheme, feedback)

    expected = expected_error(scheme, rounded.scales, feedback).sum()

    assert 0.67 < expected / output_errors(weight, rounded, moments).sum() < 1.5


def test_weights_on_the_grid_are_kept():
    """A matrix that the scheme can express comes out as it went in."""
    weight, moments = correlated()
    on_grid = torch.from_numpy(dequantize(quantize(weight.numpy(), Scheme(4, 32))))

    rounded = round_with_feedback(on_grid, Scheme(4, 32), feedback_of(moments))

    assert np.abs(dequantize(rounded) - on_grid.numpy()).max() < 1e-3


def test_inputs_that_are_always_zero_do_no_harm():
    """Second moments without full rank are damped until they can be factorised."""
    weight, moments = correlated()
    moments[:, :50] = moments[:50] = 0

    rounded = round_with_feedback(weight, Scheme(4, 128), feedback_of(moments))

    assert np.isfinite(dequantize(rounded)).all()


@pytest.mark.parametrize(
    "scheme", [Scheme(b, g, symmetric=s) for b in (4, 5, 6, 8) for g in (32, 128) for s in (False, True)], ids=str
)
@pytest.mark.parametrize("shape", [(1, 1), (17, 576), (33, 100)])
def test_panels_unpack_to_what_was_packed(scheme, shape):
    """Codes, scales and minimums of every scheme come back from the layout that kernels read."""
    tensor = quantize(np.random.default_rng(0).standard_normal(shape).astype(np.float32), scheme)

    back = unpack(Panels(scheme, *shape, pack(tensor)))

    assert np.array_equal(back.codes, tensor.codes)
    assert np.array_equal(dequantize(back), dequantize(tensor))


@pytest.mark.parametrize("tied", [True, False])
def test_the_dense_model_computes_what_the_runner_computes(tmp_path, tied):
    """Calibration and judging look at the model that is served: equal logits for equal tokens."""
    checkpoint = open_checkpoint(str(write_tiny(tmp_path, tied=tied)))
    tokens, places = np.arange(1, 41, dtype=np.int32), np.arange(40, dtype=np.int32)
    starts, lengths, blocks = np.array([0, 40], np.int32), np.array([40], np.int32), np.arange(3, dtype=np.int32)[None]

    batch = Batch(tokens, places, starts, lengths, blocks, sampled=places)
    served = TorchRunner(checkpoint, kv_blocks=3, block_tokens=16).forward(batch)

    model = open_dense(checkpoint)
    ours = model.logits(model.hidden(torch.from_numpy(tokens).long()[None]))[0]
    assert np.abs(ours.numpy() - served).max() < 1e-4


@pytest.mark.parametrize("tied", [True, False])
def test_a_written_model_is_within_its_size_and_opens_as_a_checkpoint(order, tmp_path, tied):
    """The folder is a source like any other: smaller, close to the original, with the same tokenizer, no state left."""
    original = open_checkpoint(str(write_tiny(tmp_path / "source", tied=tied)))
    order = replace(order, source=str(tmp_path / "source"))

    assert quiet(order) == 0

    written = open_checkpoint(str(order.out))
    size = (order.out / "model.safetensors").stat().st_size
    assert size <= order.target_share * quantizer.scale_of(original).fp16_bytes
    assert written.spec == original.spec
    assert written.tokenizer.encode("a text", special=False) == original.tokenizer.encode("a text", special=False)
    name = "layers.1.ffn.down.weight"
    error = np.abs(written.tensor(name) - original.tensor(name)).mean() / np.abs(original.tensor(name)).mean()
    assert 0 < error < 0.1
    assert not (order.out / ".work").exists()


def test_the_weights_file_is_plain_safetensors_with_aligned_matrices(written):
    """The safetensors package reads the file, and every matrix starts at a multiple of 64, so that it can be mapped."""
    path = written / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    table = orjson.loads(path.read_bytes()[8 : 8 + length])
    described = orjson.loads((written / "quant.json").read_bytes())["matrices"]
    assert {name for name in tensors if name in described} == set(described)
    assert [name for name in described if (8 + length + table[name]["data_offsets"][0]) % 64] == []


def test_equal_seeds_write_equal_bytes(order, written):
    """The same order gives the same file, byte for byte."""
    assert quiet(order) == 0

    assert (order.out / "model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()


def test_limits_that_exclude_each_other_exit_with_3_and_the_nearest_points(order):
    """Nothing is written but the report, which says what each limit would allow."""
    impossible = replace(order, target_share=0.3, min_accuracy=1.0)

    assert quiet(impossible) == 3

    told = orjson.loads((order.out / "report.json").read_bytes())
    assert not told["is_met"]
    assert any("within the size" in line for line in told["nearest"])
    assert any("accuracy" in line for line in told["nearest"][1:])
    assert not (order.out / "quant.json").exists()


def test_a_size_that_nothing_fits_exits_with_3_and_the_smallest_there_is(order):
    """A target below four bits a weight names the smallest model instead of failing."""
    assert quiet(replace(order, target_share=0.1)) == 3

    told = orjson.loads((order.out / "report.json").read_bytes())
    assert told["chosen"] is None
    assert "the smallest there is" in told["nearest"][1]


def test_a_run_that_goes_on_gives_what_one_run_gives(order, written):
    """What was found before a run ended is used again, and the model is the same as without the interruption."""
    assert quiet(replace(order, target_share=0.1)) == 3
    found = order.out / ".work" / "inputs.safetensors"
    before = found.stat().st_mtime_ns
    assert quiet(replace(order, target_share=0.1)) == 3
    assert found.stat().st_mtime_ns == before

    assert quiet(order) == 0

    assert (order.out / "model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()


def test_a_run_that_was_killed_goes_on(source, written, tmp_path):
    """After a kill -9 in the middle of rounding the same command goes on, and writes what one run would have."""
    command = [TIDEGATE, "quantize", source, tmp_path / "out", "--target-size", "0.5", "--min-accuracy", "0.5"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=one_thread) as first:
        assert any(line == "rounding\n" for line in first.stdout)
        first.kill()
    assert (tmp_path / "out/.work/inputs.safetensors").exists()
    assert not (tmp_path / "out/quant.json").exists()

    second = subprocess.run(command, capture_output=True, text=True, env=one_thread, check=False)

    assert second.returncode == 0, second.stderr
    assert (tmp_path / "out/model.safetensors").read_bytes() == (written / "model.safetensors").read_bytes()


def test_without_torch_the_line_that_installs_it_is_told():
    """Where torch is missing the command says how to get it instead of a traceback."""
    code = (
        "import sys; sys.modules['torch'] = None; import gateway.cli; sys.exit(gateway.cli.main(['quantize', *'ab']))"
    )

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (told.returncode, "pip install 'tidegate[torch]'" in told.stderr) == (2, True)
    assert "Traceback" not in told.stderr


def test_state_of_another_seed_is_not_used(order):
    """What depends on the seed is found again when the seed changes."""
    quiet(replace(order, target_share=0.1))
    before = (order.out / ".work" / "key").read_text()

    quiet(replace(order, target_share=0.1, seed=1))

    assert (order.out / ".work" / "key").read_text() != before


def test_a_recipe_is_followed_to_the_letter(order):
    """The brief's preset gives embeddings, and a head it does not name, 4 bits, attention 6 asymmetric and FFN 8."""
    assert quiet(replace(order, recipe="brief", min_accuracy=1.0)) == 0

    matrices = orjson.loads((order.out / "quant.json").read_bytes())["matrices"]
    chosen = {name.split(".")[-2]: (m["bits"], m["symmetric"]) for name, m in matrices.items()}
    assert chosen == dict.fromkeys(("embed", "head"), (4, True)) | dict.fromkeys("qkvo", (6, False)) | dict.fromkeys(
        ("gate", "up", "down"), (8, True)
    )


def test_the_briefs_recipe_is_larger_than_35_percent(checkpoint):
    """On SmolLM2 the recipe takes 43 % of fp16, and 49 % when the tied matrix is kept at 8 bits."""
    spec, scale = checkpoint.spec, quantizer.scale_of(checkpoint)

    shares = [scale.share(recipes.matrix_bytes(recipes.PRESETS[name], spec)) for name in ("brief", "brief-head8")]

    assert shares == pytest.approx([0.43, 0.49], abs=0.02)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("embed = 4", "missing="),
        ("embed = {bits = 4}\nattention = {bits = 7}\nffn = {bits = 8}", "7 bits"),
        ("embed = {bits = 3}\nattention = {bits = 4}\nffn = {bits = 8}", "analysed only"),
        ("embed = {bits = 4}\nattention = {bits = 4}\nffn = {bits = 8}\nactivations = 'int4'", "int4"),
        ("embed = {bits = 4, grp = 1}\nattention = {bits = 4}\nffn = {bits = 8}", "needs bits"),
        ("embed = {bits = 4, symmetric = 1}\nattention = {bits = 4}\nffn = {bits = 8}", "symmetric"),
        ("embeddings = {bits = 4}", "unknown="),
        ("=", "no readable TOML"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(tmp_path, text, words):
    """Each mistake in a recipe is named with its place."""
    file = tmp_path / "recipe.toml"
    file.write_text(text)

    with pytest.raises(CheckpointError, match=words):
        recipes.open_recipe(str(file))


def test_the_presets_are_what_their_toml_says(tmp_path):
    """The brief's recipe reads the same from TOML as from the preset."""
    file = tmp_path / "brief.toml"
    file.write_text(
        'activations = "int8"\nembed = {bits = 4, group = 128, symmetric = true}\n'
        "attention = {bits = 6, group = 128, symmetric = false}\nffn = {bits = 8, group = 128, symmetric = true}\n"
    )

    assert recipes.open_recipe(str(file)) == recipes.open_recipe("brief")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 9}, "run `tidegate quantize` again"),
        ({"model": {"layers": 2}}, "not a model's shape"),
        ({"matrices": {"embed.weight": {"bits": 4}}}, "malformed entry"),
        ({"matrices": {"ghost.weight": {"shape": [1, 1], "bits": 4, "group": 32, "symmetric": True}}}, "does not hold"),
        ({"matrices": {"embed.weight": {"shape": [1, 1], "bits": 7, "group": 32, "symmetric": True}}}, "7 bits"),
    ],
)
def test_a_hostile_description_is_refused(tampered, change, words):
    """A quant.json that was tampered with is a CheckpointError, never a crash."""
    file = tampered / "quant.json"
    file.write_bytes(orjson.dumps(orjson.loads(file.read_bytes()) | change))

    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(str(tampered))


def test_a_matrix_that_is_not_as_large_as_described_is_refused(tampered):
    """Panels shorter than the shape needs are an error, not a read past their end."""
    file = tampered / "quant.json"
    description = orjson.loads(file.read_bytes())
    description["matrices"]["layers.0.ffn.down.weight"] |= {"bits": 8, "group": 32, "symmetric": False}
    file.write_bytes(orjson.dumps(description))

    with pytest.raises(CheckpointError, match="bytes of panels"):
        open_checkpoint(str(tampered)).tensor("layers.0.ffn.down.weight")


@pytest.mark.parametrize("text", [None, "too short"])
def test_calibration_text_that_cannot_be_used_is_an_error(order, tmp_path, text, capsys):
    """A missing or tiny file is told with exit code 2."""
    file = tmp_path / "text"
    if text is not None:
        file.write_text(text)
    status = main(["quantize", order.source, str(order.out), "--calibration", str(file)])

    assert status == 2
    assert "tidegate: " in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--target-size", "35"], ["--min-accuracy", "0"]])
def test_shares_that_are_none_are_an_error(order, arguments, capsys):
    """35 for 35 % is refused with an example of what is meant."""
    assert main(["quantize", order.source, str(order.out), *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_folder_that_holds_a_model_is_not_written_over(source, written, capsys):
    """A second run into the same folder is refused."""
    assert main(["quantize", str(source), str(written)]) == 2
    assert "holds a quantised model" in capsys.readouterr().err


def test_calibration_and_held_out_text_share_nothing():
    """No paragraph of the shipped text is both learnt from and judged by."""
    text = texts.shipped()

    calibration, held_out = ({part.strip() for part in one.split("\n\n")} for one in (text.calibration, text.held_out))
    assert not calibration & held_out
    assert len(text.held_out) > 100_000


def test_the_plot_is_well_formed_and_shows_limits_and_points():
    """The frontier is an SVG that any XML parser reads, with a circle for each measured point."""
    svg = report.frontier_svg(
        [(0.26, 0.8), (0.35, 0.985), (0.5, 0.999)], [report.Marker("ours", 0.349, 0.981)], report.Marker("", 0.35, 0.98)
    )

    root = ET.fromstring(svg)
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 1
