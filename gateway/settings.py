"""Every setting of gateway.toml: its name, type, default, allowed values and meaning, each said once, here.

Parser, JSON schema, reference table and error texts are derived from these dataclasses. Refuses to know files and TOML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from gateway.fields import Doc, FilePath, Items, Key, Pattern, Range, Secret, Written
from gateway.units import Address, duration_text, parse_address, parse_duration, parse_size, size_text

_MIB = 1 << 20
# A frame to a worker holds 64 MiB, and a call as a frame is never much larger than its body.
_LARGEST_BODY = 48 * _MIB
_DATA, _ADMIN = Address("127.0.0.1", 8000), Address("127.0.0.1", 8001)


def parse_source(text: str) -> str:
    """Check the form of a release's source; whether it exists is found out by the worker that loads it."""
    scheme, colon, rest = text.partition(":")
    if colon and re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) and scheme != "package":
        raise ValueError("that kind of source is not known")
    if scheme == "package" and colon and not _is_inside_package(rest):
        raise ValueError('after "package:" come an importable package, "/" and a file in it')
    if not text:
        raise ValueError("it is empty")
    return text


def _is_inside_package(text: str) -> bool:
    package, _, path = text.partition("/")
    parts = path.split("/")
    return all(part.isidentifier() for part in package.split(".")) and not {"", ".", ".."}.intersection(parts)


