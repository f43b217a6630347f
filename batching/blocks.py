"""Paged-KV accounting: who holds which block, and which full blocks already hold a known prefix.

A full block is known by a key that chains over all tokens up to its end from a root on, which says whose they are; so
equal keys mean equal KV of the same owner. A block nobody holds keeps its content and its key until the room is needed;
the one unused for longest is then taken first, and a sequence lets go of its last block first, so prefixes are eaten
from their ends. Guarded blocks, whose content exists nowhere else, are taken after all others. A block that is shared
or known is never written: whoever must write into it copies it before (`is_writable`).

Refuses to know tensors, sequences and time.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import takewhile

ROOT_KEY = b""


def root_key(owner: str) -> bytes:
    """Name what comes before the first token of an owner's sequences: nobody else ever finds their blocks."""
    return blake2b(owner.encode(errors="surrogatepass"), person=b"tidegate.owner", digest_size=16).digest()


def chain_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """Name the content of a full block by its tokens and everything before them."""
    return blake2b(array("i", tokens).tobytes(), key=parent, digest_size=16).digest()


def chain_of(root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """Name all full blocks of some tokens."""
    chain: list[bytes] = []
    extend_chain(chain, root, tokens, block_tokens)
    return chain


def extend_chain(chain: list[bytes], root: bytes, tokens: Sequence[int], block_tokens: int) -> None:
    """Name the full blocks of some tokens of which the first have their names already."""
    for start in range(len(chain) * block_tokens, len(tokens) - block_tokens + 1, block_tokens):
        chain.append(chain_key(chain[-1] if chain else root, tokens[start : start + block_tokens]))


class Blocks:
    """The blocks of one KV cache. `used + free == total` after every method."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total, self.block_tokens = total, block_tokens
        self._holders = [0] * total
        self._keys: list[bytes | None] = [None] * total
        self._known: dict[bytes, int] = {}
        self._blank = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()  # as _idle, but guarded
        self._guarded = [False] * total

    @property
    def free(self) -> int:
        """Blocks that nobody holds, known or blank."""
        return len(self._blank) + len(self._idle) + len(self._kept)

    @property
    def spare(self) -> int:
        """Blocks that can be taken without losing a guarded one."""
        return len(self._blank) + len(self._idle)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.total - self.free

    @property
    def known(self) -> int:
        """Blocks that can be found by their content."""
        return len(self._known)

    def count_for(self, tokens: int) -> int:
        """How many blocks hold that many tokens."""
        return -(-tokens // self.block_tokens)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Look up the longest known prefix of a chain of full blocks. Holds nothing."""
        known = self._known
        return [known[key] for key in takewhile(known.__contains__, keys)]

    def left_of(self, keys: Iterable[bytes]) -> list[int]:
        """Look up which blocks of a chain are left, holes or not. Holds nothing."""
        return [block for key in keys if (block := self._known.get(key)) is not None]

    def idle_among(self, ids: Iterable[int]) -> int:
        """How many of these blocks nobody holds: holding them takes that many from `free`."""
        return sum(not self._holders[block] for block in ids)

    def spare_among(self, ids: Iterable[int]) -> int:
        """How many of these blocks nobody holds nor guards: holding them takes that many from `spare`."""
        return sum(not self._holders[block] and not self._guarded[block] for block in ids)

    def hold(self, ids: Iterable[int]) -> None:
        """Share blocks that `find` returned."""
        for block in ids:
            if not self._holders[block]:
                del self._shelf(block)[block]
            self._holders[block] += 1

    def take(self) -> int:
        """Hold one block of unspecified content; only while `free` is above zero."""
        block = self._blank.pop() if self._blank else self._evict()
        self._holders[block] = 1
        return block

    def is_writable(self, block: int) -> bool:
        """Whether its one holder may write into it: nobody else reads it or could come to."""
        return self._holders[block] == 1 and self._keys[block] is None

    def publish(self, block: int, key: bytes) -> None:
        """Let a full, computed block be found; a block with an equal content that came first keeps its name."""
        if key not in self._known and self._keys[block] is None:
            self._known[key] = block
            self._keys[block] = key

    def guard(self, ids: Sequence[int], *, is_guarded: bool) -> None:
        """Let known blocks of a sequence be taken after all others, or no longer so; it ends with a block's name."""
        for block in reversed(ids):
            if self._keys[block] is not None and self._guarded[block] != is_guarded:
                is_idle = self._shelf(block).pop(block, block) is None
                self._guarded[block] = is_guarded
                if is_idle:
                    self._shelf(block)[block] = None

    def release(self, ids: Sequence[int]) -> None:
        """Let go of a sequence's blocks, its last first."""
        for block in reversed(ids):
            self._holders[block] -= 1
            if not self._holders[block]:
                self._shelve(block)

    def forget(self, ids: Iterable[int]) -> None:
        """Make blocks unfindable because their content cannot be trusted; holders keep holding."""
        for block in ids:
            is_idle = self._shelf(block).pop(block, block) is None
            self._unname(block)
            if is_idle:
                self._blank.append(block)

    def forget_all(self) -> None:
        """Make every block unfindable."""
        self.forget(range(self.total))

    def _evict(self) -> int:
        block, _ = (self._idle or self._kept).popitem(last=False)
        self._unname(block)
        return block

    def _unname(self, block: int) -> None:
        if (key := self._keys[block]) is not None:
            del self._known[key]
            self._keys[block] = None
            self._guarded[block] = False

    def _shelf(self, block: int) -> OrderedDict[int, None]:
        return self._kept if self._guarded[block] else self._idle

    def _shelve(self, block: int) -> None:
        if self._keys[block] is None:
            self._blank.append(block)
        else:
            self._shelf(block)[block] = None
