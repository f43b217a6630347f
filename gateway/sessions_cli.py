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
from gateway.connect import find
from gateway.control.store import profiles_dir
from gateway.rundir import TOKEN_FILE, known_run_dir

ASK_TIMEOUT_S = 90.0


class SessionsError(Exception):
    """What was asked could not be done; the message says why and what to do."""


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
        called = self._address.from_here
        connection = HTTPConnection(called.host, called.port, timeout=ASK_TIMEOUT_S)
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

    folder = options.profiles or profiles_dir(config.sessions)
    order = Order(folder, options.text, options.windows, config.sessions.min_agreement)
    model = _model(config, options.model)
    try:
        for release in model.releases:
            if release.is_computed_here:
                calibrated(settings_of(worker_settings(config, model, release)), order)
    except CheckpointError as exc:
        raise SessionsError(str(exc)) from exc


def _model(config: Config, name: str) -> Model:
    """Find a model by its name or alias, or take a source for one."""
    if "/" in name:
        return Model(name=name, releases=(Release(source=name),))
    found = find(config, name)
    if found is None or not any(each.is_computed_here for each in found.releases):
        raise SessionsError(f"{name} is no model of the configuration that a worker here computes, and no source")
    return found
