"""Malformed requests: all refused in OpenAI's form, none breaks or changes anything."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import uvicorn

from raypref.schema import Embedder
from raypref.wire.requests import Text
from tests.serve.conftest import MakeBundle
from tests.serve.hostile import COMPAT_BODIES, Attack, by_hand, from_schema, valid_bodies
from tests.serve.local import ANN, Local, candidates, compared
from tests.serve.world import DIM, embedder_of, some


class Hashing:
    """Embeds texts by their digests."""

    async def embed(self, items: Sequence[tuple[Text | None, Text]]) -> tuple[np.ndarray, Embedder]:
        seeds = [int.from_bytes(hashlib.sha256(repr(item).encode()).digest()[:4], "little") for item in items]
        return np.stack([some(seed, DIM) for seed in seeds]).astype(np.float16), embedder_of()

    async def describe(self) -> Embedder:
        return embedder_of()


@pytest.fixture(scope="module")
def service(bundle_of: MakeBundle) -> Iterator[Local]:
    local = Local(bundle_of("vrf"), embedder=Hashing())
    local.ask(
        "POST", "/v1/users/ann/comparisons", {"comparisons": compared(some(1, 3, DIM), some(2, 3, DIM))}
    )
    local.ask("GET", "/v1/users/ann")
    yield local
    local.close()


def finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(finite(part) for part in value.values())
    return all(finite(part) for part in value) if isinstance(value, list) else True


def strict(content: bytes) -> Any:
    """Return JSON that has no NaN and no infinity, under any name."""

    def refuse(literal: str) -> float:
        raise ValueError(f"{literal} is no JSON")

    found = json.loads(content, parse_constant=refuse)
    assert finite(found)
    return found


def complaint(status: int, content: bytes) -> str | None:
    """Return what is wrong with a refusal; None where it is one."""
    if not 400 <= status < 500:
        return f"status {status}"
    try:
        found = strict(content)
    except ValueError as error:
        return f"{error}"
    if set(found) != {"error"} or set(found["error"]) != {"message", "type", "param", "code"}:
        return "not OpenAI's form"
    if found["error"]["code"] != status or not found["error"]["message"] or not found["error"]["type"]:
        return "an error that says nothing"
    return None


def all_attacks(local: Local) -> list[Attack]:
    return [*by_hand(DIM), *from_schema(local.ask("GET", "/openapi.json"), DIM)]


def test_what_the_attacks_start_from_is_valid(service: Local) -> None:
    before = service.everything()
    for path, body in {**valid_bodies(DIM), **COMPAT_BODIES}.items():
        if not path.startswith("/v1/users"):
            assert strict(service.request("POST", path, body).content)
            service.ask("POST", path, body)
    assert service.everything() == before


def test_every_malformed_request_is_refused_and_changes_nothing(service: Local) -> None:
    attacks = all_attacks(service)
    assert len(attacks) >= 2000
    assert {attack.path for attack in attacks} >= {*valid_bodies(DIM), *COMPAT_BODIES}
    before = service.everything()
    scored = {"user": "ann", "candidates": candidates(some(3, 4, DIM))}
    score = service.ask("POST", "/v1/score", scored)["data"]
    problems: list[str] = []
    statuses: Counter[int] = Counter()
    for attack in attacks:
        response = service.request(attack.method, attack.path, content=attack.body, headers=attack.headers)
        statuses[response.status_code] += 1
        wrong = complaint(response.status_code, response.content)
        if wrong is not None:
            problems.append(f"{attack.method} {attack.path} {attack.name}: {wrong} {response.text[:100]}")
    assert not problems, f"{len(problems)} of {len(attacks)}:\n" + "\n".join(problems[:40])
    assert set(statuses) <= {400, 404, 405, 413, 415, 422}
    assert service.everything() == before
    assert list(service.store.tombstones()) == []
    assert service.ask("POST", "/v1/score", scored)["data"] == score


def test_every_refusal_hides_what_was_sent(service: Local) -> None:
    secret = "correct-horse-battery"
    for body in (
        {"comparisons": [{"chosen": {"text": secret, "item": 1}, "rejected": {"text": secret}}]},
        {"comparisons": secret},
        {"comparisons": [{"chosen": {"text": [secret]}, "rejected": {"item": 0}}]},
    ):
        assert secret not in json.dumps(service.refused(422, "POST", "/v1/users/ann/comparisons", body))


def test_answers_are_finite_numbers_or_errors(service: Local) -> None:
    """Embeddings of any size that JSON can bring: a finite answer, or a refusal."""
    outcomes: Counter[int] = Counter()
    for power in range(-45, 39, 6):
        emb_ND = (some(4, 3, DIM).clip(-3, 3) * np.float32(10.0) ** np.float32(power)).astype(np.float32)
        own = compared(emb_ND[:1], emb_ND[1:2])
        for path, body in (
            ("/v1/score", {"user": "ann", "candidates": candidates(emb_ND)}),
            ("/v1/score", {"comparisons": own, "candidates": candidates(some(3, 4, DIM))}),
            ("/v1/rank", {"user": "ann", "candidates": candidates(emb_ND), "risk": 1e6}),
            ("/v1/suggest", {"user": "ann", "pairs": [{k: own[0][k] for k in ("chosen", "rejected")}]}),
            (f"/v1/users/p{power + 45}/comparisons", {"comparisons": own}),
        ):
            response = service.request("POST", path, body)
            outcomes[response.status_code] += 1
            if response.status_code == 200:
                numbers = strict(response.content)
                for row in numbers.get("data", []):
                    assert "mean" not in row or None not in row["mean"]
            else:
                assert complaint(response.status_code, response.content) is None
    assert set(outcomes) == {200, 422}


@pytest.mark.parametrize("method", ["vrf", "lore"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
def test_poison_in_the_store_never_leaves_it(method: str, poison: float, bundle_of: MakeBundle) -> None:
    local = Local(bundle_of(method))
    path = "/v1/users/ann"
    local.ask(
        "POST",
        f"{path}/comparisons",
        {"comparisons": compared(some(1, 2, DIM), some(2, 2, DIM), event_id=["a", "b"])},
    )
    judge = local.scorer._judging()
    ((version, events),) = local.store.events([ANN], raw=True)
    pair = {"chosen": compared(some(5, 1, DIM), some(6, 1, DIM))[0]["chosen"]}
    pair["rejected"] = compared(some(5, 1, DIM), some(6, 1, DIM))[0]["rejected"]
    vector = np.full(len(judge.prior_Z), poison, "<f4").tobytes()
    evidence = np.full(judge.evidence_width, poison, "<f4").tobytes()
    asked = [
        ("GET", path, None),
        ("GET", f"{path}/export", None),
        ("POST", "/v1/score", {"user": "ann", "candidates": candidates(some(3, 2, DIM))}),
        ("POST", "/v1/score", {"users": ["ben", "ann"], "candidates": candidates(some(3, 2, DIM))}),
        ("POST", "/v1/rank", {"user": "ann", "candidates": candidates(some(3, 2, DIM)), "risk": 1.0}),
        ("POST", "/v1/suggest", {"user": "ann", "pairs": [pair]}),
    ]
    for damage in ("vector", "evidence"):
        for method_name, where, body in asked:
            if damage == "evidence":
                local.store.reencode(ANN, judge.fingerprint, [("a", evidence)])
                local.store.remember([(ANN, version, "", b"")])
            else:
                local.store.remember([(ANN, version, judge.fingerprint, vector)])
            response = local.request(method_name, where, body)
            found = strict(response.content)
            if response.status_code == 200:
                assert "null" not in json.dumps(found.get("weights", [])), where
                for row in found.get("data", []):
                    assert None not in row.get("mean", [])
            else:
                assert complaint(response.status_code, response.content) is None
            stranger = {"user": "ben", "candidates": candidates(some(3, 2, DIM))}
            assert local.ask("POST", "/v1/score", stranger)["data"][0]["cold"]
    assert len(events) == 2
    local.close()


@pytest.fixture
def port(service: Local) -> Iterator[int]:
    """The same service behind a real server."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(service.app, log_level="critical", lifespan="off"))
        # The Scorer answers on the loop that asks, so this server has one Scorer to itself here.
        thread = threading.Thread(target=lambda: server.run([listening]), daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)


