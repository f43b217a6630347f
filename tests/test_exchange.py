"""HTTP on the data port of a real `tidegate serve`, byte by byte: framing, limits, and clients that leave."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from gateway.exchange import Exchange, respond
from gateway.http1 import Port
from gateway.units import Address
from tests.serving import Served

PATH = "/v1/chat/completions"


def body(text: str, *, stream: bool = False) -> bytes:
    """Give a chat body."""
    return json.dumps({"model": "echo", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()


def request(content: bytes, *headers: str, path: str = PATH) -> bytes:
    """Write a request by hand."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + content


def connected(served: Served) -> socket.socket:
    """Open a raw connection."""
    parts = urlsplit(served.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def until(raw: socket.socket, end: bytes) -> bytes:
    """Receive until these bytes have come, or the connection ends."""
    received = b""
    while end not in received and (piece := raw.recv(65536)):
        received += piece
    return received


@pytest.fixture
def connection(served_echo: Served) -> Iterator[http.client.HTTPConnection]:
    """Give a connection to the echo gateway."""
    parts = urlsplit(served_echo.url)
    with closing(http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)) as connection:
        yield connection


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, **parts: object
) -> tuple[http.client.HTTPResponse, bytes]:
    """Send a request and read the whole answer."""
    connection.request(method, path, **parts)
    response = connection.getresponse()
    return response, response.read()


def test_a_connection_is_kept_between_calls(connection: http.client.HTTPConnection) -> None:
    """Calls, streamed or not, follow each other on one connection, also after a stream that broke."""
    texts = [("a", False), ("a b", True), ("echo:error=1 a b", True), ("b", False)]

    answers = []
    for text, stream in texts:
        answers.append(ask(connection, "POST", PATH, body=body(text, stream=stream))[1])
        assert connection.sock

    assert b"[DONE]" in answers[1]
    assert b'"error"' in answers[2]
    assert b'"content":"b"' in answers[3]


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_paths_work_with_and_without_v1(connection: http.client.HTTPConnection, prefix: str) -> None:
    """Clients that leave out /v1, or add it twice to their base URL's root, both arrive."""
    assert ask(connection, "POST", f"{prefix}/chat/completions", body=body("a"))[0].status == 200
    assert ask(connection, "GET", f"{prefix}/models/echo")[0].status == 200


def test_an_unknown_path_is_a_404_in_json(connection: http.client.HTTPConnection) -> None:
    """What isn't there is told in the shape that clients parse."""
    response, content = ask(connection, "GET", "/v1/nothing?a=b")

    assert (response.status, json.loads(content)["error"]["code"]) == (404, "not_found")
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(("method", "path", "allow"), [("GET", PATH, "POST"), ("POST", "/healthz", "GET, HEAD")])
def test_a_wrong_method_is_a_405_with_allow(
    connection: http.client.HTTPConnection, method: str, path: str, allow: str
) -> None:
    """A wrong method is told the right one."""
    response, _ = ask(connection, method, path)

    assert (response.status, response.headers["allow"]) == (405, allow)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/health", "/metrics"])
def test_health_and_metrics_answer(connection: http.client.HTTPConnection, path: str) -> None:
    """Health is served on the data port, to HEAD as well."""
    assert ask(connection, "GET", path)[0].status == 200
    assert ask(connection, "HEAD", path)[1] == b""


@pytest.mark.parametrize(
    ("headers", "status", "setting"),
    [
        ({"Host": "evil.example"}, 403, "allowed_hosts"),
        ({"Origin": "https://evil.example"}, 403, "allowed_hosts"),
        ({"Origin": "null"}, 403, "allowed_hosts"),
        ({"Origin": "http://localhost:3000"}, 200, ""),
        ({"Host": "LOCALHOST.:8000"}, 200, ""),
        ({"Host": "[::1]:8000"}, 200, ""),
    ],
)
def test_web_pages_cannot_reach_the_port(
    connection: http.client.HTTPConnection, headers: dict[str, str], status: int, setting: str
) -> None:
    """A foreign Host or Origin is refused, naming the setting that would allow it."""
    response, content = ask(connection, "GET", "/healthz", headers=headers)

    assert response.status == status
    assert setting in content.decode()


def test_a_body_too_large_is_refused_before_it_is_read(served_echo: Served) -> None:
    """A Content-Length beyond max_body is a 413 at once, and the connection ends as the rest is in the way."""
    with connected(served_echo) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n")

        answer = until(raw, b"}}")

    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"max_body" in answer
    assert b"connection: close" in answer.lower()