def parse_url(text: str) -> str:
    """Return a server's address as paths are appended to it; one without a path means the API's first version."""
    if not text:
        return text
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("it does not begin with http:// or https:// and a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("it holds more than host, port and path; a key belongs into api_key")
    _ = parts.port  # raises for one that is none
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def parse_store(text: str) -> str:
    """Check the form of where cold sessions lie; whether it can be reached is found out by the store."""
    if text.startswith("file:"):
        return text
    parts = urlsplit(text)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError('it begins with neither "file:" nor "s3://" and a bucket')
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("it holds more than bucket and prefix; endpoint and region have keys of their own")
    return text


_NUMBER = r"[0-9]{1,15}(\.[0-9]{1,9})? ?"
_DURATION = Written(
    parse_duration,
    lambda value: duration_text(float(str(value))),
    'a duration such as "500ms", "30s", "10m", "2h" or "7d"',
    _NUMBER + "(ms|s|m|h|d)",
    suffix="_s",
)
_SIZE = Written(
    parse_size,
    lambda value: size_text(int(str(value))),
    'a size such as "32MiB", "2GiB" or "500MB"',
    _NUMBER + "([KMGT]i?)?B",
    suffix="_bytes",
)
_ADDRESS = Written(parse_address, str, 'an address such as "127.0.0.1:8000" or "[::1]:8000"', r".+:[0-9]{1,5}")
_SOURCE = Written(
    parse_source,
    str,
    '"package:NAME/FILE" (a file inside an installed Python package), a path to a GGUF file or checkpoint folder, '
    'or "echo" (a built-in backend that repeats what it is told)',
    r".+",
)
_STORE = Written(
    parse_store,
    str,
    '"file:" and a folder, or "s3://BUCKET/PREFIX"; "file:" alone is sessions/ in state_dir',
    r"file:.*|s3://[^/?#]+(/[^?#]*)?",
)
_URL = Written(parse_url, str, 'an address such as "http://127.0.0.1:9000/v1"', r"(https?://[^/?#@]+(/[^?#]*)?)?")
_NAME = Pattern(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}", "letters, digits and . _ : / @ -, at most 128 of them")
_KEY_HASH = Pattern(
    r"sha256:[0-9a-f]{64}",
    '"sha256:" and 64 lower-case hexadecimal digits; the key itself never goes into this file: '
    "hash it with `tidegate keys hash`",
)
_GRANT = Pattern(rf"\*|{_NAME.regex}", 'the name or alias of a model, or "*" for all')
_HOST = Pattern(
    r"[A-Za-z0-9_.:-]{1,253}|\[[0-9A-Fa-f:.]+\]", 'a host name as browsers send it, such as "chat.example.org"'
)
_HEADER = Pattern(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[ -~]*", 'a header as it is sent, such as "x-team: search"')
_ORIGIN = Pattern(
    r"\*|https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?",
    'an origin as browsers send it, in lower case, such as "https://chat.example.org", or "*" for every page',
)
_REDIS = Pattern(r"(rediss?://\S+)?", 'an address such as "redis://127.0.0.1:6379/0"')
_ENDPOINT = Pattern(r"(https?://[^/?#@]+/?)?", 'an address such as "http://127.0.0.1:8333"')
_TOKEN = Pattern(r"[!-~]*", "visible ASCII characters without spaces")

Duration = Annotated[float, _DURATION]
Size = Annotated[int, _SIZE]
Listen = Annotated[Address, _ADDRESS]
Name = Annotated[str, _NAME]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the gateway listens, and the bounds of one request."""

    listen: Annotated[Listen, Doc("Address of the data port, where chat clients connect.")] = _DATA
    admin_listen: Annotated[Listen, Doc("Address of the admin port: metrics, state and the dashboard.")] = _ADMIN
    admin_token: Annotated[
        str,
        Secret(),
        _TOKEN,
        Doc("Password of the admin port; empty makes a random one each start, in run_dir/admin-token."),
    ] = field(default="", repr=False)
    allowed_hosts: Annotated[
        tuple[Annotated[str, _HOST], ...],
        Doc("Host names that callers may use besides loopback names and the listen address."),
    ] = ()
    cors_origins: Annotated[
        tuple[Annotated[str, _ORIGIN], ...],
        Doc('Origins of web pages that may call the API from a browser; "*" is every page.'),
    ] = ()
    max_body_bytes: Annotated[Size, Range(1 << 10, _LARGEST_BODY), Doc("Largest request body.")] = 32 * _MIB
    request_timeout_s: Annotated[
        Duration, Range(1, 86400), Doc("Longest time one call may take, waiting included.")
    ] = 600
    ping_interval_s: Annotated[
        Duration, Range(0.001, 3600), Doc("How long a streamed answer may be silent before it says that it goes on.")
    ] = 10
    drain_timeout_s: Annotated[Duration, Range(0, 3600), Doc("How long running calls may finish when stopping.")] = 30
    run_dir: Annotated[
        str,
        FilePath(unless=""),
        Doc(
            "Folder for sockets and the admin token; empty is $XDG_RUNTIME_DIR/tidegate or a private temporary folder."
        ),
    ] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """Who may call."""

    open: Annotated[bool, Doc("Whether callers without a key are served even beyond this machine.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What the gateway says about itself; never prompts, keys or tokens."""

    level: Annotated[Literal["debug", "info", "warning", "error"], Doc("The least important line to print.")] = "info"
    format: Annotated[Literal["console", "json"], Doc("Lines for people, or one JSON object a line.")] = "console"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """How a worker shares its steps among calls."""

    max_batch: Annotated[int, Range(1, 256), Doc("Most sequences computed together in one step.")] = 32
    token_budget: Annotated[int, Range(1, 65536), Doc("Most tokens computed in one step, prompts included.")] = 512
    window_s: Annotated[
        Duration, Range(0, 1), Doc("How long an idle worker waits for company before it computes a first call.")
    ] = 0
    block_tokens: Annotated[Literal[16, 32, 64, 128], Doc("Tokens in one block of the KV cache.")] = 16
    kv_memory_bytes: Annotated[Size, Range(_MIB, 1 << 40), Doc("Memory of one worker's KV cache.")] = 1 << 30
    kv_format: Annotated[
        Literal["fp16", "int8", "int4"], Doc("How the native library keeps a value of the KV cache.")
    ] = "fp16"
    max_waiting: Annotated[int, Range(0, 100_000), Doc("Most calls that wait for a place; one more is refused.")] = 256
    speculation: Annotated[
        Literal["auto", "off"], Doc("Whether tokens are guessed ahead where that pays; answers stay the same.")
    ] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How worker processes are started, and started again."""

    runner: Annotated[
        Literal["auto", "native", "torch"],
        Doc("What computes: the native library, torch, or the library wherever it is there."),
    ] = "auto"
    threads: Annotated[int, Range(0, 1024), Doc("Compute threads of one worker; 0 is one a core allowed.")] = 0
    start_timeout_s: Annotated[Duration, Range(1, 3600), Doc("Longest time from start to ready.")] = 120
    step_timeout_s: Annotated[
        Duration, Range(1, 3600), Doc("Longest time one step may take; a worker that hangs in one is started again.")
    ] = 120
    restart_backoff_s: Annotated[Duration, Range(0.01, 60), Doc("Pause before a dead worker's first restart.")] = 0.5
    restart_backoff_max_s: Annotated[
        Duration, Range(0.01, 3600), Doc("Longest pause between restarts; each is twice the one before.")
    ] = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """What is kept of conversations so that nothing is computed twice, where, and for how long."""

    enabled: Annotated[bool, Doc("Whether conversations are kept beyond a worker's KV cache.")] = True
    active_s: Annotated[
        Duration, Range(1, 86400), Doc("How long a conversation stays in the worker's KV cache where there is room.")
    ] = 600
    write_behind_s: Annotated[
        Duration, Range(0.1, 3600), Doc("How long a conversation is idle before the store has it too.")
    ] = 60
    cold_after_s: Annotated[
        Duration, Range(1, 7 * 86400), Doc("How long it is idle before it lies in the cold tier alone.")
    ] = 2100
    ttl_s: Annotated[Duration, Range(60, 365 * 86400), Doc("How long it is idle before it is deleted.")] = 7 * 86400
    memory_bytes: Annotated[
        Size, Range(_MIB, 1 << 40), Doc("Memory for compressed conversations, beside the workers.")
    ] = 256 * _MIB
    redis: Annotated[
        str, Secret(), _REDIS, Doc("Redis as the warm tier, which several machines share; empty is none.")
    ] = field(default="", repr=False)
    store: Annotated[str, _STORE, FilePath(unless="file:|s3://.*", prefix="file:"), Doc("The cold tier.")] = "file:"
    endpoint: Annotated[str, _ENDPOINT, Doc("Server that speaks S3; empty is Amazon's.")] = ""
    region: Annotated[str, Doc("Region of the bucket.")] = "us-east-1"
    state_dir: Annotated[
        str,
        FilePath(unless=""),
        Doc("Folder of keys, profiles and the default store; empty is $XDG_STATE_HOME/tidegate or its usual place."),
    ] = ""
    encryption_key_file: Annotated[
        str, FilePath(unless=""), Doc("Master keys, the current one first; empty is $TIDEGATE_MASTER_KEY or one made.")
    ] = ""
    encryption_key_command: Annotated[
        str, Doc("A command that prints such lines instead, asked once at the start; no shell reads it.")
    ] = ""
    codec: Annotated[
        Literal["exact", "safe", "balanced", "dense"], Doc("How KV is compressed: without loss, or by a profile.")
    ] = "exact"
    min_agreement: Annotated[
        float, Range(0.5, 1), Doc("Least agreement a profile must have been measured with to be used.")
    ] = 0.97
    profiles: Annotated[
        str, FilePath(unless=""), Doc("Folder of calibrated profiles; empty is profiles/ in state_dir.")
    ] = ""
    min_restore_tokens: Annotated[
        int, Range(256, 1 << 20), Doc("Fewest tokens worth restoring; fewer are computed.")
    ] = 512
    recheck_every: Annotated[
        int, Range(0, 1_000_000), Doc("One restore in so many is computed too, to compare; 0 is none.")
    ] = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSettings:
    """A team or program with its own keys."""

    name: Annotated[Name, Doc("Unique name, used in metrics and logs.")]
    keys: Annotated[
        tuple[Annotated[str, Secret(), _KEY_HASH], ...],
        Items(1),
        Doc("Hashes of its API keys, as `tidegate keys hash` prints them."),
    ] = field(repr=False)
    models: Annotated[tuple[Annotated[str, _GRANT], ...], Items(1), Doc('Models it may call; "*" is all.')] = ("*",)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How positions are squeezed so that a model reads longer texts than it was trained on."""

    type: Annotated[Literal["none", "linear", "yarn"], Doc("How frequencies are stretched.")] = "none"
    factor: Annotated[float, Range(1, 64), Doc("How many times the model's own context becomes possible.")] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A version of a model: where its weights come from and how many workers run it, or which server does."""

    name: Annotated[Name, Doc("Name of the version, unique within its model.")] = "stable"
    source: Annotated[str, _SOURCE, FilePath(unless=r"|echo|package:.*"), Doc("Where the weights come from.")] = ""
    replicas: Annotated[int, Range(1, 64), Doc("Worker processes that serve it.")] = 1
    context_tokens: Annotated[
        int,
        Key("context"),
        Range(0, 1 << 20),
        Doc("Longest prompt and answer together, in tokens; 0 is the model's own."),
    ] = 0
    url: Annotated[str, _URL, Doc("Address of a server that runs it, instead of source.")] = ""
    dialect: Annotated[Literal["openai", "anthropic"], Doc("API that the server at url speaks.")] = "openai"
    upstream_model: Annotated[str, Doc("The server's name for the model; empty is the model's own.")] = ""
    api_key: Annotated[str, Secret(), _TOKEN, Doc("Key that the server wants; empty sends none.")] = field(
        default="", repr=False
    )
    headers: Annotated[tuple[Annotated[str, Secret(), _HEADER], ...], Doc("Headers that the server wants besides.")] = (
        field(default=(), repr=False)
    )
    connect_timeout_s: Annotated[
        Duration, Range(0.01, 300), Doc("Longest time until the server takes a connection.")
    ] = 5
    first_byte_timeout_s: Annotated[
        Duration, Range(0.01, 86400), Doc("Longest time until the server begins to answer, its reading of the prompt.")
    ] = 300
    idle_timeout_s: Annotated[
        Duration, Range(0.01, 86400), Doc("Longest silence of the server in the middle of an answer.")
    ] = 60
    rope_scaling: RopeScaling = RopeScaling()

    @property
    def is_computed_here(self) -> bool:
        """Whether a worker of ours computes it, rather than another server or the built-in echo."""
        return self.source not in {"", "echo"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as clients name it."""

    name: Annotated[Name, Doc("What clients write as `model`.")]
    aliases: Annotated[tuple[Name, ...], Doc("Other names for it.")] = ()
    stabilise_prompt: Annotated[
        bool, Doc("Whether tools are put in one order and lines that tell the time at the end of the system prompt.")
    ] = False
    releases: Annotated[tuple[Release, ...], Items(1), Doc("Its versions.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All of gateway.toml, checked."""

    server: Server = Server()
    auth: Auth = Auth()
    log: Log = Log()
    batching: Batching = Batching()
    worker: WorkerSettings = WorkerSettings()
    sessions: Sessions = Sessions()
    tenants: tuple[TenantSettings, ...] = ()
    models: Annotated[tuple[Model, ...], Items(1)]
