"""A calibrated codec from the command that makes it to a conversation that goes on after a restart."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
from openai import OpenAI

from backends.engine.fingerprint import fingerprint
from backends.engine.kvprofile import read_profile, write_profile
from backends.engine.weights import Checkpoint
from backends.kernels.cpu import native_missing
from tests.serving import SMOLLM2, TIDEGATE, Served, serving
from tests.test_sessions_served import SYSTEM

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))


def calibrate(folder: Path, *asked: str, models: str = SMOLLM2) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, measuring as little as it lets one."""
    config = folder / "gateway.toml"
    config.write_text(f'[server]\nrun_dir = "{folder}/run"\n{models}')
    command = [TIDEGATE, "sessions", "calibrate", *asked, "--config", config, "--windows", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def profiles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Calibrate the embedded model once; give the folder and what was printed."""
    folder = tmp_path_factory.mktemp("calibrated")
    run = calibrate(folder, "smollm2", "--profiles", str(folder / "profiles"))
    assert run.returncode == 0, run.stderr
    return folder / "profiles", run.stdout


def rest(profiles: Path, **options: object) -> str:
    """Configure the codec."""
    more = "".join(f"{name} = {value}\n" for name, value in options.items())
    return f'[sessions]\nwrite_behind = "100ms"\nprofiles = "{profiles}"\ncodec = "balanced"\n{more}'


def asked(served: Served, *turns: str) -> tuple[str, str]:
    """Ask with these turns so far; return the answer and what the header says of the prompt."""
    said = [{"role": "system", "content": SYSTEM}]
    said += [{"role": role, "content": text} for role, text in zip(cycle(("user", "assistant")), turns, strict=False)]
    with OpenAI(base_url=f"{served.url}/v1", api_key="none", default_headers={"x-session-id": "s1"}) as client:
        raw = client.chat.completions.with_raw_response.create(
            model="smollm2", messages=said, max_tokens=24, temperature=0
        )
        return raw.parse().choices[0].message.content or "", raw.headers["x-tidegate-cache"]


def test_the_command_prints_what_each_profile_costs(profiles: tuple[Path, str]) -> None:
    """A row for each, with its size and what is lost, and the line that chooses one."""
    folder, told = profiles

    for name in ("safe", "balanced", "dense"):
        assert re.search(rf"{name} .*[3-6]\.\d\d x .*9\d\.\d% .*%", told)
    assert f"written to {folder}" in told.replace("\n", "")
    assert re.search(r'\[sessions\]: +codec = "', told)


def test_a_calibrated_session_goes_on_after_a_restart(profiles: tuple[Path, str], tmp_path: Path) -> None:
    """The second turn is restored from the store, and answered as by a worker that lost nothing."""
    first, second, configured = "Where is paper 7?", "And what is your role?", rest(profiles[0])
    with serving(tmp_path, models=SMOLLM2, rest=configured) as served:
        served.event("worker.ready")
        said, _ = asked(served, first)
        unrestored, kept = asked(served, first, said, second)

    with serving(tmp_path, models=SMOLLM2, rest=configured) as served:
        served.event("worker.ready")
        restored, note = asked(served, first, said, second)

    assert "restored" not in kept
    assert re.search(r"restored=1\d{3} \(cold\)", note)
    assert len(restored.split()) > 3
    assert restored.split()[0] == unrestored.split()[0]


def test_a_profile_below_min_agreement_is_refused_at_start(
    profiles: tuple[Path, str], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The log says how far it is below, and what to do."""
    profile = read_profile(profiles[0], fingerprint(checkpoint, "fp16"), "balanced")
    poor = replace(profile, measured=replace(profile.measured, decisive=0.9))
    write_profile(tmp_path / "poor", poor)

    with serving(tmp_path, models=SMOLLM2, rest=rest(tmp_path / "poor", min_agreement=0.95)) as served:
        told = str(served.event("worker.failed"))

    assert "90.00%" in told
    assert "min_agreement is 95.00%" in told
    assert 'use "safe" or "exact"' in told


def test_a_stretched_release_is_calibrated_as_its_worker_opens_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its profile is under the stretched model's fingerprint, where its worker looks."""
    stretch = 'rope_scaling = { type = "yarn", factor = 2.0 }'
    models = SMOLLM2.replace('gguf" }]', f'gguf", {stretch} }}]')

    run = calibrate(tmp_path, "smollm2", "--profiles", str(tmp_path / "profiles"), models=models)

    assert run.returncode == 0, run.stderr
    name = fingerprint(checkpoint.stretched("yarn", 2.0), "fp16")
    assert read_profile(tmp_path / "profiles", name, "dense").measured.ratio > 5


@pytest.mark.parametrize(
    ("model", "says"), [("nobody", "is no model of the configuration"), ("/no/such.gguf", "there is no such file")]
)
def test_what_cannot_be_calibrated_is_said_in_a_line(model: str, says: str, tmp_path: Path) -> None:
    """Not by a traceback."""
    run = calibrate(tmp_path, model)

    assert run.returncode == 1
    assert says in run.stderr
    assert "Traceback" not in run.stderr
