"""The command line: `tidegate serve | check | plan | connect | quantize | sessions | keys hash | --version`.

Refuses to know how anything is done; a subcommand imports what it runs when it runs.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.connect import CLIENTS, UNKNOWN_WINDOW, ConnectError, Target, model_of, snippet, url_of
from gateway.sessions_arguments import add_arguments as add_sessions

if TYPE_CHECKING:
    from gateway.settings import Config, Release

_CONFIG_HELP = "the configuration file (default: gateway.toml in the current folder)"


def parser() -> argparse.ArgumentParser:
    """Build the parser of every subcommand."""
    root = argparse.ArgumentParser(
        prog="tidegate", description="A gateway for language models; everything it does is set in one file."
    )
    root.add_argument("--version", action="store_true", help="print the version and exit")
    commands = root.add_subparsers(title="subcommands", metavar="SUBCOMMAND", dest="command")
    _add_config(commands.add_parser("serve", help="start the gateway and its workers; Ctrl-C drains and stops them"))
    _add_config(commands.add_parser("check", help="say everything that is wrong with a configuration; exits 2 if so"))
    _add_config(
        commands.add_parser("plan", help="say what the workers need of this machine's memory; exits 1 if too much")
    )
    _add_quantize(commands.add_parser("quantize", help="make a model small without making it worse than asked"))
    _add_connect(commands.add_parser("connect", help="print what a client needs to talk to this gateway"))
    add_sessions(commands.add_parser("sessions", help="look at, erase and move what is kept of conversations"))
    keys = commands.add_parser("keys", help="work with API keys").add_subparsers(
        title="subcommands", metavar="SUBCOMMAND", dest="subcommand", required=True
    )
    keys.add_parser("hash", help="read an API key from standard input and print its hash for gateway.toml")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    root = parser()
    options = root.parse_args(arguments)
    if options.version:
        return _version()
    commands: dict[str, Callable[[], int]] = {
        "serve": lambda: _serve(options.config),
        "check": lambda: _check(options.config),
        "plan": lambda: _plan(options.config),
        "connect": lambda: _connect(options),
        "quantize": lambda: _quantize(options),
        "sessions": lambda: _sessions(options),
        "keys": _hash_key,
    }
    if options.command in commands:
        return commands[options.command]()
    root.print_help()
    return 2


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("config", nargs="?", default="gateway.toml", metavar="FILE", help=_CONFIG_HELP)


def _add_connect(command: argparse.ArgumentParser) -> None:
    command.description = "Print the configuration or environment that points a client at this gateway, to be pasted."
    command.add_argument("client", choices=CLIENTS, metavar="CLIENT", help=", ".join(CLIENTS))
    command.add_argument("--model", metavar="NAME", help="a model of the file, or an alias (default: its first model)")
    _add_config(command)


def _add_quantize(command: argparse.ArgumentParser) -> None:
    command.description = "Quantise a model tensor by tensor within a size and an accuracy. Run it again to go on."
    command.epilog = (
        "Exits 0: written; 2: something given is wrong; 3: no model meets both limits, the nearest are told."
    )
    add = command.add_argument
    add("source", metavar="IN", help="package:module/path, a .gguf file or a Hugging Face folder")
    add("out", metavar="OUT", type=Path, help="the folder to write; then a release's source in gateway.toml")
    add("--target-size", type=float, default=0.35, metavar="SHARE", help="most bytes, as a share of fp16 (0.35)")
    add("--min-accuracy", type=float, default=0.98, metavar="SHARE", help="least 1 / perplexity ratio (0.98)")
    add("--act", choices=("int8", "fp32"), default="fp32", help="activations that accuracy is judged with (fp32)")
    add("--calibration", type=Path, metavar="FILE", help="text like the model's traffic (Python's own reference)")
    add("--recipe", metavar="NAME", help="a preset (brief, brief-head8) or a TOML file instead of a search")
    add("--seed", type=int, default=0, metavar="N", help="equal seeds give equal models on equal machines (0)")


def _version() -> int:
    from importlib.metadata import version  # noqa: PLC0415

    _say(f"tidegate {version('tidegate')}")
    return 0


def _load(file: str) -> Config | None:
    """Read the configuration; tells what is wrong with it."""
    from gateway.config import ConfigError, load  # noqa: PLC0415

    try:
        return load(file)
    except ConfigError as exc:
        _complain(str(exc))
        return None


def _check(file: str) -> int:
    config = _load(file)
    if config is None:
        return 2
    models = ", ".join(model.name for model in config.models)
    _say(f"{file} is fine: listens on {config.server.listen}, serves {models}, {len(config.tenants)} tenants")
    return 0


def _serve(file: str) -> int:
    config = _load(file)
    if config is None:
        return 2
    import uvloop  # noqa: PLC0415

    from gateway.app import serve  # noqa: PLC0415
    from gateway.console import open_console  # noqa: PLC0415
    from gateway.rundir import RunDirError  # noqa: PLC0415

    console = open_console(is_silent=config.log.format == "json")
    console.line(f"starting with {file}")
    try:
        uvloop.run(serve(config, console))
    except (OSError, RunDirError) as exc:
        _complain(f"cannot start: {exc.strerror if isinstance(exc, OSError) and exc.strerror else exc}")
        return 1
    return 0


def _plan(file: str) -> int:
    config = _load(file)
    if config is None:
        return 2
    from backends.engine.footprint import Asked, tell  # noqa: PLC0415 - numpy has no place in a gateway
    from backends.engine.planning import settings_of  # noqa: PLC0415
    from gateway.control.pool import worker_settings  # noqa: PLC0415

    asked = [
        Asked(f"{model.name}/{release.name}", release.replicas, settings_of(worker_settings(config, model, release)))
        for model in config.models
        for release in model.releases
        if release.is_computed_here
    ]
    return 0 if tell(asked, _say) else 1


def _quantize(options: argparse.Namespace) -> int:
    from backends.engine.quantize import main as quantize  # noqa: PLC0415 - numpy has no place in a gateway

    return quantize(options)


def _connect(options: argparse.Namespace) -> int:
    config = _load(options.config)
    if config is None:
        return 2
    from backends.engine.problems import CheckpointError  # noqa: PLC0415

    try:
        name, model = model_of(config, options.model)
        target = Target(url_of(config.server.listen), name, _window(model.releases[0]))
    except (ConnectError, CheckpointError) as exc:
        _complain(str(exc))
        return 1
    _say(snippet(options.client, target).rstrip())
    return 0


def _window(release: Release) -> int:
    """Return a release's window: what is configured, or what its file says; what a server has is not known here."""
    if release.context_tokens or not release.is_computed_here:
        return release.context_tokens or UNKNOWN_WINDOW
    from backends.engine.weights import open_checkpoint  # noqa: PLC0415

    return open_checkpoint(release.source).spec.context_tokens


def _sessions(options: argparse.Namespace) -> int:
    config = _load(options.config)
    if config is None:
        return 2
    from gateway.sessions_cli import SessionsError, run  # noqa: PLC0415

    try:
        run(options, config, _say)
    except SessionsError as exc:
        _complain(str(exc))
        return 1
    return 0


def _hash_key() -> int:
    from gateway.auth import key_hash  # noqa: PLC0415

    key = (getpass.getpass("API key: ") if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not key:
        _complain("no key was given; type it, or pipe it in: printf %s KEY | tidegate keys hash")
        return 2
    _say(key_hash(key))
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"tidegate: {text}\n")
