"""What clients, metrics and the log are told of a prompt's cache."""

from __future__ import annotations

import pytest

from backends.api import Delta, Usage
from gateway.cachenote import HEADER, cache_headers, cache_note
from tests.paths import Bench, Scripted, chat

USAGE = Usage(8692, 1, 8432, 4096, "redis", (3, 120))
NOTE = "cached=8432; restored=4096 (redis); computed=260; diverged=message 3, character 120"


def test_the_note_tells_counts_tier_and_where_the_prompt_parts() -> None:
    """All four in one line; what was not restored or did not part is left out."""
    assert cache_note(USAGE) == NOTE
    assert cache_note(Usage(10, 0, 4)) == "cached=4; computed=6"


def test_a_prompt_that_was_not_counted_has_no_note() -> None:
    """Servers that do not tell counts get no invented ones."""
    assert cache_headers(None) == cache_headers(Usage(0, 3)) == {}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answer_s_head_carries_the_note(*, stream: bool) -> None:
    """Whole answers and streams alike: the counts come before the first text."""
    lines = (Delta(usage=USAGE), Delta(text="hi", tokens=1, finish="stop", usage=USAGE))
    bench = Bench(Scripted(*lines))

    paper = await bench.ask(chat(stream=stream))

    assert paper.answer_headers[HEADER] == NOTE


async def test_restored_tokens_are_counted_by_tier_and_logged() -> None:
    """The line of a call says what was restored from where; the series adds it up."""
    bench = Bench(Scripted(Delta(text="hi", tokens=1, finish="stop", usage=USAGE)))

    await bench.ask(chat())

    told = {name: bench.log[-1][name] for name in ("cached_tokens", "restored_tokens", "restored_from", "diverged")}
    assert told == {"cached_tokens": 8432, "restored_tokens": 4096, "restored_from": "redis", "diverged": [3, 120]}
    assert bench.count("tidegate_restored_tokens_total", model="m", tenant="anonymous", tier="redis") == 4096
