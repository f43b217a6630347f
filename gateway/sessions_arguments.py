"""The arguments of `tidegate sessions …`, apart from what runs them: every command reads these as it starts."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add what can be done with sessions."""
    command.description = "Look at, erase and move what is kept of conversations, through the running gateway."
    verbs = command.add_subparsers(title="subcommands", metavar="SUBCOMMAND", dest="subcommand", required=True)
    listing = verbs.add_parser("list", help="list sessions, those used last first")
    listing.add_argument("--tenant", metavar="NAME", help="only this tenant's")
    show = verbs.add_parser("show", help="show what a session is made of, where it lies, and what its last turns cost")
    show.add_argument("name", metavar="ID")
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
