"""Work spread over the cores, one item on each: torch's own threads wait for each other in every product.

On a machine that has other things to do, too, that waiting makes two threads several times slower than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Progress = Callable[[float], None]
"""Told the share that is done."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel(work: Callable[[Item], Result], items: Sequence[Item], progress: Progress) -> dict[Item, Result]:
    """Map over items; the results are in their order. Gradients are off in `work` unless it turns them on."""
    found: dict[Item, Result] = {}
    with _one_thread() as cores, ThreadPoolExecutor(cores) as pool:
        for item, result in zip(items, pool.map(torch.no_grad()(work), items), strict=True):
            found[item] = result
            progress(len(found) / len(items))
    return found


@contextmanager
def _one_thread() -> Iterator[int]:
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)
