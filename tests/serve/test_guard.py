from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from ray.util.metrics import Metric

from raypref.serve.compat import COMPAT_PATHS
from raypref.serve.guard import OPEN_PATHS, Guard, Limits
from raypref.serve.keys import Keys, create_key
from raypref.serve.meter import Meter, RewardMeter
from raypref.serve.pages import PAGE_FILES
from raypref.serve.refusals import install_refusals
from raypref.wire.answers import ErrorAnswer
from raypref.wire.errors import WireError
from raypref.wire.tensors import MEDIA_TYPE

SMALL = Limits(
    max_body_bytes=1000,
    max_bulk_bytes=5000,
    body_timeout_s=0.3,
    max_in_flight=2,
    patience_s=0.05,
    retry_after_s=7,
)

JSON = {"content-type": "application/json"}


class Recorded(Meter):
    """The real figures, and a list of what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str, int]] = []
        self.levels: list[int] = []

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        super().request(route, method, status, seconds)
        assert 0 <= seconds < 60
        self.requests.append((route, method, status))

    def in_flight(self, requests: int) -> None:
        super().in_flight(requests)
        self.levels.append(requests)


class Given(BaseModel):
    number: float = Field(allow_inf_nan=False)
    names: list[str] = []


def routes() -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    install_refusals(app)
    app.state.gate = asyncio.Event()
    app.state.entered = 0

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @app.get("/v1/users/{user}")
    async def user(user: str) -> dict[str, str]:
        return {"user": user}

    @app.delete("/v1/users/{user}")
    async def delete(user: str, request: Request) -> dict[str, int]:
        return {"bytes": len(request.state.body)}

    @app.post("/v1/echo")
    async def echo(request: Request) -> dict[str, Any]:
        assert await request.body() == request.state.body
        state = request.state
        return {"bytes": len(state.body), "tenant": state.tenant, "bulk": state.bulk, "id": state.request_id}

    @app.post("/v1/given")
    async def given(given: Given) -> dict[str, float]:
        return {"number": given.number}

    @app.post("/v1/wait")
    @app.post("/classify")
    async def wait() -> dict[str, bool]:
        app.state.entered += 1
        await app.state.gate.wait()
        return {"waited": True}

    @app.post("/v1/error/{status}")
    @app.post("/rerank")
    async def error(status: int = 429) -> None:
        if status == 400:
            raise HTTPException(400, "plain")
        raise WireError(status, "Refused.", "part", retry_after_s=3)

    @app.post("/v1/fault")
    async def fault(request: Request) -> None:
        raise KeyError(request.state.body.decode())

    return app


@pytest.fixture
def meter() -> Recorded:
    return Recorded()


@pytest.fixture
def app() -> FastAPI:
    return routes()


@pytest.fixture
def guard(app: FastAPI, meter: Recorded) -> Guard:
    return Guard(app, SMALL, None, meter)


def call(guard: Guard, method: str, path: str, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with client(guard) as http:
            return await http.request(method, path, **options)

    return asyncio.run(ask())


def client(guard: Guard) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://test")


def error_of(response: httpx.Response, status: int) -> str:
    """Check that an answer is an error in OpenAI's form, and return its message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert "x-request-id" in response.headers
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == status
    assert body["error"]["message"]
    return ErrorAnswer.model_validate(body).error.message


def test_a_request_reaches_its_route_with_body_tenant_and_id(guard: Guard) -> None:
    response = call(guard, "POST", "/v1/echo", content=b"{}", headers={**JSON, "x-request-id": "mine-1"})
    assert response.json() == {"bytes": 2, "tenant": "default", "bulk": False, "id": "mine-1"}
    assert response.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize("given", [None, "", "a b", "../x", "x" * 129, 'a"b', "é"])
def test_an_id_that_is_no_name_is_drawn_anew(given: str | None, guard: Guard) -> None:
    headers = {} if given is None else {"x-request-id": given.encode()}
    first, second = (call(guard, "POST", "/v1/echo", headers=headers) for _ in range(2))
    assert first.headers["x-request-id"] == first.json()["id"] != second.json()["id"]
    assert len(first.json()["id"]) == 32


