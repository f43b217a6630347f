"""`tidegate sessions …`: asks the running gateway's admin port, and prints what it tells.

Refuses to know the store: only the gateway speaks to it. `calibrate` needs no gateway.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gateway.config import Config, Model, Release
from gateway.control.store import state_dir
from gateway.rundir import TOKEN_FILE, known_run_dir

ASK_TIMEOUT_S = 90.0


class SessionsError(Exception):
    """What was asked could not be done; the message says why and what to do."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what can be done with sessions."""
    command.description = "Look at, erase and move what is kept of conversations, through the running gateway."
    verbs = command.add_subparsers(title="subcommands", metavar="SUBCOMMAND", dest="subcommand", required=True)
    listing = verbs.add_parser("list", help="list sessions, those used last first")
    listing.add_argument("--tenant", metavar="NAME", help="only this tenant's")
    for name, says in (("show", "show what a session is made of, where it lies, and what its last turns cost"),):
        verbs.add_parser(name, help=says).add_argument("name", metavar="ID")
    erase = verbs.add_parser("erase", help="erase a session, or all of a tenant, from every tier, for good")
    whose = erase.add_mutually_exclusive_group(required=True)
    whose.add_argument("name", metavar="ID", nargs="?")
    whose.add_argument("--tenant", metavar="NAME", help="everything of this tenant")
    export = verbs.add_parser("export", help="write a session to a file, sealed with its store's master key")
    export.add_argument("name", metavar="ID")
    export.add_argument("file", metavar="OUT", type=Path)
    verbs.add_parser("import", help="take a session's file in").add_argument("file", metavar="IN", type=Path)
    verbs.add_parser("gc", help="delete now what is too old and what belongs to no session")
    calibrate = verbs.add_parser("calibrate", help="make a model's codec profiles and measure what each costs")
    _add_calibrate(calibrate)
    for verb in verbs.choices.values():
        verb.add_argument("--config", default="gateway.toml", metavar="FILE", help="the configuration (gateway.toml)")


def _add_calibrate(command: argparse.ArgumentParser) -> None:
    command.description = "Make the profiles safe, balanced and dense for each release of a model: a minute or more."
    add = command.add_argument
    add("model", metavar="MODEL", help="a model of the configuration, an alias, or a source as there")
    add("--profiles", type=Path, metavar="FOLDER", help="where to write them (profiles under [sessions], or state_dir)")
    add("--text", type=Path, metavar="FILE", help="text like the model's traffic (Python's own reference)")
    add("--windows", type=int, default=8, metavar="N", help="windows of 1,024 tokens to measure on (8)")


def run(options: argparse.Namespace, config: Config, say: Callable[[str], None]) -> None:
    """Do what was asked; SessionsError when it cannot be."""
    if options.subcommand == "calibrate":
        _calibrate(config, options)
        return
    admin = Admin(config)
    match options.subcommand:
        case "list":
            _list(admin.ask("GET", _of(options.tenant)), say)
        case "show":
            say(json.dumps(admin.ask("GET", f"/{quote(options.name, safe='')}"), indent=2))
        case "erase" if options.tenant is not None:
            say(f"erased {admin.ask('DELETE', _of(options.tenant))['deleted']} stored things of {options.tenant}")
        case "erase":
            told = admin.ask("DELETE", f"/{quote(options.name, safe='')}")
            say(f"erased {told['erased']} and {told['chunks']} chunks that no other session has")
        case "export":
            options.file.write_bytes(admin.fetch("GET", f"/{quote(options.name, safe='')}/export"))
        case "import":
            say(f"imported {admin.ask('POST', '', _read(options.file))['imported']}")
        case "gc":
            say(", ".join(f"{what}: {count}" for what, count in admin.ask("POST", "/gc").items()))


class Admin:
    """The admin port of the gateway that runs with a configuration."""

    def __init__(self, config: Config) -> None:
        self._address, self._token = config.server.admin_listen, _token(config)

    def ask(self, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        """Ask and read the answer."""
        return dict(json.loads(self.fetch(method, path, body)))

    def fetch(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Ask and return the answer's bytes."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._address.host, self._address.host)  # noqa: S104 (bound)
        connection = HTTPConnection(host, self._address.port, timeout=ASK_TIMEOUT_S)
        try:
            connection.request(method, f"/admin/sessions{path}", body, {"authorization": f"Bearer {self._token}"})
            answer = connection.getresponse()
            told = answer.read()
        except (OSError, HTTPException) as exc:
            raise SessionsError(
                f"no gateway answers at {self._address}, its admin_listen ({exc}); start it with `tidegate serve`"
            ) from exc
        finally:
            connection.close()
        if answer.status != 200:
            raise SessionsError(_message(told) or f"the gateway answered {answer.status}")
        return told


def _of(tenant: str | None) -> str:
    return f"?tenant={quote(tenant, safe='')}" if tenant is not None else ""


def _message(told: bytes) -> str:
    try:
        return str(json.loads(told)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _token(config: Config) -> str:
    if config.server.admin_token:
        return config.server.admin_token
    folder = known_run_dir(config.server.run_dir)
    if folder is None:
        raise SessionsError("the gateway's admin token cannot be found; set run_dir or admin_token under [server]")
    try:
        return (folder / TOKEN_FILE).read_text().strip()
    except OSError as exc:
        raise SessionsError(
            f"{folder / TOKEN_FILE} cannot be read ({exc.strerror}): no gateway runs with this configuration; "
            "start it with `tidegate serve`"
        ) from exc


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise SessionsError(f"{file} cannot be read: {exc.strerror}") from exc


def _list(told: dict[str, Any], say: Callable[[str], None]) -> None:
    say(f"{'session':32}  {'tenant':16} {'tokens':>8} {'stored':>8}  last used")
    for each in told["sessions"]:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each["used_s"]))
        say(f"{each['session']:32}  {each['tenant']:16} {each['tokens']:>8} {each['stored_tokens']:>8}  {used}")


def _calibrate(config: Config, options: argparse.Namespace) -> None:
    from backends.engine.kvreport import Order, calibrated  # noqa: PLC0415 - numpy has no place in a gateway
    from backends.engine.planning import settings_of  # noqa: PLC0415
    from backends.engine.problems import CheckpointError  # noqa: PLC0415
    from gateway.control.pool import worker_settings  # noqa: PLC0415

    folder = options.profiles or Path(config.sessions.profiles or state_dir(config.sessions) / "profiles")
    order = Order(folder, options.text, options.windows, config.sessions.min_agreement)
    model = _model(config, options.model)
    try:
        for release in model.releases:
            if release.source not in {"", "echo"}:
                calibrated(settings_of(worker_settings(config, model, release)), order)
    except CheckpointError as exc:
        raise SessionsError(str(exc)) from exc


def _model(config: Config, name: str) -> Model:
    """Find a model by its name or alias, or take a source for one."""
    if "/" in name:
        return Model(name=name, releases=(Release(source=name),))
    found = next((each for each in config.models if name in {each.name, *each.aliases}), None)
    if found is None or all(each.source in {"", "echo"} for each in found.releases):
        raise SessionsError(f"{name} is no model of the configuration that a worker here computes, and no source")
    return found
