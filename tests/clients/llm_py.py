"""The `llm` tool, through the class that its extra-openai-models.yaml stands for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.clients.reports import COLOUR, Feature, Report, Task

os.environ["LLM_LOAD_PLUGINS"] = ""  # else the package that carries the embedded model is loaded as a plugin

import llm
from llm.default_plugins.openai_models import Chat


def model(task: Task) -> Chat:
    """Give the model that an entry of the YAML file makes."""
    made = Chat(
        model_id="tidegate",
        model_name=task.model,
        api_base=task.v1,
        headers=dict(task.headers),
        supports_schema=True,
        supports_tools=True,
    )
    made.needs_key = None
    return made


def asked(task: Task, *, is_streamed: bool) -> Report:
    """Ask and read."""
    response = model(task).prompt(task.prompt, stream=is_streamed, temperature=0, max_tokens=task.max_tokens)
    text = "".join(response)
    return {"text": text, "finish": finish(response), "prompt_tokens": response.usage().input}


def finish(response: llm.Response) -> str | None:
    """Give the finish reason, which is kept in another place for streams."""
    told = response.response_json or {}
    return told.get("finish_reason") or next((each["finish_reason"] for each in told.get("choices", ())), None)


def whole(task: Task) -> Report:
    """Ask for an answer at once."""
    return asked(task, is_streamed=False)


def stream(task: Task) -> Report:
    """Ask for a stream and its usage."""
    return asked(task, is_streamed=True)


def schema(task: Task) -> Report:
    """Have the answer held to a schema."""
    response = model(task).prompt(task.prompt, schema=COLOUR, max_tokens=48)
    return {"parsed": json.loads(response.text())}


def cancel(task: Task) -> Report:
    """Interrupt the command after its first words, as Ctrl-C does."""
    with TemporaryDirectory() as folder:
        entry = {"model_id": "tidegate", "model_name": task.model, "api_base": task.v1, "headers": dict(task.headers)}
        Path(folder, "extra-openai-models.yaml").write_text(json.dumps([entry]))  # JSON is YAML
        command = [sys.executable, "-m", "llm", "prompt", "-m", "tidegate", "-o", "max_tokens", "4096", task.prompt]
        environment = os.environ | {"LLM_USER_PATH": folder}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
            text = process.stdout.read(1)
            process.send_signal(signal.SIGINT)
    return {"text": text.decode()}


FEATURES: dict[str, Feature] = {
    "whole": whole,
    "stream": stream,
    "schema": schema,
    "cancel": cancel,
}