def test_a_key_is_asked_for_everywhere_but_on_open_paths(
    app: FastAPI, meter: Recorded, tmp_path: Path
) -> None:
    key = create_key(tmp_path / "keys.json", "acme")
    guard = Guard(app, Limits(), Keys.load(tmp_path / "keys.json"), meter)
    for headers in (
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"x-api-key": key},
    ):
        assert call(guard, "POST", "/v1/echo", headers=headers).json()["tenant"] == "acme"
    wrong = [
        {},
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {key}x"},
        {"x-api-key": ""},
        {"x-api-key": "é".encode()},
    ]
    for path in ["/v1/echo", "/v1/users/ann", "/nothing", *COMPAT_PATHS]:
        for headers in wrong:
            for method in ("GET", "POST", "OPTIONS", "HEAD"):
                response = call(guard, method, path, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"].startswith("Bearer")
    assert "Authorization: Bearer" in error_of(call(guard, "POST", "/v1/echo"), 401)
    for path in OPEN_PATHS - {"/readyz"}:
        # This service has no page for people to look at.
        assert call(guard, "GET", path).status_code == (404 if path in PAGE_FILES else 200)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_beyond_its_room_requests_are_refused_before_their_body_is_read(
    app: FastAPI, guard: Guard, meter: Recorded
) -> None:
    read: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(1)
        yield b"{}"

    async def run() -> None:
        async with client(guard) as http:
            waiting = [asyncio.create_task(http.post("/v1/wait")) for _ in range(2)]
            await until(lambda: app.state.entered == 2)
            for path in ("/v1/score", "/v1/users/ann/comparisons", "/v1/echo", "/nothing"):
                response = await http.post(path, content=body())
                assert error_of(response, 429)
                assert response.headers["retry-after"] == "7"
                assert response.json()["error"]["type"] == "overloaded_error"
            for path in COMPAT_PATHS:
                response = await http.post(path, content=body())
                assert error_of(response, 503)
                assert response.headers["retry-after"] == "7"
            assert (await http.get("/healthz")).status_code == 200
            app.state.gate.set()
            assert [(await task).status_code for task in waiting] == [200, 200]
            assert (await http.post("/v1/echo")).status_code == 200

    asyncio.run(run())
    assert not read
    assert max(meter.levels) == 2
    assert meter.levels[-1] == 0


def test_a_client_that_leaves_gives_its_room_back(app: FastAPI, guard: Guard, meter: Recorded) -> None:
    async def run() -> None:
        async with client(guard) as http:
            for _ in range(5):
                task = asyncio.create_task(http.post("/v1/wait"))
                entered = app.state.entered
                await until(lambda entered=entered: app.state.entered > entered)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            app.state.gate.set()
            assert (await http.post("/v1/wait")).status_code == 200

    asyncio.run(run())
    assert meter.requests == [("/v1/wait", "POST", 499)] * 5 + [("/v1/wait", "POST", 200)]
    assert meter.levels[-1] == 0


def test_a_client_that_leaves_while_it_sends_reaches_no_route(guard: Guard, meter: Recorded) -> None:
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/fault", "headers": []}
    asyncio.run(guard(scope, receive, send))
    assert sent == []
    assert meter.requests == [("unrouted", "POST", 499)]
    assert meter.levels == [1, 0]


@pytest.mark.parametrize(("size", "status"), [(1000, 200), (1001, 413), (100_000, 413)])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_a_body_has_a_limit(size: int, status: int, stream: bool, method: str, guard: Guard) -> None:
    sent: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, size, 100):
            sent.append(start)
            yield b"x" * min(100, size - start)

    path = "/v1/echo" if method == "POST" else "/v1/users/ann"
    response = call(guard, method, path, content=body() if stream else b"x" * size)
    assert response.status_code == status
    if status == 413:
        assert "1,000 bytes" in error_of(response, 413)
        assert response.headers["connection"] == "close"
        assert len(sent) <= 12
    else:
        assert response.json()["bytes"] == (size if method == "POST" else 0)


