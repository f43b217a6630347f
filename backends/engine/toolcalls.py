"""Tool calls as text: how each family of models writes them, and the incremental parser that reads all of them.

Refuses to know tokens, grammars and dialects.

What a call looks like is data (`Syntax`), used to prompt for it and to force it. Reading is tolerant and the same
for every model, because small models mix the forms: an opener (`<tool_call>`, any other `<word>`, a code fence, or
nothing at the start of the answer or of a line), perhaps `[`, then an object that names a known tool; or
`<function=name>` and its arguments. Whatever does not become a call of a known tool stays text, to the character.
Every decision depends on the text alone, never on where it was split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from backends.api import Tool, ToolCallDelta
from backends.engine.calljson import CallObject

Piece = str | ToolCallDelta


@dataclass(frozen=True, slots=True)
class Syntax:
    """One call is `begin + name + middle + arguments + end`; several are joined by `between`.

    `trigger` is the part of `begin` after which nothing but a call can follow; empty where there is none.
    """

    name: Literal["hermes", "llama3", "json"]
    begin: str
    middle: str
    end: str
    between: str = "\n"
    trigger: str = ""


HERMES = Syntax("hermes", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", trigger="<tool_call>")
LLAMA3 = Syntax("llama3", '{"name": "', '", "parameters": ', "}", between="; ")
JSON = Syntax("json", '{"name": "', '", "arguments": ', "}")


def syntax_of(chat_template: str) -> Syntax:
    """How the model behind `chat_template` was taught to call; Hermes when its template knows no tools."""
    if "<tool_call>" in chat_template or not renders_tools(chat_template):
        return HERMES
    if "<|python_tag|>" in chat_template or '"parameters": ' in chat_template:
        return LLAMA3
    return JSON


def renders_tools(chat_template: str) -> bool:
    """Whether the template writes tools, calls and results itself, so that `toolprompt.spelled_out` is not needed."""
    return re.search(r"\btools\b", chat_template) is not None


_WORD = r"[A-Za-z|][\w|]{0,31}"
_OBJECT = (r"\[?", r"\s*+", r"(?=\{)")
_TAGGED = ("<", _WORD, ">", r"\s*+", *_OBJECT)
_FENCED = ("`", "`", "`", r"\w{0,16}", r"\s++", *_OBJECT)
_NAMED = (*"<function=", r"(?P<name>[\w.-]{1,128})", ">", r"\s*+", r"(?=\{)")


class _Form:
    """A regular expression given atom by atom, so that it can also say whether more text may complete it."""

    def __init__(self, *atoms: str) -> None:
        prefixes = ""
        for atom in reversed([atom for atom in atoms if not atom.startswith("(?=")]):
            prefixes = f"(?:{atom.replace('?P<name>', '?:')}{prefixes})?"
        self._whole, self._prefix = re.compile("".join(atoms)), re.compile(prefixes)

    def match(self, text: str) -> re.Match[str] | None:
        return self._whole.match(text)

    def may_follow(self, text: str) -> bool:
        return self._prefix.fullmatch(text) is not None


def _openers(space: str) -> tuple[_Form, ...]:
    return tuple(_Form(space, *form) for form in (_NAMED, _TAGGED, _FENCED, _OBJECT))


_AT_START = _openers(r"\s*+")
_AFTER_CALL = _openers(r"[\s,;]*+")
_IN_LINE = (_Form(r"\s*+", *_NAMED), _Form(r"\s*+", *_TAGGED))
_AT_LINE = (_Form(r"[^\S\n]*+", r"\n", r"\s*+", *_FENCED), _Form(r"[^\S\n]*+", r"\n", r"\s*+", *_OBJECT))
_IN_TEXT = (*_IN_LINE, *_AT_LINE)
_CLOSERS = (_Form(r"\s*+", "<", r"[/|]", _WORD, ">"), _Form(r"\s*+", r"[\]}]"))
_FENCE_CLOSER = _Form(r"\s*+", "`", "`", "`")
_CANDIDATE = re.compile(r"(?<!\s)\s|<")  # a run of space is tried once, from its beginning


class ToolCallParser:
    """Splits one answer, given in any pieces, into text and calls of the `tools`.

    `new_id` makes a call's id from its index. An answer that has `called` ends with "tool_calls"; once `finished`
    (one call is there and `parallel` is off) generation may end, and what follows is dropped. Where a call is `forced`
    there is no text: what a token limit left of the next call's beginning is dropped as well.
    """

    def __init__(
        self, tools: Iterable[Tool], new_id: Callable[[int], str], *, parallel: bool = True, forced: bool = False
    ) -> None:
        self._names = frozenset(tool.name for tool in tools)
        self._new_id, self._parallel, self._forced = new_id, parallel, forced
        self._held = ""
        self._opener = ""
        self._closers: tuple[_Form, ...] = ()
        self._object: CallObject | None = None
        self._place: Literal["start", "text", "after call"] = "start"
        self._calls = 0

    @property
    def called(self) -> bool:
        """Whether the answer holds a call so far."""
        return self._calls > 0

    @property
    def is_open(self) -> bool:
        """Whether a call has begun that is not whole yet."""
        return self._object is not None and self._object.named

    @property
    def finished(self) -> bool:
        """Whether no further call is wanted."""
        return self._place == "after call" and self._object is None and not self._parallel

    def push(self, text: str) -> list[Piece]:
        """Take the next piece of the answer; what may begin a call is held back until that is clear."""
        self._held += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return _joined(pieces)

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """Take the end of the answer; close an unfinished call, unless a token limit `cut` it.

        Half a command must not look like a whole one.
        """
        pieces: list[Piece] = []
        if self._object is not None:
            self._object.close(repair=not cut)
            self._collect(self._object, pieces)
            if not self._object.named:
                self._text(self._opener + self._object.taken, pieces)
        elif not self.finished and (self._place != "after call" or self._held.strip()):
            self._text(self._held, pieces)
        self._held, self._object = "", None
        return _joined(pieces)

    def _advance(self, pieces: list[Piece]) -> bool:
        """Decide about the beginning of what is held; False when that needs more text."""
        if not self._held or self.finished:
            return False
        if self._object is not None:
            return self._read_object(self._object, pieces)
        if (closer := self._match(self._closers)) is not None:  # first, as it may begin an opener that is not here yet
            self._drop(closer)
        elif (opener := self._match(self._openers)) is not None:
            self._open(opener)
        elif any(form.may_follow(self._held) for form in (*self._openers, *self._closers)):
            return False
        else:
            self._pass_text(pieces)
        return True

    @property
    def _openers(self) -> tuple[_Form, ...]:
        return {"start": _AT_START, "text": _IN_TEXT, "after call": _AFTER_CALL}[self._place]

    def _pass_text(self, pieces: list[Piece]) -> None:
        """Pass text on up to the next place where a call may begin."""
        candidate = _CANDIDATE.search(self._held, 1)
        end = candidate.start() if candidate else len(self._held)
        text, self._held = self._held[:end], self._held[end:]
        self._text(text, pieces)

    def _drop(self, closer: re.Match[str]) -> None:
        """Leave out what closes a call's wrapper; a code fence closes once."""
        self._held = self._held[closer.end() :]
        if closer.group().endswith("`"):
            self._closers = _CLOSERS

    def _match(self, forms: Sequence[_Form]) -> re.Match[str] | None:
        return next((match for form in forms if (match := form.match(self._held))), None)

    def _open(self, opener: re.Match[str]) -> None:
        self._opener, self._held = opener.group(), self._held[opener.end() :]
        self._closers = (*_CLOSERS, _FENCE_CLOSER) if "`" in self._opener else _CLOSERS
        self._object = CallObject(self._names, name=opener.groupdict().get("name"))

    def _read_object(self, call: CallObject, pieces: list[Piece]) -> bool:
        self._held = self._held[call.feed(self._held) :]
        self._collect(call, pieces)
        if call.state == "open":
            return False
        self._object = None
        if call.state == "refused":
            self._text(self._opener + call.taken, pieces)
        return True

    def _collect(self, call: CallObject, pieces: list[Piece]) -> None:
        """Pass on what the call has learnt since it was last asked."""
        if not call.named:
            return
        if call.begins():
            self._calls += 1
            self._place = "after call"
            pieces.append(ToolCallDelta(self._calls - 1, id=self._new_id(self._calls - 1), name=call.name))
        if arguments := call.take():
            pieces.append(ToolCallDelta(self._calls - 1, arguments=arguments))

    def _text(self, text: str, pieces: list[Piece]) -> None:
        if text and not self._forced:
            self._place, self._closers = "text", ()
            pieces.append(text)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Merge neighbours that belong together, so that a push gives one delta a call."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        elif isinstance(piece, ToolCallDelta) and isinstance(last, ToolCallDelta) and piece.index == last.index:
            joined[-1] = ToolCallDelta(last.index, last.id, last.name, last.arguments + piece.arguments)
        else:
            joined.append(piece)
    return joined
