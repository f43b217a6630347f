"""The command line and the life of a `tidegate serve`: start, drain, stop, and what stays behind (nothing)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest

from tests.serving import ECHO, SMOLLM2, TIDEGATE, Served, serving

TENANT = '[[tenants]]\nname = "team"\nkeys = ["sha256:{}"]\nmodels = ["gpt-4o-mini"]\n'


def run(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run([TIDEGATE, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False)


def is_running(pid: int) -> bool:
    """Whether there is such a process, be it a zombie."""
    return Path(f"/proc/{pid}").exists()


def get(served: Served, path: str) -> int:
    """Ask the data port for a status."""
    parts = urlsplit(served.url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def client_of(served: Served, key: str = "k") -> openai.OpenAI:
    """Give a client that does not retry."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)


def asked(text: str, **fields: object) -> dict[str, object]:
    """Give the fields of a chat call of the echo."""
    return {"model": "echo", "messages": [{"role": "user", "content": text}]} | fields


def test_the_version_is_told() -> None:
    """--version prints name and version."""
    assert run("--version").stdout.startswith("tidegate 0.")


def test_without_a_subcommand_the_help_is_shown() -> None:
    """A bare `tidegate` says what there is."""
    shown = run()

    assert (shown.returncode, "serve" in shown.stdout) == (2, True)


def test_check_tells_all_mistakes_and_exits_2(tmp_path: Path) -> None:
    """A wrong file is described in full without starting anything; a right one is summed up."""
    wrong, right = tmp_path / "wrong.toml", tmp_path / "right.toml"
    wrong.write_text(f'[server]\nlisten = "nowhere"\nmax_bdy = 1\n{ECHO}')
    right.write_text(ECHO)

    refused = run("check", wrong)

    assert refused.returncode == 2
    assert "listen" in refused.stderr
    assert "max_body" in refused.stderr
    assert run("check", right).returncode == 0


def test_a_key_is_hashed_without_being_an_argument() -> None:
    """The key comes on standard input, so that it is in no history and no process list."""
    hashed = run("keys", "hash", given="my-key\n")

    assert hashed.stdout.strip() == "sha256:" + hashlib.sha256(b"my-key").hexdigest()
    assert run("keys", "hash").returncode == 2


