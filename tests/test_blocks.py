"""Paged-KV accounting: nothing leaks, and only equal content is shared."""

from hypothesis import given
from hypothesis import strategies as st

from batching.blocks import ROOT_KEY, Blocks, chain_key

SIZE = 4


def chain(tokens: list[int]) -> list[bytes]:
    """Name the full blocks of some tokens."""
    keys: list[bytes] = []
    for start in range(0, len(tokens) - SIZE + 1, SIZE):
        keys.append(chain_key(keys[-1] if keys else ROOT_KEY, tokens[start : start + SIZE]))
    return keys


def fill(blocks: Blocks, tokens: list[int]) -> list[int]:
    """Take and publish blocks for some tokens, as a computed prompt would."""
    keys = chain(tokens)
    ids = [blocks.take() for _ in keys]
    for block, key in zip(ids, keys, strict=True):
        blocks.publish(block, key)
    return ids


def test_a_released_prefix_is_found_again() -> None:
    """Blocks that nobody holds keep their content until the room is needed."""
    blocks = Blocks(4, SIZE)
    ids = fill(blocks, [1, 2, 3, 4, 5, 6, 7, 8])

    blocks.release(ids)

    assert blocks.find(chain([1, 2, 3, 4, 5, 6, 7, 8, 9])) == ids
    assert blocks.free == 4


def test_equal_tokens_after_different_ones_are_different_content() -> None:
    """A key names everything before the block too."""
    blocks = Blocks(4, SIZE)
    fill(blocks, [1, 2, 3, 4, 5, 6, 7, 8])

    assert blocks.find(chain([9, 2, 3, 4, 5, 6, 7, 8])) == []
    assert chain([1, 2, 3, 4, 5, 6, 7, 8])[1] != chain([5, 6, 7, 8])[0]


def test_prefixes_are_eaten_from_their_ends_the_oldest_first() -> None:
    """Room is made by the block unused for longest, the last of its sequence first."""
    blocks = Blocks(4, SIZE)
    old, new = fill(blocks, [1] * 8), fill(blocks, [2] * 8)
    blocks.release(old)
    blocks.release(new)

    blocks.take()

    assert blocks.find(chain([1] * 8)) == old[:1]
    assert blocks.find(chain([2] * 8)) == new


def test_a_shared_or_known_block_is_not_writable() -> None:
    """Whoever writes must be the only holder of a block that nobody can find."""
    blocks = Blocks(2, SIZE)
    private, (known,) = blocks.take(), fill(blocks, [1] * 4)

    assert blocks.is_writable(private)
    assert not blocks.is_writable(known)


def test_a_forgotten_block_is_not_found() -> None:
    """Content that cannot be trusted is never shared again, held or not."""
    blocks = Blocks(4, SIZE)
    held, idle = fill(blocks, [1] * 4), fill(blocks, [2] * 4)
    blocks.release(idle)

    blocks.forget_all()

    assert blocks.find(chain([1] * 4)) == blocks.find(chain([2] * 4)) == []
    assert (blocks.used, blocks.free, blocks.known) == (1, 3, 0)
    assert held


@given(st.integers(1, 12), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 7)), max_size=60))
def test_used_and_free_always_add_up(total: int, moves: list[tuple[int, int]]) -> None:
    """Whatever is taken, shared, released and forgotten, each block is either used or free."""
    blocks, held = Blocks(total, SIZE), list[list[int]]()

    for move, number in moves:
        tokens = [number % 3] * 4 + [number] * 4
        if move == 0 and blocks.free >= 2 and len(blocks.find(chain(tokens))) == 0:
            held.append(fill(blocks, tokens))
        elif move == 1:
            held.append(blocks.find(chain(tokens)))
            blocks.hold(held[-1])
        elif move == 2 and held:
            blocks.release(held.pop(number % len(held)))
        elif move == 3:
            blocks.forget([number % total])

        assert blocks.used + blocks.free == total
        assert blocks.used == len({block for ids in held for block in ids})
    for ids in held:
        blocks.release(ids)
    assert blocks.free == total
