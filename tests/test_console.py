"""What a person sees of a start, and the folder it happens in."""

from __future__ import annotations

import io
import stat
from pathlib import Path

import pytest

from gateway.console import open_console
from gateway.rundir import RunDirError, admin_token, open_run_dir
from gateway.units import Address

HERE = Address("127.0.0.1", 8000)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_a_load_is_told_in_quarters() -> None:
    """Progress is told at most once for each quarter of a load, in plain lines where there is no terminal."""
    out = io.StringIO()
    console = open_console(is_silent=False, stream=out)

    for percent in range(101):
        console.loading("m/stable/0", "weights", percent / 100)

    lines = out.getvalue().splitlines()
    assert lines[0] == "tidegate: m/stable/0: weights 0%"
    assert len(lines) == 5


def test_a_line_to_try_is_given_once() -> None:
    """However many replicas get ready, one curl line is enough."""
    out = io.StringIO()
    console = open_console(is_silent=False, stream=out)

    console.ready("m/stable/0", "m", HERE)
    console.ready("m/stable/1", "m", HERE)

    assert out.getvalue().count("curl http://127.0.0.1:8000/v1/chat/completions") == 1


def test_nothing_is_told_when_the_log_is_for_machines() -> None:
    """With log.format = "json" standard output stays empty."""
    out = io.StringIO()

    open_console(is_silent=True, stream=out).listening(HERE, HERE, None)

    assert out.getvalue() == ""


def test_a_terminal_gets_colours_and_whole_lines() -> None:
    """On a terminal the name is coloured, and what is copied from it is neither cut nor interpreted."""
    out = Terminal()

    open_console(is_silent=False, stream=out).line("[[models]] " + "x" * 300)

    assert "\x1b[" in out.getvalue()
    assert "[[models]] " + "x" * 300 in out.getvalue()


def test_a_temporary_folder_is_private_and_goes_away() -> None:
    """Without a setting the folder is a new one of this user, gone when the gateway stops."""
    with open_run_dir("", {}) as folder:
        mode = stat.S_IMODE(folder.stat().st_mode)

    assert mode == 0o700
    assert not folder.exists()


def test_the_session_s_runtime_folder_is_used(tmp_path: Path) -> None:
    """$XDG_RUNTIME_DIR/tidegate is the folder where there is one."""
    with open_run_dir("", {"XDG_RUNTIME_DIR": str(tmp_path)}) as folder:
        assert folder == tmp_path / "tidegate"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A path through a file names the setting to change."""
    (tmp_path / "file").touch()

    with pytest.raises(RunDirError, match="run_dir"), open_run_dir(str(tmp_path / "file" / "run")):
        pass


def test_a_token_is_made_anew_or_taken_from_the_file(tmp_path: Path) -> None:
    """Without a configured token each start makes its own; with one nothing is written."""
    with admin_token(tmp_path, "") as first, admin_token(tmp_path, "set") as configured:
        written = (tmp_path / "admin-token").read_text().strip()
    with admin_token(tmp_path, "") as second:
        pass

    assert (first, configured) == (written, "set")
    assert first != second
    assert list(tmp_path.iterdir()) == []
