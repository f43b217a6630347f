"""OpenAI's responses: request bodies into a `Call` that holds all that was said before, from what is stored.

Refuses to know how answers are written; `responses_answers` does. Reasoning items are skipped: what a model thought is
no part of what was said.
"""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from backends.api import Call, Message, Role, Sampling, ToolCall
from gateway.dialects import Answer, openai
from gateway.dialects.events import COMMENT
from gateway.dialects.fields import Fields, as_json, as_text, parse_object, quoted, refusal
from gateway.dialects.response_ids import owner_of
from gateway.dialects.responses_answers import ResponseAnswer
from gateway.dialects.stored import StoredResponse, StoredResponses
from gateway.dialects.tools import responses_format, responses_tools
from gateway.dialects.turns import joined
from gateway.refusal import Refusal

_ROLES: tuple[Role, ...] = ("user", "assistant", "system", "developer")
_JOINED: frozenset[Role] = frozenset({"assistant"})  # its text and its function calls are one turn
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_LOGPROBS = "message.output_text.logprobs"
_MAX_ITEMS = 16_384
_MAX_PAIRS = 16
_INTEGER_MAX = (1 << 31) - 1


class Responses:
    """`POST /v1/responses`, and the responses kept from it."""

    ping = COMMENT

    def __init__(self, stored: StoredResponses) -> None:
        self._stored = stored

    def parse(self, body: bytes, *, call_id: str, tenant: str) -> Call:
        """Read a request; what it continues is looked up within the tenant, and 404 if it is not there."""
        fields = parse_object(body)
        _check(fields)
        tools = responses_tools(fields)
        return Call(
            id=call_id,
            model=fields.required_text("model"),
            messages=self._conversation(fields, tenant),
            sampling=_sampling(fields),
            max_tokens=fields.integer("max_output_tokens", None, low=1, high=_INTEGER_MAX),
            min_tokens=fields.integer("min_tokens", 0, low=0, high=_INTEGER_MAX),
            ignore_eos=fields.flag("ignore_eos"),
            logprobs=_logprobs(fields),
            stream=fields.flag("stream"),
            tools=tools.tools,
            tool_choice=tools.choice,
            parallel_tool_calls=tools.parallel,
            response_format=responses_format(fields),
            thinking=False if fields.child("reasoning").text("effort", None) == "none" else None,
            tenant=tenant,
            dialect="responses",
            body=fields.values,
        )

    def answer(self, call: Call, *, now: float) -> Answer:
        """Prepare the events or the body of a response; a whole one is stored unless the call says otherwise."""
        return ResponseAnswer(call, self._stored, now=now)

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, bytes]:
        """Write a refusal."""
        return openai.error(refusal, request_id)

    def retrieve(self, response_id: str, *, tenant: str) -> bytes:
        """`GET /v1/responses/{id}`: give a stored response as it was told."""
        return self._find(tenant, response_id, "response_id").body

    def delete(self, response_id: str, *, tenant: str) -> bytes:
        """`DELETE /v1/responses/{id}`: forget it."""
        if not self._stored.forget(tenant, response_id):
            raise _not_found(response_id, "response_id")
        return orjson.dumps({"id": response_id, "object": "response", "deleted": True})

    def _conversation(self, fields: Fields, tenant: str) -> tuple[Message, ...]:
        """Return the instructions, then what was said before, then the input."""
        instructions = fields.text("instructions", "")
        system = (Message("system", instructions),) if instructions else ()
        turns = joined((*self._history(fields, tenant), *self._input(fields, tenant)), roles=_JOINED)
        if not turns:
            raise refusal("input", "is missing or empty; it is required", code="missing_required_parameter")
        return system + turns

    def _history(self, fields: Fields, tenant: str) -> tuple[Message, ...]:
        conversation = conversation_of(fields)
        if previous_id := fields.text("previous_response_id", None):
            if conversation:
                raise refusal("previous_response_id", "and conversation exclude each other; give one of them")
            return self._find(tenant, previous_id, "previous_response_id").history
        last = self._stored.latest(tenant, conversation) if conversation else None
        return last.history if last else ()

    def _input(self, fields: Fields, tenant: str) -> Iterator[Message]:
        given = fields.values.get("input")
        if isinstance(given, str):
            yield Message("user", given)
            return
        for item in fields.objects("input", longest=_MAX_ITEMS):
            yield from self._turns(item, tenant)

    def _turns(self, item: Fields, tenant: str) -> Iterator[Message]:
        """Return what one item says; an item without a type is a message, or else a reference."""
        match item.text("type", "message" if item.has("role") else "item_reference"):
            case "message":
                yield Message(item.choice("role", _ROLES), _parts(item, "content"))
            case "function_call":
                call = ToolCall(
                    item.required_text("call_id"), item.required_text("name"), item.text("arguments", "") or "{}"
                )
                yield Message("assistant", tool_calls=(call,))
            case "function_call_output":
                yield Message("tool", _parts(item, "output"), tool_call_id=item.required_text("call_id"))
            case "item_reference":
                yield self._referred(item, tenant)
            case "reasoning":
                return
            case kind:
                raise refusal(
                    item.path_of("type"),
                    f"is {quoted(kind)}; message, function_call, function_call_output, item_reference and reasoning "
                    "are understood here",
                    code="unsupported_value",
                )

    def _referred(self, item: Fields, tenant: str) -> Message:
        """Return what an item of a stored response said."""
        referred_id = item.required_text("id")
        owner = owner_of(referred_id)
        response = self._stored.find(tenant, owner[0]) if owner else None
        if owner is None or response is None or owner[1] >= len(response.items):
            raise _not_found(referred_id, item.path_of("id"))
        return response.items[owner[1]]

    def _find(self, tenant: str, response_id: str, path: str) -> StoredResponse:
        response = self._stored.find(tenant, response_id)
        if response is None:
            raise _not_found(response_id, path)
        return response


