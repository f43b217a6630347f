"""Names of chunks: equal only for equal prefixes of one scope."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessioncache.identity import CHUNK_TOKENS, Scope, names, session_name, token_bytes

OURS = Scope(b"a" * 32, model="weights-1", codec="exact/1")
COMMON = replace(OURS, secret=b"c" * 32)
PROMPT = list(range(1000))


@given(st.lists(st.integers(0, 49151), max_size=700), st.integers(0, 700))
def test_prompts_share_the_names_of_the_whole_chunks_they_share(tokens: list[int], cut: int) -> None:
    """And no name beyond the first token that differs."""
    other = [*tokens[:cut], 60000, *tokens[cut:]]

    shared = [a for a, b in zip(names(tokens, OURS), names(other, OURS), strict=False) if a == b]

    assert len(shared) == min(cut, len(tokens)) // CHUNK_TOKENS


@pytest.mark.parametrize("change", [{"secret": b"b" * 32}, {"model": "weights-2"}, {"codec": "exact/2"}])
def test_another_tenant_model_or_codec_shares_no_name(change: dict[str, str]) -> None:
    """Whatever makes KV differ, or must not be seen by others, makes all names differ."""
    ours, theirs = names(PROMPT, OURS), names(PROMPT, replace(OURS, **change))

    assert len(ours) == len(theirs) == 3
    assert set(ours) & set(theirs) == set()


def test_the_parts_of_a_scope_cannot_be_shifted_into_each_other() -> None:
    """A model "ab" with codec "c" is not a model "a" with codec "bc"."""
    assert Scope(b"s", "ab", "c").root != Scope(b"s", "a", "bc").root


def test_tenants_share_what_is_declared_common_and_nothing_behind_it() -> None:
    """The whole chunks of a common system prompt have one name; the first chunk with a tenant's own tokens has not."""
    theirs = replace(OURS, secret=b"b" * 32)

    mine = names(PROMPT, OURS, common=COMMON, common_tokens=600)
    other = names(PROMPT, theirs, common=COMMON, common_tokens=600)

    assert mine[:2] == other[:2] == names(PROMPT, COMMON)[:2]
    assert mine[2] != other[2]


def test_a_common_prompt_shorter_than_a_chunk_is_not_shared() -> None:
    """Its chunk holds the tenant's own tokens too."""
    assert names(PROMPT, OURS, common=COMMON, common_tokens=255) == names(PROMPT, OURS)


def test_a_session_is_named_without_its_clients_words() -> None:
    """The same words of two tenants are two sessions, and the words cannot be read back."""
    ours, theirs = session_name(b"a" * 32, "alice@example.org"), session_name(b"b" * 32, "alice@example.org")

    assert ours != theirs
    assert "alice" not in ours


@pytest.mark.parametrize("token", [-1, 1 << 32])
def test_what_is_no_token_id_has_no_bytes(token: int) -> None:
    """Instead of being cut to 32 bits and found as another."""
    with pytest.raises(OverflowError):
        token_bytes([token])