def test_a_port_in_use_is_told_and_exits_1(tmp_path: Path) -> None:
    """A taken port is named with the setting that moves it, and nothing stays behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "gateway.toml"
        config.write_text(
            f'[server]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\nrun_dir = "{tmp_path / "run"}"\n{ECHO}'
        )

        refused = run("serve", config)

    assert refused.returncode == 1
    assert "listen" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert list((tmp_path / "run").rglob("*.sock")) == []


def test_a_run_dir_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    """Sockets and the token are never put where other users could reach them."""
    shared = tmp_path / "run"
    shared.mkdir(mode=0o755)
    config = tmp_path / "gateway.toml"
    config.write_text(f'[server]\nlisten = "127.0.0.1:0"\nadmin_listen = "127.0.0.1:0"\nrun_dir = "{shared}"\n{ECHO}')

    refused = run("serve", config)

    assert (refused.returncode, "chmod 700" in refused.stderr) == (1, True)


def test_the_gateway_is_small_and_free_of_torch(served_echo: Served) -> None:
    """The gateway process has no torch mapped and stays under 80 MB."""
    process = Path(f"/proc/{served_echo.process.pid}")
    rss_kb = int(next(line.split()[1] for line in (process / "status").read_text().splitlines() if "VmRSS" in line))

    assert rss_kb < 80_000
    assert "torch" not in (process / "maps").read_text()
    assert "numpy" not in (process / "maps").read_text()


def test_the_gateway_starts_in_less_than_a_second_of_its_own_time(tmp_path: Path) -> None:
    """From exec to listening it computes for less than a second; waiting for a busy machine doesn't count."""
    with serving(tmp_path) as served:
        fields = Path(f"/proc/{served.process.pid}/stat").read_text().rpartition(")")[2].split()

    assert (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") < 1


def test_a_signal_drains_what_runs_and_leaves_nothing(tmp_path: Path) -> None:
    """A stop lets a running call finish, refuses new ones, and removes token and sockets."""
    with serving(tmp_path) as served, client_of(served) as client:
        long = client.chat.completions.create(**asked(f"echo:repeat=5000 {'x' * 20}", stream=True))
        first = next(iter(long))

        served.process.send_signal(signal.SIGINT)
        rest = list(long)

        assert served.end() == 0
    assert first.choices[0].delta.role == "assistant"
    assert rest[-1].choices[0].finish_reason == "stop"
    assert list((tmp_path / "run").rglob("*")) in ([], [tmp_path / "run" / "workers"])


@pytest.mark.parametrize("insist", [False, True])
def test_a_call_that_does_not_end_is_broken_off_in_words(tmp_path: Path, *, insist: bool) -> None:
    """When the drain time is over, or a second signal comes, an open stream ends with an error event."""
    timeout = "1h" if insist else "100ms"
    with serving(tmp_path, server=f'drain_timeout = "{timeout}"') as served, client_of(served) as client:
        stream = iter(client.chat.completions.create(**asked("echo:stall=1 a b", stream=True)))
        next(stream)

        served.process.send_signal(signal.SIGTERM)
        if insist:
            served.event("draining")
            served.process.send_signal(signal.SIGTERM)

        with pytest.raises(openai.APIError, match="stopping"):
            list(stream)
        assert served.end() == 0


def test_keys_are_asked_for_once_there_are_tenants(tmp_path: Path) -> None:
    """With tenants a call without a known key is a 401, models are theirs alone, and health stays open."""
    tenant = TENANT.format(hashlib.sha256(b"k").hexdigest())
    with serving(tmp_path, rest=tenant) as served, client_of(served) as client:
        with client_of(served, "DUMMY_KEY") as stranger, pytest.raises(openai.AuthenticationError, match="keys hash"):
            stranger.models.list()

        assert client.chat.completions.create(**asked("hello")).choices[0].message.content == "hello"
        assert (get(served, "/healthz"), get(served, "/metrics")) == (200, 401)


def test_ports_answer_while_the_worker_still_loads(tmp_path: Path) -> None:
    """Before the model is loaded the gateway lives, is not ready, and lets a call wait until it is."""
    with serving(tmp_path, models=SMOLLM2) as served:
        statuses = get(served, "/healthz"), get(served, "/readyz")
        with client_of(served) as client:
            answer = client.completions.create(model="smollm2", prompt="1 2 3", max_tokens=2)

        assert (statuses, get(served, "/readyz")) == ((200, 503), 200)
        assert answer.usage.completion_tokens == 2


async def test_a_killed_worker_breaks_its_streams_in_words_and_is_replaced(tmp_path: Path) -> None:
    """A kill -9 in the middle of 8 streams: 8 errors at once, the next call is answered, no zombie, no stale socket."""
    with serving(tmp_path, models=SMOLLM2) as served:
        pid = int(str(served.event("worker.ready")["pid"]))
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="k", max_retries=0) as client:
            prompts = {
                "model": "smollm2",
                "prompt": "Once upon a time",
                "max_tokens": 4000,
                "extra_body": {"ignore_eos": True},
            }
            streams = await asyncio.gather(*(client.completions.create(**prompts, stream=True) for _ in range(8)))
            for stream in streams:
                await anext(stream)

            os.kill(pid, signal.SIGKILL)
            ends = await asyncio.gather(*(drain(stream) for stream in streams))
            answer = await client.completions.create(**prompts | {"max_tokens": 2})

        assert all(isinstance(end, openai.APIError) for end in ends), ends
        assert answer.usage.completion_tokens == 2
        assert not is_running(pid)
        replacement = int(str(served.event("worker.ready", nth=2)["pid"]))
        served.stop()
    assert not is_running(replacement)
    assert list((tmp_path / "run").rglob("*.sock")) == []


async def drain(stream: openai.AsyncStream[object]) -> Exception | None:
    """Read a stream to its end and give what it raised."""
    try:
        async for _ in stream:
            pass
    except openai.APIError as error:
        return error
    return None
