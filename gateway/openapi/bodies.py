"""What request bodies may hold: the tables of docs/fields.md as JSON schemas; a test compares the two.

Refuses to know answers and paths.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.openapi.jsonschema import (
    ANY_OBJECT,
    ANYTHING,
    FLAG,
    NOTHING,
    TEXT,
    Schema,
    all_of,
    array,
    constant,
    either,
    integer,
    number,
    one_of_kind,
    said,
    shape,
    text,
)

_INTEGER_MAX = (1 << 31) - 1
_SEED_MAX = (1 << 63) - 1
_COUNT = integer(1, _INTEGER_MAX)
MODEL = said(text(), "a model of gateway.toml, or an alias")
_SESSION = said(TEXT, "names the session")
_IGNORED = said(ANYTHING, "accepted, without effect")
_REFUSED = said(NOTHING, "not supported")
_TOOL_NAME: Schema = {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,128}$"}
_PARAMETERS: Schema = {"type": "object", "properties": {"type": constant("object")}}
_STOPS = array(text(), most=64)

_FUNCTION = shape({"name": _TOOL_NAME}, {"description": TEXT, "parameters": _PARAMETERS, "strict": FLAG})
_CHAT_TOOL = shape({"type": constant("function"), "function": _FUNCTION})
_NAMED = shape({"name": _TOOL_NAME})
_SCHEMA_FORMAT = shape({"schema": ANY_OBJECT}, {"name": TEXT, "strict": FLAG})
_FLAT_FORMAT = either(
    shape({"type": text("text", "json_object")}),
    shape({"type": constant("json_schema"), "schema": ANY_OBJECT}, {"name": TEXT, "strict": FLAG}),
)

# Both of OpenAI's older endpoints, and what vLLM's clients send to them.
_OPENAI: Mapping[str, Schema] = {
    "frequency_penalty": number(-2, 2),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": number(-100, 100),
        "maxProperties": 4096,
    },
    "max_tokens": _COUNT,
    "n": integer(1, 128),
    "presence_penalty": number(-2, 2),
    "seed": integer(-_SEED_MAX - 1, _SEED_MAX),
    "stop": either(text(), _STOPS),
    "stream": FLAG,
    "stream_options": shape({}, {"include_usage": FLAG, "include_obfuscation": ANYTHING}),
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "user": _SESSION,
}
_VLLM: Mapping[str, Schema] = {
    "top_k": integer(-1, _INTEGER_MAX),
    "min_p": number(0, 1),
    "repetition_penalty": number(0.01, 100),
    "min_tokens": integer(0, _INTEGER_MAX),
    "ignore_eos": FLAG,
    "guided_json": ANY_OBJECT,
    "guided_regex": text(),
    "guided_grammar": text(),
    "guided_choice": array(text(), fewest=1, most=4096),
    "structured_outputs": shape(
        {}, {"json": ANY_OBJECT, "regex": text(), "grammar": text(), "choice": array(text(), fewest=1)}
    ),
}

_CHAT_CONTENT = either(TEXT, array(either(one_of_kind(["text"]), one_of_kind(["refusal"], "refusal"))))
_CHAT_MESSAGE = either(
    shape({"role": text("system", "developer", "user"), "content": _CHAT_CONTENT}, {"name": TEXT}),
    shape({"role": constant("tool"), "content": _CHAT_CONTENT, "tool_call_id": text()}),
    shape(
        {"role": constant("assistant")},
        {
            "content": _CHAT_CONTENT,
            "name": TEXT,
            "tool_calls": array(
                shape(
                    {"id": text(), "function": shape({"name": text()}, {"arguments": TEXT})},
                    {"type": constant("function")},
                ),
                most=128,
            ),
        },
    ),
)

_MESSAGES_CONTENT = either(TEXT, array(one_of_kind(["text"])))
_USER_BLOCK = either(
    one_of_kind(["text"]),
    shape({"type": constant("tool_result"), "tool_use_id": text()}, {"content": _MESSAGES_CONTENT, "is_error": FLAG}),
)
_ASSISTANT_BLOCK = either(
    one_of_kind(["text"]),
    shape({"type": text("thinking", "redacted_thinking")}),
    shape({"type": constant("tool_use"), "id": text(), "name": text()}, {"input": ANY_OBJECT}),
)
_MESSAGES_MESSAGE = either(
    shape({"role": constant("user"), "content": either(TEXT, array(_USER_BLOCK, fewest=1))}),
    shape({"role": constant("assistant"), "content": either(TEXT, array(_ASSISTANT_BLOCK))}),
    shape({"role": constant("system"), "content": _MESSAGES_CONTENT}),
)

_RESPONSES_CONTENT = either(TEXT, array(either(one_of_kind(["input_text", "output_text", "text"]))))
_RESPONSES_ITEM = either(
    shape(
        {"role": text("user", "assistant", "system", "developer"), "content": _RESPONSES_CONTENT},
        {"type": constant("message")},
    ),
    shape({"type": constant("function_call"), "call_id": text(), "name": text()}, {"arguments": TEXT}),
    shape({"type": constant("function_call_output"), "call_id": text(), "output": _RESPONSES_CONTENT}),
    shape({"type": constant("item_reference"), "id": text()}),
    shape({"type": constant("reasoning")}),
)

CHAT = shape(
    {"model": MODEL, "messages": array(_CHAT_MESSAGE, fewest=1, most=16_384)},
    {
        **_OPENAI,
        "logprobs": FLAG,
        "max_completion_tokens": _COUNT,
        "modalities": constant(["text"]),
        "parallel_tool_calls": FLAG,
        "prompt_cache_key": _SESSION,
        "reasoning_effort": TEXT,
        "response_format": either(
            shape({"type": text("text", "json_object")}),
            shape({"type": constant("json_schema"), "json_schema": _SCHEMA_FORMAT}),
        ),
        "tool_choice": either(
            text("auto", "none", "required"), shape({"type": constant("function"), "function": _NAMED}), ANY_OBJECT
        ),
        "tools": array(_CHAT_TOOL, most=1024),
        "top_logprobs": integer(0, 20),
        **all_of("audio function_call functions moderation web_search_options", _REFUSED),
        **all_of(
            "metadata prediction prompt_cache_options prompt_cache_retention safety_identifier "
            "service_tier store verbosity",
            _IGNORED,
        ),
        "chat_template_kwargs": shape({}, {"enable_thinking": FLAG, "thinking": FLAG}),
        **_VLLM,
    },
)


def _prompts(most: int) -> Schema:
    """Describe texts, as themselves or as tokens."""
    tokens = array(integer(0, _INTEGER_MAX), fewest=1)
    return either(text(), array(text(), fewest=1, most=most), tokens, array(tokens, fewest=1, most=most))


COMPLETIONS = shape(
    {"model": MODEL, "prompt": _prompts(128)},
    {
        **_OPENAI,
        "best_of": said(integer(1, 128), "only what n is"),
        "echo": constant(False),
        "logprobs": integer(0, 20),
        "suffix": constant(""),
        **_VLLM,
    },
)

RESPONSES = shape(
    {"model": MODEL},
    {
        "input": either(text(), array(_RESPONSES_ITEM, fewest=1, most=16_384)),
        "background": constant(False),
        "conversation": either(text(), shape({"id": text()})),
        "include": array(TEXT),
        "instructions": TEXT,
        "max_output_tokens": _COUNT,
        "metadata": {"type": "object", "additionalProperties": TEXT, "maxProperties": 16},
        "parallel_tool_calls": FLAG,
        "previous_response_id": TEXT,
        "reasoning": shape({}, {"effort": TEXT}),
        "store": FLAG,
        "stream": FLAG,
        "temperature": number(0, 2),
        "text": shape({}, {"format": _FLAT_FORMAT, "verbosity": ANYTHING}),
        "tool_choice": either(
            text("auto", "none", "required"), shape({"type": constant("function"), "name": _TOOL_NAME}), ANY_OBJECT
        ),
        "tools": array(
            shape(
                {"type": constant("function"), "name": _TOOL_NAME},
                {"description": TEXT, "parameters": _PARAMETERS, "strict": FLAG},
            ),
            most=1024,
        ),
        "top_logprobs": integer(0, 20),
        "top_p": number(0, 1),
        "truncation": text("auto", "disabled"),
        "min_tokens": integer(0, _INTEGER_MAX),
        "ignore_eos": FLAG,
        **all_of("prompt_cache_key safety_identifier user", _SESSION),
        **all_of("moderation prompt", _REFUSED),
        **all_of(
            "access_programs background_options context_management image max_tool_calls prompt_cache_options "
            "prompt_cache_retention service_tier stream_options",
            _IGNORED,
        ),
    },
)

_PROMPT_OF_MESSAGES: Mapping[str, Schema] = {
    "output_config": shape({}, {"format": _FLAT_FORMAT, "effort": ANYTHING}),
    "system": _MESSAGES_CONTENT,
    "thinking": shape({"type": text("enabled", "adaptive", "between_tools", "disabled")}),
    "tool_choice": either(
        shape({"type": text("auto", "any", "none")}, {"disable_parallel_tool_use": FLAG}),
        shape({"type": constant("tool"), "name": _TOOL_NAME}, {"disable_parallel_tool_use": FLAG}),
    ),
    "tools": array(
        shape(
            {"name": _TOOL_NAME, "input_schema": _PARAMETERS},
            {"type": constant("custom"), "description": TEXT, "strict": FLAG},
        ),
        most=1024,
    ),
    "container": _REFUSED,
    **all_of("cache_control speed user_profile_id workspace_id", _IGNORED),
}
_MESSAGES = said(array(_MESSAGES_MESSAGE, fewest=1, most=100_000), "the last one is the user's")

MESSAGES = shape(
    {"model": MODEL, "messages": _MESSAGES, "max_tokens": _COUNT},
    {
        **_PROMPT_OF_MESSAGES,
        "metadata": shape({}, {"user_id": _SESSION}),
        "stop_sequences": _STOPS,
        "stream": FLAG,
        "temperature": number(0, 1),
        "top_k": integer(0, _INTEGER_MAX),
        "top_p": number(0, 1),
        **all_of("diagnostics inference_geo service_tier", _IGNORED),
    },
)

COUNT_TOKENS = shape({"model": MODEL, "messages": _MESSAGES}, _PROMPT_OF_MESSAGES)

EMBEDDINGS = shape(
    {"model": MODEL, "input": _prompts(2048)},
    {"dimensions": integer(1, 65_536), "encoding_format": text("float", "base64"), "user": _IGNORED},
)

TOKENIZE = either(
    shape({"model": MODEL, "prompt": text()}, {"add_special_tokens": constant(True)}),
    shape({"model": MODEL, "messages": array(_CHAT_MESSAGE, fewest=1)}, {"add_generation_prompt": constant(True)}),
)

DETOKENIZE = shape({"model": MODEL, "tokens": array(integer(0, _INTEGER_MAX), most=1 << 20)})
