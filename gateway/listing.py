"""The models that a tenant may call, in one shape that OpenAI's, vLLM's and Anthropic's clients accept.

Pure. Refuses to know where models run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def entry(name: str, *, root: str, created: int, context_tokens: int) -> dict[str, object]:
    """Tell of one model by one of its names; `root` is what it is really called."""
    window = context_tokens or None  # not known before the first worker is ready
    openai = {"id": name, "object": "model", "created": created, "owned_by": "tidegate"}
    vllm = {"root": root, "max_model_len": window}
    anthropic = {
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": window,
        "max_tokens": window,
    }
    return openai | vllm | anthropic


def listing(entries: Sequence[dict[str, object]]) -> dict[str, object]:
    """Tell of all models, on one page."""
    ends = {"first_id": entries[0]["id"], "last_id": entries[-1]["id"]} if entries else {}
    return {"object": "list", "data": entries, "has_more": False, "first_id": None, "last_id": None, **ends}
