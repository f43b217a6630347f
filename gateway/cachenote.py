"""What a client is told of how much of its prompt was not computed again, and where it parts from the last one.

Refuses to know how a cache works. Counts and positions only: nothing of a prompt is in it.
"""

from __future__ import annotations

from backends.api import Usage

HEADER = "x-tidegate-cache"


def cache_note(usage: Usage) -> str:
    """Write a call's counts: `cached` tokens were there, `restored` of them came from a tier, the rest was computed."""
    parts = [f"cached={usage.cached_tokens}"]
    if usage.restored_tokens:
        parts.append(f"restored={usage.restored_tokens} ({usage.restored_from})")
    parts.append(f"computed={usage.computed_tokens}")
    if usage.diverged is not None:
        message, character = usage.diverged
        parts.append(f"diverged=message {message}, character {character}")
    return "; ".join(parts)


def cache_headers(usage: Usage | None) -> dict[str, str]:
    """Return the header, if a prompt has been counted by now."""
    return {HEADER: cache_note(usage)} if usage is not None and usage.prompt_tokens else {}