def test_a_body_of_unknown_length_is_limited_while_it_is_read(served_echo: Served) -> None:
    """A chunked body is cut off at max_body."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(served_echo) as raw:
        raw.sendall(head + b"%x\r\n" % (33 << 20) + bytes(33 << 20) + b"\r\n")

        assert until(raw, b"}}").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(gzip.compress(b"{}"), "Content-Encoding: gzip"), b"415"),
        (
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}zz\r\n",
            b"400",
        ),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
def test_a_body_that_cannot_be_read_is_the_client_s_fault(served_echo: Served, sent: bytes, status: bytes) -> None:
    """Compressed bodies, broken chunks and broken request lines are refused, never a 500."""
    with connected(served_echo) as raw:
        raw.sendall(sent)

        assert until(raw, b"\r\n\r\n").split()[1] == status


def test_what_is_no_http_is_refused_in_json(served_echo: Served) -> None:
    """A request line that makes no sense gets an error that OpenAI's and Anthropic's clients can read."""
    with connected(served_echo) as raw:
        raw.sendall(b"GET /v1/mod\x00els HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = until(raw, b"}}")
    told = json.loads(answer.partition(b"\r\n\r\n")[2])

    assert (told["type"], told["error"]["type"], told["error"]["code"]) == (
        "error",
        "invalid_request_error",
        "invalid_http",
    )


def test_a_client_may_ask_before_it_sends(served_echo: Served) -> None:
    """Expect: 100-continue is answered before the body is waited for."""
    content = body("waited")
    with connected(served_echo) as raw:
        raw.sendall(request(content, "Expect: 100-continue").removesuffix(content))
        invited = until(raw, b"\r\n\r\n")
        raw.sendall(content)

        answer = until(raw, b"}}}")

    assert invited.startswith(b"HTTP/1.1 100 ")
    assert b"waited" in answer


def test_a_client_that_leaves_frees_its_call(served_echo: Served) -> None:
    """Closing the connection in the middle of a stream ends the call as 499, through the real start path."""
    with connected(served_echo) as raw:
        raw.sendall(request(body("echo:stall=1 a", stream=True), "x-request-id: left"))
        until(raw, b'"content":"a"')

    assert served_echo.event("request", request_id="left")["status"] == 499


def test_a_client_that_leaves_before_the_first_word_frees_its_call(served_echo: Served) -> None:
    """The same while nothing has been answered yet."""
    with connected(served_echo) as raw:
        raw.sendall(request(body("echo:stall=0 a"), "x-request-id: left-early"))
        ask_again = http.client.HTTPConnection(*raw.getpeername())
        ask(ask_again, "GET", "/healthz")
        ask_again.close()

    assert served_echo.event("request", request_id="left-early")["status"] == 499


def test_a_slow_reader_delays_nobody(served_echo: Served, connection: http.client.HTTPConnection) -> None:
    """One client that does not read its long stream holds up no other; it gets all of it when it reads."""
    with connected(served_echo) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        raw.sendall(request(body(f"echo:repeat=30000 {'x' * 50}", stream=True)))

        assert ask(connection, "POST", PATH, body=body("quick"))[0].status == 200
        last = b""
        while b"[DONE]" not in last:
            last = last[-20:] + raw.recv(1 << 20)


async def test_an_exchange_that_was_not_ended_is_broken_off() -> None:
    """An answer left in the middle cannot look whole: the connection is cut instead of the chunks being ended."""

    async def forget(exchange: Exchange) -> None:
        await exchange.start(200, {})
        await exchange.write(b"half")

    port = Port(forget)
    address = await port.listen(Address("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        received = await reader.read()
    except ConnectionResetError:
        received = b""
    writer.close()
    await port.close()

    assert not received.endswith(b"0\r\n\r\n")


async def test_a_port_is_idle_when_every_exchange_has_ended() -> None:
    """What drains can wait for the last exchange; a port that no longer accepts still finishes it."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        asked.set()
        await may_answer.wait()
        await respond(exchange, 200, {}, b"late")

    port = Port(answer)
    address = await port.listen(Address("127.0.0.1", 0))
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await asked.wait()

    await port.stop_accepting()
    may_answer.set()
    await port.idle()

    assert (await reader.read()).endswith(b"late")
    writer.close()
    await port.close()
