"""Sessions end to end: the real worker and the real store, killed and started again; answers stay the same."""

from __future__ import annotations

from pathlib import Path

from backends.api import Message
from tests.keeping import keeping, story
from tests.stores import store_running

FIRST = (Message("system", story(30)), Message("user", "Which ship came first?"))


async def test_a_conversation_goes_on_after_its_worker_was_killed(tmp_path: Path) -> None:
    """The next worker restores what the first one computed, and answers with the same tokens."""
    with store_running(tmp_path) as store:
        async with keeping(store.socket, tmp_path) as worker:
            first = await worker.ask(FIRST, session="s")
            second = (*FIRST, Message("assistant", first.text), Message("user", "And then?"))
            computed = await worker.ask(second, tenant="somebody-else")
            await worker.counted("saves", 2)
            await worker.killed()
        async with keeping(store.socket, tmp_path) as worker:
            restored = await worker.ask(second, session="s")
            counts = await worker.counted("restores")

    assert (restored.text, restored.usage.prompt_tokens) == (computed.text, computed.usage.prompt_tokens)
    assert computed.usage.cached_tokens == 0
    assert restored.usage.restored_tokens >= 512
    assert (restored.usage.cached_tokens, restored.usage.restored_from) == (restored.usage.restored_tokens, "memory")
    assert counts.restored_tokens == restored.usage.restored_tokens