def conversation_of(fields: Fields) -> str | None:
    """Return the conversation's id, given as itself or inside an object."""
    if isinstance(fields.values.get("conversation"), str):
        return fields.text("conversation", None)
    return fields.child("conversation").required_text("id") if fields.has("conversation") else None


def _not_found(missing_id: str, path: str) -> Refusal:
    message = f"{path} is {quoted(missing_id)}, which is not stored; send what was said before as input instead"
    return Refusal(404, "not_found", message, param=path)


def _check(fields: Fields) -> None:
    """Refuse what cannot be done, and what would be told back in a shape no client reads."""
    fields.unsupported("background", unless=(False,))
    fields.unsupported("prompt")
    fields.unsupported("moderation")
    is_stored = fields.flag("store", default=True)
    if conversation_of(fields) and not is_stored:
        raise refusal("conversation", "needs store = true, which is the default, as it consists of what is stored")
    if fields.has("truncation"):
        fields.choice("truncation", ("auto", "disabled"))
    for name in ("reasoning", "text", "tool_choice"):
        as_json(fields.values.get(name), name)
    for name in ("prompt_cache_key", "safety_identifier", "user"):
        fields.text(name, None)
    metadata = fields.child("metadata")
    if len(metadata.values) > _MAX_PAIRS:
        raise refusal("metadata", f"has {len(metadata.values)} pairs; at most {_MAX_PAIRS} are allowed")
    for name in metadata.values:
        as_text(metadata.values[name], metadata.path_of(name))


def _sampling(fields: Fields) -> Sampling:
    return Sampling(
        temperature=fields.number("temperature", 1.0, low=0, high=2),
        top_p=fields.number("top_p", 1.0, low=0, high=1),
    )


def _logprobs(fields: Fields) -> int | None:
    """Return how many alternatives to tell for each token, None when not even its own logprob is wanted."""
    top = fields.integer("top_logprobs", None, low=0, high=20)
    included = [as_text(name, f"include[{i}]") for i, name in enumerate(fields.array("include", longest=_MAX_ITEMS))]
    return top or 0 if _LOGPROBS in included else None


def _parts(fields: Fields, name: str) -> str:
    """Return the text of a field; the text parts of an array become its lines."""
    fields.require(name)
    given = fields.values[name]
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise refusal(fields.path_of(name), "must be a string or an array of parts", code="invalid_type")
    return "\n".join(_part(part) for part in fields.objects(name, longest=_MAX_ITEMS))


def _part(part: Fields) -> str:
    kind = as_text(part.values.get("type"), part.path_of("type"))
    if kind not in _TEXT_PARTS:
        raise refusal(
            part.path_of("type"),
            f"is {quoted(kind)}; the models here read text only, so send parts of the type input_text",
            code="unsupported_value",
        )
    part.require(_TEXT_PARTS[kind])
    return part.text(_TEXT_PARTS[kind], "")
