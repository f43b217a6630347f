"""What can be wrong with what was stored. Every one of them is a miss to the caller, counted, and never an answer."""

from __future__ import annotations


class ChunkError(Exception):
    """Bytes that are not the chunk they should be: truncated, altered, of another key, model, layout or prefix."""


class TierError(Exception):
    """A tier that did not do what it was asked: gone, full, slow, refusing."""


class VaultError(Exception):
    """A master key that is missing, malformed, or not the one a tenant's key was wrapped with."""
