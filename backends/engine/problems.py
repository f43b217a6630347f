"""What can be wrong with a checkpoint. Refuses to know why anybody opened it."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says which file, what is wrong and what to do."""


class TemplateError(Exception):
    """A chat template that is broken or refuses a conversation; the message says at which of its lines."""
