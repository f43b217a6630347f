"""[sessions] of gateway.toml: what a store and a worker are told of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.config import Config, ConfigError, load
from gateway.control.pool import worker_settings
from gateway.control.store import keeps_sessions, state_dir, store_settings

MODEL = '[[models]]\nname = "m"\nreleases = [{ source = "m.gguf" }]\n'
Read = Callable[..., Config]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Read a [sessions] table beside a model."""

    def read(text: str, *, model: str = MODEL, **environment: str) -> Config:
        file = tmp_path / "gateway.toml"
        file.write_text(f"[sessions]\n{text}\n{model}")
        return load(file, environment)

    return read


def test_sessions_are_kept_in_the_state_folder_unless_told_otherwise(read: Read) -> None:
    """Without a word of configuration a folder of this user's keeps them, and no key leaves the machine."""
    told = store_settings(read("").sessions, {"XDG_STATE_HOME": "/state"})

    assert told["store"] == "file:/state/tidegate/sessions"
    assert (told["state_dir"], told["redis_url"], told["key_file"]) == ("/state/tidegate", None, None)


def test_a_state_home_that_is_no_absolute_path_is_ignored(read: Read) -> None:
    """The XDG rule: only an absolute path counts."""
    assert state_dir(read("").sessions, {"XDG_STATE_HOME": "state"}) == Path.home() / ".local/state/tidegate"


def test_a_folder_counts_from_the_file(read: Read, tmp_path: Path) -> None:
    """A relative folder is beside gateway.toml, wherever the gateway is started."""
    assert store_settings(read('store = "file:cold"').sessions)["store"] == f"file:{tmp_path}/cold"


def test_a_bucket_is_told_with_its_server_and_region(read: Read, tmp_path: Path) -> None:
    """What S3 needs stands in keys of its own, and reaches the store as one address."""
    (tmp_path / "keys").write_text("a:" + "1" * 64)
    text = 'store = "s3://bucket/team"\nendpoint = "http://127.0.0.1:8333"\nencryption_key_file = "keys"'

    told = store_settings(read(text).sessions)

    address = urlsplit(str(told["store"]))
    assert (address.netloc, address.path, told["key_file"]) == ("bucket", "/team", str(tmp_path / "keys"))
    assert parse_qs(address.query) == {"endpoint": ["http://127.0.0.1:8333"], "region": ["us-east-1"]}


@pytest.mark.parametrize("text", ['redis = "redis://127.0.0.1:6379"', 'store = "s3://bucket/prefix"'])
def test_shared_tiers_need_a_key(read: Read, text: str) -> None:
    """Redis or S3 without a key, in a file or the environment, is refused before anything starts."""
    with pytest.raises(ConfigError, match=r"TIDEGATE_MASTER_KEY; make one with: python -c"):
        read(text)

    assert read(text, TIDEGATE_MASTER_KEY="1" * 64).sessions.enabled
    assert not read(f"enabled = false\n{text}").sessions.enabled
    assert read(f'{text}\nencryption_key_command = "cat keys"').sessions.enabled


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('encryption_key_file = "nowhere"', "there is no such file"),
        ('write_behind = "40m"', "cold_after is shorter than write_behind"),
        ('ttl = "2m"', "ttl is shorter than cold_after"),
        ('store = "/srv/kv"', 'it begins with neither "file:" nor "s3://"'),
        ('store = "s3://bucket?region=x"', "endpoint and region have keys of their own"),
        ('redis = "127.0.0.1"', "redis://127.0.0.1:6379/0"),
        ('codec = "gzip"', '"balanced"'),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_what_to_write(read: Read, text: str, told: str) -> None:
    """Each mistake is found when the file is read."""
    with pytest.raises(ConfigError) as caught:
        read(text)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("", "there is no key in it"),
        (f"a:{'1' * 64}\nb:{'2' * 63}\n", "line 2 has a key of 63 characters"),
        (f"a:{'g' * 64}", "line 1 has a key with other characters than hex digits"),
        (f"a:{'1' * 64}\n\na:{'2' * 64}", "line 3 has the id 'a' that line 1 has"),
        ("caf\xe9".encode("latin-1"), "cannot be read"),
    ],
)
def test_wrong_master_keys_are_told_by_line_and_never_shown(
    read: Read, tmp_path: Path, keys: str | bytes, told: str
) -> None:
    """Before anything starts, with how to make a key."""
    (tmp_path / "keys").write_bytes(keys.encode() if isinstance(keys, str) else keys)

    with pytest.raises(ConfigError, match="make one with: python -c") as caught:
        read('encryption_key_file = "keys"')

    assert "sessions.encryption_key_file" in str(caught.value)
    assert told in str(caught.value)
    assert "2222" not in str(caught.value)


def test_a_wrong_master_key_of_the_environment_is_told_too(read: Read) -> None:
    """Several stand with commas between; the same rules hold."""
    assert read("", TIDEGATE_MASTER_KEY=f"a:{'1' * 64},b:{'2' * 64}").sessions.enabled

    with pytest.raises(ConfigError, match="in TIDEGATE_MASTER_KEY line 2 has a key of 5 characters"):
        read("", TIDEGATE_MASTER_KEY=f"a:{'1' * 64},b:short")


def test_a_worker_is_told_where_the_store_is_and_how_to_keep_sessions(read: Read) -> None:
    """All that a worker needs to know, and no key; without a store it keeps none."""
    config = read('codec = "exact"\nwrite_behind = "5s"\nprofiles = "/srv/profiles"')
    model = config.models[0]

    told = worker_settings(config, model, model.releases[0], store=Path("/run/store.sock"))["sessions"]

    assert told == {
        "store": "/run/store.sock",
        "profiles": "/srv/profiles",
        "codec": "exact",
        "min_agreement": 0.97,
        "write_behind_s": 5.0,
        "active_s": 600,
        "min_restore_tokens": 512,
        "recheck_every": 64,
    }
    assert worker_settings(config, model, model.releases[0])["sessions"] is None


@pytest.mark.parametrize("source", ['source = "echo"', 'url = "http://127.0.0.1:9000"'])
def test_nothing_is_stored_for_what_computes_elsewhere(read: Read, source: str) -> None:
    """Other servers and the echo have no KV of ours, so that no store is started for them."""
    assert not keeps_sessions(read("", model=f'[[models]]\nname = "m"\nreleases = [{{ {source} }}]'))
    assert keeps_sessions(read(""))
