"""gateway.toml into a checked `Config`; all mistakes of a file are found and told together.

Refuses to know what any setting is used for.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

from gateway.convert import Converter, nearest
from gateway.problems import ConfigError, KeyPath, Problem, describe, path_text, sentences
from gateway.settings import (
    Auth,
    Batching,
    Config,
    Log,
    Model,
    Release,
    Server,
    Sessions,
    TenantSettings,
    WorkerSettings,
)
from gateway.units import Address
from sessioncache.masterkeys import HOW_TO_MAKE, KEY_VARIABLE, read_keys, read_variable

__all__ = [
    "DEFAULT_NAME",
    "Address",
    "Auth",
    "Batching",
    "Config",
    "ConfigError",
    "Log",
    "Model",
    "Release",
    "Server",
    "Sessions",
    "TenantSettings",
    "WorkerSettings",
    "describe",
    "load",
]

DEFAULT_NAME = "gateway.toml"
_MAKE_A_KEY = f"make one with: {HOW_TO_MAKE}"


def load(path: str | Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check the file; ConfigError holds every problem that it has."""
    file = Path(path)
    text = _text(file)
    converter = Converter(Config, folder=file.absolute().parent, environment=environment)
    config: Config = converter.table(Config, _parsed(file, text))
    broken = [problem.path for problem in converter.problems]
    found = [*contradictions(config), *_master_key(config.sessions, environment)]
    problems = [*converter.problems, *(each for each in found if not each.is_hidden_by(broken))]
    if problems:
        raise ConfigError(sentences(problems, file=str(file), text=text))
    return config


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except FileNotFoundError as exc:
        raise ConfigError([f"{file}: there is no such file; write one, or name another"]) from exc
    except OSError as exc:
        raise ConfigError([f"{file}: it cannot be read: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        line = exc.object.count(b"\n", 0, exc.start) + 1
        raise ConfigError([f"{file}:{line}: it is not UTF-8 text"]) from exc


def _parsed(file: Path, text: str) -> dict[str, object]:
    try:
        return tomllib.loads(text)
    except ValueError as exc:
        raise ConfigError([_not_toml(file, text, str(exc))]) from exc


def _not_toml(file: Path, text: str, message: str) -> str:
    """Move the place from the end of tomllib's message to where editors look for it."""
    what, _, place = message.partition(" (at ")
    numbers = re.findall("[0-9]+", place)
    if place.startswith("end"):
        numbers = [str(text.count("\n") + 1), str(len(text.rpartition("\n")[2]) + 1)]
    return f"{':'.join([str(file), *numbers])}: it is not valid TOML: {what}"


def contradictions(config: Config) -> Iterator[Problem]:
    """Yield what is wrong between settings that are each allowed on their own."""
    yield from _open_to_strangers(config)
    yield from _ports(config.server)
    yield from _batch_sizes(config.batching)
    yield from _backoff(config.worker)
    yield from _session_times(config.sessions)
    yield from _stretches(config)
    yield from _same_names(config)
    yield from _sources(config)
    yield from _unknown_grants(config)


def _open_to_strangers(config: Config) -> Iterator[Problem]:
    listen = config.server.listen
    if not listen.is_loopback and not config.tenants and not config.auth.open:
        yield Problem(
            ("server", "listen"),
            f'is "{listen}", which other machines may reach, while no caller needs a key; either add [[tenants]] with '
            "keys, or write open = true under [auth] to serve everybody",
            reads=(("server", "listen"), ("auth", "open"), ("tenants",)),
        )


def _ports(server: Server) -> Iterator[Problem]:
    if server.listen.overlaps(server.admin_listen):
        yield Problem(
            ("server", "admin_listen"),
            f'is "{server.admin_listen}" while listen is "{server.listen}"; give them different ports',
            reads=(("server", "listen"), ("server", "admin_listen")),
        )


def _batch_sizes(batching: Batching) -> Iterator[Problem]:
    if batching.token_budget < batching.max_batch:
        yield Problem(
            ("batching", "token_budget"),
            f"is {batching.token_budget}, less than max_batch = {batching.max_batch}; a step computes one token or "
            "more of each of its sequences",
            reads=(("batching", "token_budget"), ("batching", "max_batch")),
        )


def _backoff(worker: WorkerSettings) -> Iterator[Problem]:
    if worker.restart_backoff_max_s < worker.restart_backoff_s:
        yield Problem(
            ("worker", "restart_backoff_max"),
            "is shorter than restart_backoff; the longest pause cannot be shorter than the first",
            reads=(("worker", "restart_backoff_max"), ("worker", "restart_backoff")),
        )


def _session_times(sessions: Sessions) -> Iterator[Problem]:
    """Each step of a conversation on its way out must come after the one before."""
    steps = (("write_behind", sessions.write_behind_s), ("cold_after", sessions.cold_after_s), ("ttl", sessions.ttl_s))
    for (earlier, before_s), (later, after_s) in pairwise(steps):
        if after_s < before_s:
            yield Problem(
                ("sessions", later),
                f"is shorter than {earlier}; what comes after it cannot come before it",
                reads=(("sessions", later), ("sessions", earlier)),
            )


def _master_key(sessions: Sessions, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Conversations leave this machine only sealed with a key that somebody keeps."""
    file = sessions.encryption_key_file
    path = ("sessions", "encryption_key_file")
    if file and not Path(file).is_file():
        yield Problem(path, f'is "{file}", and there is no such file; {_MAKE_A_KEY}', reads=(path,))
    elif sessions.enabled and (wrong := _wrong_keys(file, environment.get(KEY_VARIABLE, ""))):
        yield Problem(path, f"{wrong}; {_MAKE_A_KEY}", reads=(path,))
    is_shared = sessions.enabled and (sessions.redis or sessions.store.startswith("s3:"))
    if is_shared and not file and not sessions.encryption_key_command and not environment.get(KEY_VARIABLE):
        where = "redis" if sessions.redis else "store"
        yield Problem(
            ("sessions", where),
            f"keeps conversations where others may read them, and there is no key to seal them with; set "
            "encryption_key_file, encryption_key_command "
            f"or the environment variable {KEY_VARIABLE}; {_MAKE_A_KEY}",
            reads=(("sessions", "redis"), ("sessions", "store"), path),
        )


def _wrong_keys(file: str, given: str) -> str | None:
    """Say what is wrong with the master keys; None when they are right, or none is given."""
    try:
        if file:
            read_keys(Path(file).read_text())
        elif given:
            read_variable(given)
    except (OSError, UnicodeDecodeError) as exc:
        return f'is "{file}", which cannot be read: {exc}'
    except ValueError as exc:
        return f'is "{file}": {exc}' if file else f"is empty, and in {KEY_VARIABLE} {exc}"
    return None


def _stretches(config: Config) -> Iterator[Problem]:
    for i, model in enumerate(config.models):
        for j, release in enumerate(model.releases):
            kind, factor = release.rope_scaling.type, release.rope_scaling.factor
            if (kind == "none") != (factor == 1):
                path = ("models", i, "releases", j, "rope_scaling")
                yield Problem(
                    (*path, "factor"),
                    f'is {factor:g} while type is "{kind}"; write "linear" or "yarn" with a factor above 1, or neither',
                    reads=((*path, "type"), (*path, "factor")),
                )


def _sources(config: Config) -> Iterator[Problem]:
    for i, model in enumerate(config.models):
        for j, release in enumerate(model.releases):
            yield from _source(release, ("models", i, "releases", j))


def _source(release: Release, path: KeyPath) -> Iterator[Problem]:
    """Tell what is neither ours nor another server's, and what is said of the one but belongs to the other."""
    reads = tuple((*path, name) for name in ("source", "url"))
    if bool(release.source) == bool(release.url):
        what = "is missing" if not release.url else "is given beside url"
        yield Problem(
            (*path, "source"),
            f"{what}; a release has either source, for weights that a worker here loads, or url, for another server",
            reads=reads,
        )
    elif release.url and release.replicas != 1:
        yield Problem((*path, "replicas"), "is for workers; write one release for each url", reads=reads)
    elif release.source and (release.api_key or release.upstream_model or release.headers):
        yield Problem(path, "has api_key, upstream_model or headers, which are for a url, and none", reads=reads)


def _same_names(config: Config) -> Iterator[Problem]:
    yield from _repeated(_model_names(config.models))
    for i, model in enumerate(config.models):
        yield from _repeated((("models", i, "releases", j, "name"), each.name) for j, each in enumerate(model.releases))
    yield from _repeated((("tenants", i, "name"), tenant.name) for i, tenant in enumerate(config.tenants))
    yield from _repeated(
        (("tenants", i, "keys", j), key) for i, tenant in enumerate(config.tenants) for j, key in enumerate(tenant.keys)
    )


def _model_names(models: Iterable[Model]) -> Iterator[tuple[KeyPath, str]]:
    for i, model in enumerate(models):
        yield ("models", i, "name"), model.name
        yield from ((("models", i, "aliases", j), alias) for j, alias in enumerate(model.aliases))


def _repeated(named: Iterable[tuple[KeyPath, str]]) -> Iterator[Problem]:
    first: dict[str, KeyPath] = {}
    for path, name in named:
        earlier = first.setdefault(name, path)
        if earlier != path:
            yield Problem(path, f"is the same as {path_text(earlier)}; give each its own", reads=(path, earlier))


def _unknown_grants(config: Config) -> Iterator[Problem]:
    names = dict(_model_names(config.models))
    known = {"*", *names.values()}
    for i, tenant in enumerate(config.tenants):
        for j, name in enumerate(tenant.models):
            if name not in known:
                path = ("tenants", i, "models", j)
                guess = nearest(name, known) or 'name one of [[models]], or "*" for all'
                yield Problem(path, f'is "{name}"; no model or alias has that name; {guess}', reads=(path, *names))
