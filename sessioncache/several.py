"""The same question about many things, so many at once and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
AT_ONCE = 16


async def each_of(act: Callable[[Item], Awaitable[Result]], items: Iterable[Item]) -> list[Result]:
    """Act on each thing; return what came of it in order. All are tried, then the first failure is raised."""
    free = asyncio.Semaphore(AT_ONCE)

    async def acted(item: Item) -> Result:
        async with free:
            return await act(item)

    done = await asyncio.gather(*map(acted, items), return_exceptions=True)
    for each in done:
        if isinstance(each, BaseException):
            raise each
    return [each for each in done if not isinstance(each, BaseException)]
