"""What answers hold, as JSON schemas: each API's objects, and its way to say no.

Refuses to know requests and paths.
"""

from __future__ import annotations

from gateway.openapi.jsonschema import (
    ANY_OBJECT,
    FLAG,
    NOTHING,
    TEXT,
    Schema,
    array,
    constant,
    either,
    integer,
    maybe,
    shape,
    text,
)

_COUNT = integer(0, (1 << 53) - 1)
_FINISH = text("stop", "length", "tool_calls", "content_filter")

OPENAI_ERROR = shape(
    {"error": shape({"message": TEXT, "type": TEXT, "param": maybe(TEXT), "code": maybe(TEXT)})},
)
ANTHROPIC_ERROR = shape(
    {"type": constant("error"), "error": shape({"type": TEXT, "message": TEXT}), "request_id": TEXT},
)

_USAGE = shape(
    {
        "prompt_tokens": _COUNT,
        "completion_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": shape({"cached_tokens": _COUNT}),
    }
)
_TOOL_CALL = shape(
    {"id": TEXT, "type": constant("function"), "function": shape({"name": TEXT, "arguments": TEXT})},
)
_MESSAGE = shape(
    {"role": constant("assistant"), "content": maybe(TEXT), "refusal": NOTHING},
    {"tool_calls": array(_TOOL_CALL), "reasoning_content": TEXT},
)


def _completion(kind: str, choice: Schema) -> Schema:
    return shape(
        {
            "id": TEXT,
            "object": constant(kind),
            "created": _COUNT,
            "model": TEXT,
            "choices": array(choice, fewest=1),
            "usage": maybe(_USAGE),
        }
    )


CHAT = _completion(
    "chat.completion",
    shape({"index": _COUNT, "message": _MESSAGE, "finish_reason": _FINISH, "logprobs": maybe(ANY_OBJECT)}),
)
COMPLETION = _completion(
    "text_completion",
    shape({"index": _COUNT, "text": TEXT, "finish_reason": _FINISH, "logprobs": maybe(ANY_OBJECT)}),
)
RESPONSE = shape(
    {
        "id": TEXT,
        "object": constant("response"),
        "created_at": _COUNT,
        "model": TEXT,
        "status": text("completed", "incomplete"),
        "output": array(shape({"id": TEXT, "type": text("message", "reasoning", "function_call"), "status": TEXT})),
        "parallel_tool_calls": FLAG,
        "tools": array(ANY_OBJECT),
        "usage": shape({"input_tokens": _COUNT, "output_tokens": _COUNT, "total_tokens": _COUNT}),
    },
    {"error": ANY_OBJECT, "incomplete_details": ANY_OBJECT, "previous_response_id": TEXT},
)
DELETED = shape({"id": TEXT, "object": constant("response"), "deleted": constant(True)})
MESSAGE = shape(
    {
        "id": TEXT,
        "type": constant("message"),
        "role": constant("assistant"),
        "model": TEXT,
        "content": array(
            either(
                shape({"type": constant("thinking"), "thinking": TEXT, "signature": TEXT}),
                shape({"type": constant("text"), "text": TEXT}),
                shape({"type": constant("tool_use"), "id": TEXT, "name": TEXT, "input": ANY_OBJECT}),
            )
        ),
        "stop_reason": text("end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"),
        "stop_sequence": maybe(TEXT),
        "usage": shape({"input_tokens": _COUNT, "output_tokens": _COUNT, "cache_read_input_tokens": _COUNT}),
    }
)
COUNTED = shape({"input_tokens": _COUNT})
EMBEDDINGS = shape(
    {
        "object": constant("list"),
        "data": array(
            shape(
                {
                    "object": constant("embedding"),
                    "index": _COUNT,
                    "embedding": either(TEXT, array({"type": "number"}, fewest=1)),
                }
            )
        ),
        "model": TEXT,
        "usage": shape({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
    }
)
TOKENIZED = shape({"count": _COUNT, "max_model_len": _COUNT, "tokens": array(_COUNT), "token_strs": NOTHING})
DETOKENIZED = shape({"prompt": TEXT})
MODEL = shape(
    {
        "id": TEXT,
        "object": constant("model"),
        "created": _COUNT,
        "owned_by": TEXT,
        "root": TEXT,
        "type": constant("model"),
        "display_name": TEXT,
        "created_at": {"type": "string", "format": "date-time"},
    },
    {"max_model_len": _COUNT, "max_input_tokens": _COUNT, "max_tokens": _COUNT},
)
MODELS = shape(
    {"object": constant("list"), "data": array(MODEL), "has_more": constant(False)},
    {"first_id": TEXT, "last_id": TEXT},
)
EVENT = shape({"data": TEXT}, {"event": TEXT})  # of a stream
VERSION = shape({"version": TEXT})
STATUS = shape({"status": text("ok", "ready", "starting")})