def spoken(port: int, data: bytes, hang_up: bool = False) -> tuple[int, bytes]:
    """Send bytes as they are, and return the status and body of the answer; (0, …) where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
        peer.sendall(data)
        if hang_up:
            peer.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := peer.recv(65_536):
                answer += part
        except ConnectionResetError:
            pass
    head, _, body = answer.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head else 0), body


def request_bytes(attack: Attack, *extra: bytes, body: bytes | None = None) -> bytes:
    head = [f"{attack.method} {attack.path} HTTP/1.1".encode(), b"host: a", b"connection: close"]
    head += [
        f"{name}: {value}".encode() for name, value in attack.headers.items() if name != "content-length"
    ]
    sent = attack.body if body is None else body
    lengths = [] if extra else [f"content-length: {len(sent)}".encode()]
    return b"\r\n".join([*head, *lengths, *extra, b"", b""]) + sent


def test_over_a_real_socket_too(service: Local, port: int) -> None:
    attacks = [
        attack for attack in all_attacks(service) if len(attack.body) < 300_000 and attack.path.isascii()
    ]
    # Serve's server itself answers methods and paths that are no HTTP.
    attacks = [attack for attack in attacks if attack.method != "TRACE"]
    before = service.everything()
    # A client library would tidy these up.
    dotted = (
        "/v1/users/ann/../ben",
        "/v1/users/ann/./export",
        "/v1/../healthz",
        "//v1/users/ann",
        "/%",
        "/%zz",
    )
    attacks = attacks[:: max(1, len(attacks) // 200)]
    attacks += [Attack("path", "GET", path) for path in dotted]
    problems: list[str] = []
    for attack in attacks:
        status, body = spoken(port, request_bytes(attack))
        wrong = complaint(status, body)
        if wrong is not None:
            problems.append(f"{attack.method} {attack.path} {attack.name}: {wrong}")
    assert not problems, "\n".join(problems)

    good = json.dumps(valid_bodies(DIM)["/v1/score"]).encode()
    score = Attack("", "POST", "/v1/score", good)
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(good[at : at + 50]), good[at : at + 50]) for at in range(0, len(good), 50)
    )
    chunked = b"transfer-encoding: chunked"
    assert spoken(port, request_bytes(score, chunked, body=chunks + b"0\r\n\r\n"))[0] == 200
    for name, data in {
        "half a chunk": request_bytes(score, chunked, body=chunks[:-20]),
        "wrong chunk": request_bytes(score, chunked, body=b"zz\r\n{}\r\n0\r\n\r\n"),
        "negative chunk": request_bytes(score, chunked, body=b"-5\r\n{}\r\n0\r\n\r\n"),
        "two lengths": request_bytes(score, b"content-length: 5", b"content-length: 6"),
        "length and chunks": request_bytes(score, b"content-length: 5", chunked, body=chunks),
        "length of text": request_bytes(score, b"content-length: five"),
        "negative length": request_bytes(score, b"content-length: -5"),
        "huge length": request_bytes(score, b"content-length: " + b"9" * 30),
        "more than is sent": request_bytes(score, b"content-length: 100000"),
        "no http": b"hello\r\n\r\n",
        "other version": b"GET /healthz HTTP/9.9\r\n\r\n",
        "no path": b"GET  HTTP/1.1\r\nhost: a\r\n\r\n",
        "NUL in a header": b"GET /v1/models HTTP/1.1\r\nhost: a\0b\r\n\r\n",
        "a header without end": b"GET /v1/models HTTP/1.1\r\nx: " + b"a" * 200_000,
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }.items():  # fmt: skip
        status, _ = spoken(port, data, hang_up=True)
        # What is no HTTP at all the server itself refuses, or it hangs up.
        assert status == 0 or 400 <= status < 500, name
    assert service.everything() == before
    assert spoken(port, b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")[0] == 200
