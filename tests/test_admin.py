"""The admin port of a real gateway."""

from __future__ import annotations

import json
import stat
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.serving import Served


def get(served: Served, path: str, **headers: str) -> tuple[int, bytes]:
    """Ask the admin port."""
    parts = urlsplit(served.admin_url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_health_and_metrics_need_no_token(served_echo: Served, path: str) -> None:
    """Probes and scrapers are answered without a token."""
    assert get(served_echo, path)[0] == 200


def test_the_state_needs_the_token_of_the_run_dir(served_echo: Served) -> None:
    """Without the token the state is refused, saying where the token is; with it there is every replica's load."""
    file = served_echo.run_dir / "admin-token"

    status, refusal = get(served_echo, "/admin/status")
    state = json.loads(get(served_echo, "/admin/status", authorization=f"Bearer {file.read_text().strip()}")[1])

    assert (status, b"run_dir/admin-token" in refusal) == (401, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [(replica["id"], replica["ready"]) for replica in state["replicas"]] == [("echo/stable/0", True)]
    assert state["uptime_s"] >= 0


def test_the_admin_port_serves_no_calls(served_echo: Served) -> None:
    """What isn't administration is not here."""
    assert get(served_echo, "/v1/models")[0] == 404


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
def test_web_pages_cannot_reach_the_admin_port(served_echo: Served, headers: dict[str, str]) -> None:
    """DNS rebinding and foreign pages end at the admin port too."""
    assert get(served_echo, "/healthz", **headers)[0] == 403