def test_a_bulk_body_has_its_own_limit_on_native_routes(guard: Guard) -> None:
    bulk = {"content-type": MEDIA_TYPE}
    answer = call(guard, "POST", "/v1/echo", content=b"x" * 5000, headers=bulk).json()
    assert (answer["bytes"], answer["bulk"]) == (5000, True)
    assert error_of(call(guard, "POST", "/v1/echo", content=b"x" * 5001, headers=bulk), 413)
    assert error_of(call(guard, "POST", "/classify", content=b"x", headers=bulk), 415)


@pytest.mark.parametrize("declared", ["x", "-1", "+5", "1e3", "", "९"])
def test_a_length_that_is_no_number_is_refused(declared: str, guard: Guard) -> None:
    response = call(guard, "POST", "/v1/echo", content=b"", headers={"content-length": declared.encode()})
    assert error_of(response, 400)


def test_a_length_of_a_million_digits_is_too_large(guard: Guard) -> None:
    assert error_of(call(guard, "POST", "/v1/echo", headers={"content-length": "9" * 1_000_000}), 413)


def test_bodies_in_memory_have_a_limit_together(app: FastAPI, meter: Recorded) -> None:
    guard = Guard(app, Limits(max_held_bytes=1500), None, meter)

    async def run() -> None:
        async with client(guard) as http:
            task = asyncio.create_task(http.post("/v1/wait", content=b"x" * 1000))
            await until(lambda: app.state.entered == 1)
            assert error_of(await http.post("/v1/echo", content=b"x" * 501), 429)
            assert error_of(await http.post("/classify", content=b"x" * 501), 503)
            assert (await http.post("/v1/echo", content=b"x" * 500)).status_code == 200
            app.state.gate.set()
            await task
            assert (await http.post("/v1/echo", content=b"x" * 1500)).status_code == 200

    asyncio.run(run())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json; charset=utf-8"}, 200),
        ({"content-type": 'Application/JSON;Charset="UTF-8"'}, 200),
        ({"content-encoding": "identity"}, 200),
        ({}, 200),
        ({"content-type": ""}, 415),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/json; charset=utf-16"}, 415),
        ({"content-type": "application/octet-stream"}, 415),
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity, br"}, 415),
        ({"content-encoding": "x" * 5000}, 415),
    ],
)
def test_only_plain_json_and_safetensors_are_taken(
    headers: dict[str, str], status: int, guard: Guard
) -> None:
    response = call(guard, "POST", "/v1/given", content=b'{"number": 2}', headers=headers)
    if status == 200:
        assert response.json() == {"number": 2}
    else:
        assert error_of(response, status)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"number": NaN}',
        b'{"number": 1e400}',
        b'{"number": "SECRET"}',
        b'{"number": 1, "names": ["SECRET", 3]}',
        b'{"number": 1, "names": {"SECRET": 3}}',
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b"\xff\xfe",
        b'{"number": 1, "names": {"\\ud800": 3}}',
        b'{"number": [' + b"9" * 5000 + b"]}",
        b"null",
    ],
    ids=lambda body: body[:20].decode("latin-1"),
)
def test_a_malformed_body_is_refused_without_repeating_it(body: bytes, app: FastAPI, meter: Recorded) -> None:
    response = call(Guard(app, Limits(), None, meter), "POST", "/v1/given", content=body)
    assert 400 <= response.status_code < 500
    error_of(response, response.status_code)
    assert "SECRET" not in response.text
    assert len(response.text) < 1500


