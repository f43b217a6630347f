"""What a backend is asked and what it answers: the types both halves of Tidegate agree on.

Refuses to know HTTP, sockets, dialects and tensors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Role = Literal["system", "developer", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "tool_calls", "content_filter"]
ErrorKind = Literal["unreachable", "overloaded", "rejected", "broken"]
FormatKind = Literal["text", "json_object", "json_schema", "regex", "choice", "lark"]
OWN_SIGNATURE = "tidegate-"  # begins the signature of thoughts that no external server has signed


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One finished call of a tool inside an assistant message; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, its content parts already joined to text."""

    role: Role
    text: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; the other defaults switch a rule off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is the JSON schema of its arguments, enforced when `strict`."""

    name: str
    description: str = ""
    parameters: Mapping[str, object] = field(default_factory=dict, hash=False)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether the model may, must not or must call a tool; "required" with a `name` forces that one."""

    mode: Literal["auto", "none", "required"] = "auto"
    name: str | None = None


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The shape an answer must have: a JSON `schema`, a `pattern` (regex or lark), or one of `choices`.

    `strict` refuses a schema with keywords that cannot be enforced; otherwise those keywords are ignored.
    """

    kind: FormatKind = "text"
    schema: Mapping[str, object] = field(default_factory=dict, hash=False)
    pattern: str = ""
    choices: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed request. Exactly one of `messages` (chat) and `prompts` (completion) is given.

    A call is answered by `len(prompts or [messages]) * choices` sequences; sequence `p * choices + i` is the
    i-th choice for the p-th prompt, and a seeded one draws from `seed + i`.
    To embed a call is to embed its prompts, as vectors of `dimensions` if it says how many.
    `session` names the conversation it belongs to, within the tenant; None where only the prompt's beginning tells.
    `thinking` asks a model that can to think before it answers, or not to; None leaves it to the model.
    `traceparent` (W3C) and `body`, the request as it was sent, are for external servers and never cross the local wire.
    `dialect` is the API in which it was sent.
    """

    id: str
    model: str
    messages: tuple[Message, ...] = ()
    prompts: tuple[str | tuple[int, ...], ...] = ()
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    choices: int = 1
    logprobs: int | None = None
    stream: bool = False
    include_usage: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = ResponseFormat()
    dimensions: int | None = None
    thinking: bool | None = None
    tenant: str = "anonymous"
    session: str | None = None
    traceparent: str | None = None
    dialect: Literal["", "chat", "completions", "responses", "messages", "embeddings"] = ""
    body: Mapping[str, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sequences(self) -> int:
        """How many answers, each with its own index, this call asks for."""
        return max(1, len(self.prompts)) * self.choices


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text, its bytes and ln p, with the most likely alternatives as (text, bytes, ln p)."""

    text: str
    utf8: tuple[int, ...]
    logprob: float
    top: tuple[tuple[str, tuple[int, ...], float], ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a tool call: `id` and `name` come with its first piece, `arguments` are appended.

    All pieces of one tool call come before the first piece of the next.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """Exact token counts of a whole call (all its sequences); `cached_tokens` of the prompt were not computed.

    `restored_tokens` of the cached ones came from the tier `restored_from`, the coldest that was needed.
    `diverged` says where the prompt parts from the session's last one: index of the message, character of its text.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    restored_tokens: int = 0
    restored_from: str = ""
    diverged: tuple[int, int] | None = None

    @property
    def computed_tokens(self) -> int:
        """Tokens of the prompt that were computed."""
        return self.prompt_tokens - self.cached_tokens


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer: `tokens` new tokens of sequence `index`, as text that ends on a whole character.

    The last delta of a sequence carries `finish`, with the `stop` string that ended it if one did; the last delta
    of a call carries `usage`, unless an external server does not tell it.
    A first delta without text may carry `usage` with the exact prompt counts.
    `reasoning` is what the model thought, told before the delta's text and no part of the answer; `signature` ends it
    where an external server wants to have both back.
    """

    index: int = 0
    text: str = ""
    tokens: int = 0
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallDelta, ...] = ()
    usage: Usage | None = None
    stop: str | None = None
    reasoning: str = ""
    signature: str = ""

    @property
    def says_something(self) -> bool:
        """Whether a client can see it: text, thoughts, a logprob, a tool call or an end; counts alone are not."""
        return bool(self.text or self.reasoning or self.finish or self.logprobs or self.tool_calls or self.signature)


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector for each prompt of a call, as little-endian float32 bytes, and the exact count of their tokens."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """What a worker has done about sessions since its start; `waiting_saves` is what stands in line now.

    Of `recheck_tokens` restored tokens, `recheck_disagreements` a computed one would differ in what follows.
    `dropped_saves` are transcripts that the line had no room for, or whose blocks were gone when their turn came.
    """

    restores: int = 0
    restored_tokens: int = 0
    restored_bytes: int = 0
    restore_s: float = 0.0
    restore_failures: int = 0
    recomputed_instead: int = 0
    saves: int = 0
    saved_tokens: int = 0
    saved_bytes: int = 0
    save_s: float = 0.0
    save_failures: int = 0
    waiting_saves: int = 0
    dropped_saves: int = 0
    rechecks: int = 0
    recheck_tokens: int = 0
    recheck_disagreements: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """What a replica can take: counts of calls, KV blocks, and the model window in tokens; tokens guessed since start.

    A replica that is not ready is starting, unless it `is_down`: then nobody waits for it.
    `sessions` is None where they are off.
    """

    ready: bool
    running: int = 0
    waiting: int = 0
    slots: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    context_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    is_down: bool = False
    sessions: SessionCounts | None = None


class BackendError(Exception):
    """The only failure of a backend; the router may retry it elsewhere when `retryable`.

    * unreachable: no connection, or the worker is starting again; nothing was computed.
    * overloaded: it refuses for now; `retry_after_s` says for how long when it knows.
    * rejected: the call itself is wrong (`code` and `param` name why and which field); never retryable.
    * broken: it failed while answering.
    """

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        *,
        retryable: bool = False,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """See the class for the kinds."""
        super().__init__(message)
        self.kind, self.message, self.retryable = kind, message, retryable
        self.code, self.param, self.retry_after_s = code, param, retry_after_s


def unable(what: str) -> BackendError:
    """Return the refusal of what a model cannot do at all; `what` follows "this model cannot"."""
    message = f"this model cannot {what}; ask another one"
    return BackendError("rejected", message, code="unsupported_by_model", param="model")


class Backend(Protocol):
    """One replica as the router sees it."""

    def stream(self, call: Call) -> AsyncIterator[Delta]:
        """Answer `call`. Closing the iterator cancels the call within one step; raises only `BackendError`."""
        ...

    async def tokenize(self, call: Call) -> Sequence[Sequence[int]]:
        """Return the exact tokens of each of the call's prompts, computing no answer; raises only `BackendError`."""
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of these tokens, special ones spelled out; raises only `BackendError`."""
        ...

    async def embed(self, call: Call) -> Embedding:
        """Return the meaning of each of the call's prompts as a vector; raises only `BackendError`."""
        ...

    async def health(self) -> Health:
        """Report the last known load at once; never waits for a step."""
        ...

    async def close(self) -> None:
        """Cancel what is running and free the connection; calling it twice is fine."""
        ...


@dataclass(frozen=True, slots=True)
class Replica:
    """One running endpoint of a release of a model; `id` is unique in this gateway and stays over restarts.

    stabilises  whether calls reach it with their prompts stabilised
    """

    id: str
    model: str
    release: str
    backend: Backend
    stabilises: bool = False
