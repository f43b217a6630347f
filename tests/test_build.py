"""The CPU library that is loaded is that of the sources beside it, and of the flags that were asked for."""

from __future__ import annotations

import pytest

from backends.kernels.build import compiler_missing, library_path
from backends.kernels.cpu import native_missing


@pytest.mark.skipif(compiler_missing() is not None, reason=str(compiler_missing()))
def test_where_there_is_a_compiler_the_library_is_there() -> None:
    """A library of older sources would skip every test of the native engine without a word; this one fails instead."""
    assert native_missing() is None


def test_other_flags_make_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sanitized library never takes the place of the one that serves."""
    plain = library_path()

    monkeypatch.setenv("TIDEGATE_KERNEL_FLAGS", "-fsanitize=address")

    assert library_path() != plain
    assert library_path().parent == plain.parent