def test_an_invalid_request_names_the_place(guard: Guard) -> None:
    response = call(guard, "POST", "/v1/given", content=b'{"number": 1, "names": ["a", 2]}')
    assert error_of(response, 422).startswith("names.1: ")
    assert response.json()["error"]["param"] == "names.1"
    many = call(guard, "POST", "/v1/given", content=b'{"names": [1, 2, 3, 4]}')
    assert error_of(many, 422).endswith("and 2 more")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("PUT", "/v1/echo", 405),
        ("OPTIONS", "/v1/echo", 405),
        ("FOO", "/v1/echo", 405),
        ("HEAD", "/v1/echo", 405),
        ("POST", "/v1/echo/", 404),
        ("GET", "/v1//users/ann", 404),
        ("GET", "/v1/users/..", 404),
        ("GET", "/v1/users/%2e%2e", 404),
        ("GET", "/v1/users/.hidden", 404),
        ("GET", "/v1/users/a%2Fb", 404),
        ("GET", "/v1/users/a%2fb", 404),
        ("GET", "/v1/users/a%5Cb", 404),
        ("GET", "/v1/users/a%252Fb", 404),
        ("GET", "/v1/users/a%00b", 404),
        ("GET", "/v1/users/a%0Ab", 404),
        ("GET", "/v1/users/%FF%FE", 404),
        ("GET", "/v1/users/%C3%A9", 404),
        ("GET", "/v1/users/a%20b", 404),
        ("GET", "/v1/users/a;b", 404),
    ],
)
def test_odd_paths_and_methods_are_refused(
    method: str, path: str, status: int, server: Server, meter: Recorded
) -> None:
    """Sent as they stand: a client library would tidy the paths."""
    reply = server.exchange(f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    head, _, body = reply.partition(b"\r\n\r\n")
    # The server itself turns away a method that HTTP does not have.
    assert int(head.split()[1]) == (400 if method == "FOO" else status), reply
    if method not in ("HEAD", "FOO"):
        assert json.loads(body)["error"]["code"] == status
    if status == 405 and method != "FOO":
        assert b"allow: POST" in head


@pytest.mark.parametrize("user", ["ann", "a@b.example", "a:b+c=d~e", "a.b", "x" * 128])
def test_every_allowed_name_passes_plain_and_encoded(user: str, guard: Guard) -> None:
    encoded = user.replace("@", "%40").replace(":", "%3A").replace("+", "%2b").replace("=", "%3D")
    for path in (user, encoded):
        assert call(guard, "GET", f"/v1/users/{path}").json() == {"user": user}


def test_head_answers_as_get_without_a_body(guard: Guard) -> None:
    response = call(guard, "HEAD", "/v1/users/ann")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(b'{"user":"ann"}'))


