"""Stop strings over text in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from backends.stops import StopText

letters = st.text("ab", max_size=12)


def spoken(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """Push all pieces; tell what came out and whether a stop string ended it."""
    text = StopText(stops)
    return "".join([*(text.push(piece) for piece in pieces), text.flush()]), text.is_hit


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    """The beginning of a stop string comes out only when it turns out not to be one."""
    text = StopText(("END",))

    assert [text.push("the E"), text.push("N"), text.push("C")] == ["the ", "", "ENC"]


def test_a_stop_string_over_several_pieces_is_never_shown() -> None:
    """Neither the stop string nor what follows comes out, however it was split."""
    assert spoken(("END",), ["one E", "N", "D two"]) == ("one ", True)


def test_what_is_held_at_the_end_is_shown() -> None:
    """An answer that ends on the beginning of a stop string keeps it."""
    assert spoken(("END",), ["one EN"]) == ("one EN", False)


def test_without_stop_strings_nothing_is_held() -> None:
    """Every piece comes out at once."""
    assert spoken((), ["a", "b"]) == ("ab", False)


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.lists(letters, max_size=6))
def test_any_split_gives_the_same_text(stops: list[str], pieces: list[str]) -> None:
    """What is shown is the text before the stop string that is complete first, however the text was split."""
    whole = "".join(pieces)
    shown, is_hit = spoken(tuple(stops), pieces)

    ends = [(i, s) for i in range(len(whole) + 1) for s in stops if whole[:i].endswith(s)]
    first = min((i for i, _ in ends), default=None)
    expected = whole if first is None else whole[: first - max(len(s) for i, s in ends if i == first)]
    assert (shown, is_hit) == (expected, first is not None)
