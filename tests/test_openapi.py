"""/openapi.json is true: it has every route and every published field, and a fuzzer that reads it finds no failure."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import jsonschema
import pytest
from anthropic.types.message_count_tokens_params import MessageCountTokensParams

from gateway.cors import NO_PAGE
from gateway.guard import Guard
from gateway.openapi import bodies
from gateway.openapi.document import document
from gateway.routes import DataPort
from gateway.units import Address
from tests.paths import Bench
from tests.serving import Served
from tests.test_fields import HARMLESS, parse, rows

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
BODIES = {
    "chat": bodies.CHAT,
    "completions": bodies.COMPLETIONS,
    "responses": bodies.RESPONSES,
    "messages": bodies.MESSAGES,
    "embeddings": bodies.EMBEDDINGS,
}


def fields_of(endpoint: str) -> dict[str, dict[str, object]]:
    """Give the schema of each field of an endpoint."""
    return BODIES[endpoint]["properties"]  # type: ignore[return-value]


def told(served: Served) -> dict[str, object]:
    """Fetch the document."""
    with urllib.request.urlopen(f"{served.url}/openapi.json") as answer:
        return json.load(answer)


def with_model(schema: object) -> object:
    """Let every body name the model that is there."""
    if isinstance(schema, list):
        return [with_model(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema == bodies.MODEL:
        return {"const": "echo"}
    return {name: with_model(each) for name, each in schema.items()}


def fuzz(served: Served, folder: Path, *options: str) -> None:
    """Run schemathesis over every operation; it must find nothing."""
    file = folder / "openapi.json"
    file.write_text(json.dumps(with_model(told(served))))
    command = [SCHEMATHESIS, "run", file, "--url", f"{served.url}/v1", "--checks", CHECKS, "--no-color", *options]
    run = subprocess.run(
        [*command, "--warnings", "off", "--suppress-health-check", "all"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_route_is_described_and_nothing_else() -> None:
    """Paths and methods of the document are those that the data port answers; HEAD goes with GET."""
    port = DataPort(Bench().path, Guard(Address("127.0.0.1", 8000), ()), cors=NO_PAGE, version="1")
    described = {path: set(operations) - {"parameters"} for path, operations in document(version="1")["paths"].items()}  # type: ignore[attr-defined]

    assert described == {path: {m.lower() for m in route.methods} - {"head"} for path, route in port.routes.items()}


def test_the_document_is_served_without_a_key(served_echo: Served) -> None:
    """Tools that look around find it where they expect it, whole and valid in each of its schemas."""
    paths = told(served_echo)["paths"]

    for operations in paths.values():  # type: ignore[attr-defined]
        for operation in (operations[method] for method in operations if method != "parameters"):
            contents = [operation.get("requestBody", {}), *operation["responses"].values()]
            for schema in (each["schema"] for content in contents for each in content.get("content", {}).values()):
                jsonschema.Draft202012Validator.check_schema(schema)
    assert "/chat/completions" in paths  # type: ignore[operator]


def test_what_is_published_for_counting_is_described_and_listed() -> None:
    """Every field that Anthropic publishes for count_tokens stands in the table of messages and in the document."""
    published = set(MessageCountTokensParams.__annotations__)

    assert published <= set(rows("messages"))
    assert published <= set(bodies.COUNT_TOKENS["properties"])  # type: ignore[call-overload]


@pytest.mark.parametrize("endpoint", BODIES)
def test_every_listed_field_is_described(endpoint: str) -> None:
    """The document has the fields of docs/fields.md's table, beside those that the page names below it."""
    assert set(rows(endpoint)) <= set(fields_of(endpoint))


@pytest.mark.parametrize(("endpoint", "field"), [(endpoint, field) for endpoint in BODIES for field in rows(endpoint)])
def test_the_document_says_of_each_field_what_the_page_says(endpoint: str, field: str) -> None:
    """What is ignored may be anything that does no harm, and what the parser refuses is not described as allowed."""
    validator = jsonschema.Draft202012Validator(fields_of(endpoint)[field])
    is_ignored = rows(endpoint)[field] in {"ignored", "session"}
    given = HARMLESS.get(field, {"user_id": "x"} if field == "metadata" else "x")

    assert validator.is_valid(given if is_ignored else [1.5]) == is_ignored
    if is_ignored:
        assert parse(endpoint, **{field: given}).body[field] == given


def test_a_fuzzer_finds_no_failure(served_echo: Served, tmp_path: Path) -> None:
    """Whatever the document allows, and much that it does not, is answered as it says, and never by a 5xx."""
    fuzz(served_echo, tmp_path, "--phases", "coverage", "--seed", "1")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fuzzer_that_takes_its_time_finds_no_failure(served_echo: Served, tmp_path: Path) -> None:
    """The same with many more examples, other ones each time."""
    fuzz(served_echo, tmp_path, "--phases", "coverage,fuzzing", "--max-examples", "200")