def test_a_web_socket_is_closed(guard: Guard) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    asyncio.run(guard({"type": "websocket", "path": "/v1/echo", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_errors_of_routes_keep_status_part_and_pause(guard: Guard) -> None:
    response = call(guard, "POST", "/v1/error/409")
    assert error_of(response, 409) == "Refused."
    assert response.json()["error"]["param"] == "part"
    assert response.headers["retry-after"] == "3"
    assert error_of(call(guard, "POST", "/v1/error/400"), 400) == "plain"
    assert error_of(call(guard, "POST", "/v1/error/429"), 429)
    overloaded = call(guard, "POST", "/rerank")
    assert error_of(overloaded, 503)
    assert overloaded.headers["retry-after"] == "3"


def test_below_a_prefix_paths_count_from_it(guard: Guard) -> None:
    async def run() -> None:
        transport = httpx.ASGITransport(guard, root_path="/rewards")
        async with httpx.AsyncClient(transport=transport, base_url="http://test/rewards") as http:
            assert (await http.get("/healthz")).status_code == 200
            assert (await http.get("/v1/users/ann")).json() == {"user": "ann"}
            assert error_of(await http.post("/rerank"), 503)

    asyncio.run(run())


def test_logs_say_what_happened_and_nothing_of_users(
    guard: Guard, meter: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray.serve.raypref")
    secret = "SECRET"
    call(guard, "GET", f"/v1/users/{secret}")
    call(guard, "PUT", f"/v1/users/{secret}")
    call(guard, "GET", f"/v1/{secret}/{secret}")
    call(guard, "GET", f"/v1/users/{secret}%20{secret}?q={secret}")
    call(guard, "POST", "/v1/given", content=json.dumps({"number": secret, secret: 1}))
    call(guard, "POST", "/v1/echo", content=secret, headers={"content-encoding": secret})
    call(guard, "POST", "/v1/echo", content=secret, headers={"x-request-id": f"{secret} {secret}"})
    call(guard, "POST", "/v1/fault", content=secret, headers={"x-request-id": "fault-1"})
    assert secret not in caplog.text
    logged = [record for record in caplog.records if record.name == "ray.serve.raypref"]
    lines = [json.loads(record.message) for record in logged if record.levelno == logging.INFO]
    assert [(line["route"], line["method"], line["status"]) for line in lines] == meter.requests
    assert [line["route"] for line in lines[:4]] == ["/v1/users/{user}"] * 2 + ["unrouted"] * 2
    assert lines[-2].keys() == {
        "request_id", "tenant", "method", "route", "status", "ms", "bytes_in", "bytes_out"
    }  # fmt: skip
    assert lines[-2]["bytes_in"] == len(secret)
    (fault,) = [json.loads(record.message) for record in logged if record.levelno == logging.ERROR]
    assert fault["request_id"] == "fault-1"
    assert fault["trace"][0] == "KeyError"
    assert "in fault" in fault["trace"][-1]


def test_figures_name_no_user_and_no_tenant() -> None:
    figures = [figure for meter in (Meter(), RewardMeter()) for figure in vars(meter).values()]
    figures = [figure for figure in figures if isinstance(figure, Metric)]
    labels = {label for figure in figures for label in figure.info["tag_keys"]}
    assert len(figures) == 8 + 5
    assert labels == {"route", "method", "status", "model", "sign"}
    assert all(figure.info["name"].startswith("raypref_") for figure in figures)


def test_a_fault_is_answered_without_its_details(guard: Guard) -> None:
    response = call(guard, "POST", "/v1/fault", content=b"SECRET")
    assert "x-request-id" in error_of(response, 500)
    assert response.json()["error"]["type"] == "internal_error"
    assert "KeyError" not in response.text


def test_a_fault_without_fastapi_and_after_the_answer_began_is_held(meter: Recorded) -> None:
    async def late(scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    guard = Guard(late, Limits(), None, meter)
    assert error_of(call(guard, "GET", "/early"), 500)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    asyncio.run(guard({"type": "http", "method": "GET", "path": "/late", "headers": []}, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start"]


class Server:
    """The guard behind a real HTTP server."""

    def __init__(self, app: Any) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],))
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def exchange(self, request: bytes) -> bytes:
        with self.connect() as connection:
            connection.sendall(request)
            return everything(connection)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()


def everything(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
def server(guard: Guard) -> Iterator[Server]:
    server = Server(guard)
    yield server
    server.close()


def test_a_body_that_never_comes_ends_in_time_and_others_are_served(server: Server) -> None:
    head = b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n{"
    with server.connect() as slow:
        started_s = time.monotonic()
        slow.sendall(head)
        assert httpx.post(f"http://127.0.0.1:{server.port}/v1/echo", json={}).status_code == 200
        reply = everything(slow)
    assert 0.25 < time.monotonic() - started_s < 5
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in reply
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == 408


def test_a_declared_body_over_the_limit_is_refused_unread(server: Server) -> None:
    reply = server.exchange(b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ncontent-length: 30000000000\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_counted(server: Server) -> None:
    chunk = b"c8\r\n" + b"x" * 200 + b"\r\n"
    head = b"POST /v1/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    assert b'"bytes":1000' in server.exchange(head + chunk * 5 + b"0\r\n\r\n")
    assert server.exchange(head + chunk * 6).startswith(b"HTTP/1.1 413 ")


def test_a_refused_client_may_ask_again_on_its_connection(server: Server) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as http:
        for _ in range(3):
            assert error_of(http.post("/v1/echo", content=b"{}", headers={"content-type": "text/plain"}), 415)
            assert http.post("/v1/echo", json={}).json()["bytes"] == 2
