"""The wire between gateway and worker: any split of the bytes gives the same frames."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import frames
from backends.api import (
    BackendError,
    Call,
    Delta,
    Message,
    ResponseFormat,
    Sampling,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)

LIMIT = 1 << 20
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
sent_frames = st.lists(st.tuples(st.text(), json_values), max_size=6)


def through_the_wire(value: object) -> object:
    """Encode, read and decode one value."""
    (frame,) = frames.FrameReader(LIMIT).feed(frames.encode("value", value))
    return frame[1]


@given(sent_frames, st.lists(st.integers(0, 400)))
def test_any_split_of_the_bytes_gives_the_same_frames(sent: list[tuple[str, object]], cuts: list[int]) -> None:
    """Frames do not depend on how the socket cut them."""
    stream = b"".join(frames.encode(*frame) for frame in sent)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = frames.FrameReader(LIMIT)

    received = [f for a, b in pairwise(edges) for f in reader.feed(stream[a:b])]

    assert received == [list(frame) for frame in sent]


@pytest.mark.parametrize(
    ("received", "message"),
    [
        (b"\xff\xff\xff\xff", "over the limit"),
        (b"\0\0\0\x01{", "not JSON"),
        (b"\0\0\0\x02{}", "array"),
        (b"\0\0\0\x02[]", "array"),
        (b"\0\0\0\x03[1]", "array"),
    ],
)
def test_what_is_not_a_frame_is_told_at_once(received: bytes, message: str) -> None:
    """A peer that speaks something else is not read any further, whatever length it claims."""
    with pytest.raises(frames.FrameError, match=message):
        list(frames.FrameReader(LIMIT).feed(received))


@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    tokens=st.lists(st.integers(0, 2**31 - 1)).map(tuple),
    temperature=st.floats(0, 2),
    seed=st.none() | st.integers(0, 2**63 - 1),
)
def test_a_call_arrives_as_it_was_sent(
    text: str, tokens: tuple[int, ...], temperature: float, seed: int | None
) -> None:
    """Every field but the body comes through."""
    shape = ResponseFormat("json_schema", {"type": "object"})
    sampling = Sampling(temperature=temperature, seed=seed, logit_bias=((1, 2.5),))
    turn = Message("assistant", text, tool_calls=(ToolCall("i", "f", "{}"),))
    call = Call("id", "model", (turn,), (text, tokens), sampling, 7, stop=(text,), tools=(Tool("f"),), body={"x": 1})
    call = replace(call, response_format=shape, logprobs=2)

    assert frames.unpack_call(through_the_wire(frames.pack_call(call))) == call


def test_a_delta_and_its_extras_arrive_as_they_were_sent() -> None:
    """Text, finish, logprobs, tool calls, usage and thoughts come through."""
    logprob = TokenLogprob("é", (195, 169), -0.5, (("e", (101,), -1.5),))
    delta = Delta(1, "é", 2, "stop", (logprob,), (ToolCallDelta(0, "i", "f", "{"),), Usage(3, 4, 1), "é", "hm", "s")

    entry = through_the_wire(frames.pack_delta("id", delta))

    assert isinstance(entry, list)
    assert entry[0] == "id"
    assert frames.unpack_delta(entry) == delta


def test_an_error_arrives_as_it_was_sent() -> None:
    """Kind, message, code, field and the time to wait come through."""
    error = BackendError("overloaded", "full", retryable=True, code="c", param="p", retry_after_s=1.5)

    received = frames.unpack_error(through_the_wire(frames.pack_error(error)))

    assert vars(received) == vars(error)


@pytest.mark.parametrize("wire", [{}, {"id": "x", "model": "m", "surprise": 1}, {"messages": 3, "prompts": []}])
def test_a_call_of_another_form_is_a_frame_error(wire: dict[str, object]) -> None:
    """What a version does not know is not guessed."""
    with pytest.raises(frames.FrameError, match="call"):
        frames.unpack_call(wire)


def test_a_delta_or_error_of_another_form_is_a_frame_error() -> None:
    """The same holds for what comes back."""
    with pytest.raises(frames.FrameError, match="delta"):
        frames.unpack_delta(["id", 0])
    with pytest.raises(frames.FrameError, match="error"):
        frames.unpack_error({"surprise": 1})
