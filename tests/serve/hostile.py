"""Malformed requests: written by hand, and made from a service's own OpenAPI schema."""

from __future__ import annotations

import base64
import copy
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raypref.wire.tensors import MEDIA_TYPE, pack_request
from tests.serve.local import candidates, compared, embedded
from tests.serve.world import some

JSON = "application/json"


@dataclass(frozen=True)
class Attack:
    """One request that must be refused."""

    name: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": JSON})


def valid_bodies(width: int) -> dict[str, dict[str, Any]]:
    """Return a request for each native route that takes one, every field of it in use."""
    chosen_PD, rejected_PD, items_ND = some(1, 2, width), some(2, 2, width), some(3, 3, width)
    own = compared(chosen_PD, rejected_PD, event_id=["a", "b"], timestamp=[1.0, 2.0], weight=[1.0, 2.0])
    pairs = [
        {"prompt": "", "chosen": embedded(chosen), "rejected": {"embedding": rejected.tolist()}}
        for chosen, rejected in zip(chosen_PD, rejected_PD, strict=True)
    ]
    listed = [{"embedding": item.tolist()} for item in items_ND]
    return {
        "/v1/users/ann/comparisons": {"comparisons": own},
        "/v1/users/ann/decay": {"factor": 0.5, "event_id": "d", "timestamp": 1.0},
        "/v1/score": {
            "model": None, "user": "ann", "prompt": "", "candidates": listed,
            "baseline": embedded(items_ND[0]), "encoding": "float",
        },
        "/v1/rank": {"users": ["ann", "ben"], "candidates": candidates(items_ND), "risk": 0.5, "top": 2},
        "/v1/suggest": {"comparisons": own, "pairs": pairs, "top": 1},
    }  # fmt: skip


COMPAT_BODIES: dict[str, dict[str, Any]] = {
    "/get_reward": {"query": ["a", "b"], "prompts": ["", ""], "labels": ["ann", None]},
    "/classify": {"model": "m", "user": "ann", "input": ["a"]},
    "/pooling": {"input": ["a"], "encoding_format": "float", "task": "classify"},
    "/score": {"user": "ann", "queries": "q", "documents": ["a", "b"]},
    "/rerank": {"query": "q", "documents": ["a", "b"], "top_n": 1},
    "/v1/rerank": {"query": "q", "documents": ["a"], "user": "ann"},
    "/v2/rerank": {"query": "q", "texts": ["a", "b"], "return_text": True, "raw_scores": False},
    "/predict": {"inputs": [["a", "b"]], "raw_scores": True, "user": "ann"},
}

ILLEGAL_IDS = (
    "", ".", "..", ".hidden", "a/b", "../b", "a\\b", "a b", "a\0", "a\n", "ä", "\ud800", "a" * 129, "%2e%2e",
    "a%00", "a;b", "a,b", "a'b", 'a"b', "<a>", "a|b", "a*", "a?b", "a#b", "{a}", "$a", "&a", "\u202ea", " a",
)  # fmt: skip

WRONG: tuple[Any, ...] = (
    True, -1, 10**30, 1.5, -0.5, "", "x" * 200, "\0", [], [[]], [None], [{}], {}, {"a": 1}, {"embedding": []},
    [[[[1]]]], ["\x01"],
)  # fmt: skip
"""Values, of which a field refuses those that are not of its kind; see `fits`."""

UNENCODABLE = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "01",
    "+1",
    ".5",
    "1.",
    "0x10",
    "nul",
    "'a'",
)
"""Literals that are no JSON, or no number that a float can hold."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every part of a body."""
    yield path
    if isinstance(value, dict):
        for name, part in value.items():
            yield from places(part, (*path, name))
    elif isinstance(value, list):
        for number, part in enumerate(value[:2]):
            yield from places(part, (*path, number))


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a copy of a body with another value in one place."""
    if not path:
        return value
    body = copy.deepcopy(body)
    part = body
    for step in path[:-1]:
        part = part[step]
    part[path[-1]] = value
    return body


def written(body: Any, path: tuple[Any, ...], literal: str) -> bytes:
    return (
        json.dumps(replaced(body, path, "\x02literal\x02"))
        .replace('"\\u0002literal\\u0002"', literal)
        .encode()
    )


def broken_json(path: str, body: dict[str, Any]) -> Iterator[Attack]:
    text = json.dumps(body).encode()
    for cut in sorted({*range(0, len(text), max(1, len(text) // 12)), len(text) - 1}):
        yield Attack(f"cut at {cut}", "POST", path, text[:cut])
    deep = 100_000
    for name, content in {
        "two documents": text + text,
        "trailing comma": text[:-1] + b",}",
        "a comment": b"/* */" + text,
        "utf-16": text.decode().encode("utf-16"),
        "utf-8 with mark": b"\xef\xbb\xbf" + text,
        "bytes that are no utf-8": text.replace(b'"', b'"\xff', 1),
        "a lone surrogate in a key": b'{"\\ud800": 1}',
        "an overlong encoding": b'{"\xc0\x80": 1}',
        "a raw NUL": b'{"a": "\x00"}',
        "a NUL byte": b"\x00",
        "deep arrays": b"[" * deep + b"]" * deep,
        "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "deep in a field": text[:-1] + b', "deep": ' + b"[" * deep + b"]" * deep + b"}",
        "unclosed": b"[" * deep,
        "a number of many digits": text[:-1] + b', "n": ' + b"9" * 10_000 + b"}",
        "null": b"null", "true": b"true", "a number": b"1", "a text": b'"a"', "a list": b"[]",
        "form": b"a=1&b=2", "xml": b"<a/>", "pickle": b"\x80\x04N.", "nothing": b"", "blank": b" \n",
    }.items():  # fmt: skip
        yield Attack(name, "POST", path, content)


def wrong_forms(path: str, body: dict[str, Any]) -> Iterator[Attack]:
    """Yield bodies that are right, of a wrong kind."""
    text = json.dumps(body).encode()
    bomb = gzip.compress(b"[" + b"0," * 2_000_000 + b"0]")
    for kind in (
        "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a",
        "application/xml", "application/octet-stream", "application/x-python-serialize",
        "application/jsonx", "json", "", "*/*",
        "application/json; charset=utf-16", "application/json; charset=latin-1", "application/x-ndjson",
    ):  # fmt: skip
        yield Attack(f"type {kind}", "POST", path, text, {"content-type": kind})
    for encoding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "x"):
        headers = {"content-type": JSON, "content-encoding": encoding}
        yield Attack(f"encoded {encoding}", "POST", path, bomb, headers)
    for method in ("PUT", "PATCH", "OPTIONS", "TRACE", "BREW"):
        yield Attack(f"method {method}", method, path, text)
    yield Attack("no number of bytes", "POST", path, text, {"content-type": JSON, "content-length": "-1"})


def unlike(path: str, body: dict[str, Any], strict: bool) -> Iterator[Attack]:
    """Yield bodies with one place changed to what cannot stand there."""
    for place in places(body):
        for literal in UNENCODABLE:
            yield Attack(f"{place} is {literal}", "POST", path, written(body, place, literal))
        if strict and place and isinstance(place[-1], str):
            beside = replaced(body, (*place[:-1], "\x00unknown"), 1)
            yield Attack(f"beside {place}", "POST", path, json.dumps(beside).encode())


def arrays(width: int) -> Iterator[Attack]:
    """Yield scores of candidates that are no array of embeddings."""
    good = some(1, 3, width)

    def code(array: np.ndarray, **changes: Any) -> dict[str, Any]:
        return {"base64": base64.b64encode(array.tobytes()).decode(), "shape": list(array.shape), **changes}

    nan, inf = good.copy(), good.copy()
    nan[1, 2], inf[2, 1] = np.nan, -np.inf
    for name, array in {
        "too wide": code(some(1, 3, width + 1)), "too narrow": code(good[:, :-1].copy()),
        "no width": code(good[:, :0]), "no rows": code(good[:0]), "one axis": code(good[0]),
        "no shape": code(good, shape=[]), "three axes": code(good, shape=[1, 3, width]),
        "negative": code(good, shape=[-3, -width]), "huge": code(good, shape=[2**31 - 1, 2**31 - 1]),
        "overflowing": code(good, shape=[2**62, 4]), "float": code(good, shape=[3.5, width]),
        "other shape": code(good, shape=[4, width]), "text shape": code(good, shape="3"),
        "nan": code(nan), "inf": code(inf), "half inf": code(inf.astype(np.float16), dtype="float16"),
        "float64": code(good.astype(np.float64), dtype="float64"), "int8": code(good, dtype="int8"),
        "object": code(good, dtype="object"), "wrong dtype": code(good, dtype="float16"),
        "cut": {**code(good), "base64": code(good)["base64"][:-5]},
        "not padded": {**code(good), "base64": code(good)["base64"].rstrip("=")[:-1]},
        "odd bytes": code(good, base64="AAAA"), "no base64": code(good, base64="!!!!"),
        "url base64": code(good, base64="-_-_" * 96), "spaces": code(good, base64=" AAAA\n" * 72),
        "not ascii": code(good, base64="ä" * 384), "null": code(good, base64=None), "nothing": {},
        "number": 1, "unknown": code(good, order="F"),
    }.items():  # fmt: skip
        body = {"candidates": {"embeddings": array}}
        for path in ("/v1/score", "/v1/rank"):
            yield Attack(f"array {name}", "POST", path, json.dumps(body).encode())
        for body in (
            {"candidates": [{"embedding": array}]},
            {"candidates": candidates(good), "vector": array},
            {"candidates": candidates(good), "baseline": {"embedding": array}},
        ):
            if body.get("vector") is array and name in ("no width",):
                continue
            if name == "one axis":
                # Right, where it is one vector.
                continue
            yield Attack(f"item {name}", "POST", "/v1/score", json.dumps(body).encode())
    lists: dict[str, Any] = {
        "ragged": [[0.5] * width, [0.5] * (width + 1)], "empty": [[]], "texts": [["a"] * width],
        "nested": [[[0.5]] * width], "null": [[None] * width], "huge": [[1e39] * width],
        "big integer": [[10**400] * width], "short": [[0.5] * (width - 1)],
    }  # fmt: skip
    for name, vectors in lists.items():
        body = {"candidates": [{"embedding": vector} for vector in vectors]}
        yield Attack(f"list {name}", "POST", "/v1/score", json.dumps(body).encode())
        learned = {
            "comparisons": [{"chosen": {"embedding": v}, "rejected": {"embedding": v}} for v in vectors]
        }
        yield Attack(f"learn {name}", "POST", "/v1/users/ann/comparisons", json.dumps(learned).encode())


def ids_and_paths() -> Iterator[Attack]:
    """Yield ids that no user or event may have, in paths and in bodies."""
    quoted = {
        name: "".join(f"%{byte:02X}" for byte in name.encode(errors="surrogatepass")) for name in ILLEGAL_IDS
    }
    for name, text in quoted.items():
        for path in (f"/v1/users/{text}", f"/v1/users/{text}/export", f"/v1/users/{text}/comparisons/a"):
            yield Attack(f"user {name!r}", "GET" if path.count("/") < 5 else "DELETE", path)
        if text:
            yield Attack(f"event {name!r}", "DELETE", f"/v1/users/ann/comparisons/{text}")
        yield Attack(f"erase {name!r}", "DELETE", f"/v1/users/{text}")
        yield Attack(
            f"user in body {name!r}",
            "POST",
            "/v1/score",
            json.dumps({"user": name, "candidates": [{"item": 0}]}).encode(),
        )
        good = {"chosen": {"item": 0}, "rejected": {"item": 1}}
        body = {"comparisons": [{**good, "event_id": name}]}
        yield Attack(
            f"event in body {name!r}", "POST", "/v1/users/ann/comparisons", json.dumps(body).encode()
        )
        if name:
            asked = {"query": ["a"], "labels": [name]}
            yield Attack(f"label {name!r}", "POST", "/get_reward", json.dumps(asked).encode())
    for path in (
        "/v1/users//ann", "/v1/users/ann/", "/v1/users/..%2fadmin", "/v1/users/..%5cadmin",
        "/v1/users/%252e%252e", "/v1/users/%2e%2e/ben", "/V1/users/ann", "/v1/users/ann%3bx",
        "/v1/users/ann;x", "/v1/users/ann%00", "/v1/users/ann%0d%0ax-a:%20b", "/v1", "/v1/users",
        "/etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd", "/docs/%2e%2e/v1/users/ann", "/v1/users/ann/comparisons", "/%25",
        "/v1/score", "/healthz/", "/v1/users/ann/comparisons/a/b", "/favicon.ico", "/metrics", "/-/routes",
    ):  # fmt: skip
        yield Attack(f"path {path}", "GET", path)


def bulk(width: int) -> Iterator[Attack]:
    """Yield safetensors bodies that are none, or are no such request."""
    good = pack_request({"user": "ann"}, {"candidates": some(1, 3, width)})
    headers = {"content-type": MEDIA_TYPE}
    size = int.from_bytes(good[:8], "little")

    def with_header(header: Any, data: bytes = good[8 + size :]) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data

    header = json.loads(good[8 : 8 + size])
    entry = header["candidates"]
    nan = some(1, 3, width)
    nan[0, 0] = np.nan
    bodies: dict[str, bytes] = {
        "no request": with_header({"candidates": entry}),
        "request is no json": with_header({**header, "__metadata__": {"request": "{"}}),
        "request is a list": with_header({**header, "__metadata__": {"request": "[]"}}),
        "request of nan": with_header({**header, "__metadata__": {"request": '{"risk": NaN}'}}),
        "unknown field": with_header({**header, "__metadata__": {"request": '{"x": 1}'}}),
        "wrong user": with_header({**header, "__metadata__": {"request": '{"user": "a/b"}'}}),
        "metadata of numbers": with_header({**header, "__metadata__": {"request": 1}}),
        "double": with_header({**header, "candidates": {**entry, "dtype": "F64"}}),
        "integers": with_header({**header, "candidates": {**entry, "dtype": "I64"}}),
        "no type": with_header({**header, "candidates": {**entry, "dtype": "X"}}),
        "other shape": with_header({**header, "candidates": {**entry, "shape": [4, width]}}),
        "negative shape": with_header({**header, "candidates": {**entry, "shape": [-3, -width]}}),
        "huge shape": with_header({**header, "candidates": {**entry, "shape": [2**40, 2**40]}}),
        "three axes": with_header({**header, "candidates": {**entry, "shape": [1, 3, width]}}),
        "offsets": with_header({**header, "candidates": {**entry, "data_offsets": [4, 12 * width + 4]}}),
        "backwards": with_header({**header, "candidates": {**entry, "data_offsets": [12 * width, 0]}}),
        "overlapping": with_header({**header, "baseline": {**entry, "shape": [width * 3]}}),
        "another name": with_header({"__metadata__": header["__metadata__"], "x": entry}),
        "deep header": with_header(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "too wide": pack_request({}, {"candidates": some(1, 3, width + 1)}),
        "two widths": pack_request({}, {"candidates": some(1, 3, width), "baseline": some(1, width + 1)}),
        "nan": pack_request({}, {"candidates": nan}),
        "twice": pack_request({"candidates": [{"item": 0}]}, {"candidates": some(1, 3, width)}),
        "empty": b"", "zeros": bytes(64), "json": b'{"candidates": []}',
        "long header": (2**63).to_bytes(8, "little") + b"{}",
    }  # fmt: skip
    for cut in range(0, len(good), max(1, len(good) // 40)):
        bodies[f"cut at {cut}"] = good[:cut]
    for number in range(60):
        # In the header: in the data every change is another embedding.
        mutated = bytearray(good)
        mutated[np.random.default_rng(number).integers(0, 8 + 2)] ^= 1 << (number % 8)
        if bytes(mutated) != good:
            bodies[f"bit {number}"] = bytes(mutated)
    for name, body in bodies.items():
        for path in ("/v1/score", "/v1/suggest"):
            yield Attack(f"bulk {name}", "POST", path, body, headers)
    lone = pack_request({}, {"chosen": some(1, 2, width)})
    short = pack_request({}, {"chosen": some(1, 2, width), "rejected": some(1, 3, width)})
    events = pack_request({"comparisons": [{}]}, {"chosen": some(1, 2, width), "rejected": some(1, 2, width)})
    for name, body in {"lone": lone, "short": short, "events": events}.items():
        yield Attack(f"bulk {name}", "POST", "/v1/users/ann/comparisons", body, headers)
    yield Attack("bulk to others' routes", "POST", "/classify", good, headers)


def too_much(width: int) -> Iterator[Attack]:
    """Yield requests for more than one may ask."""
    item = {"embedding": [0.5] * width}
    bodies: dict[str, dict[str, Any]] = {
        "/v1/score": {"candidates": [{"item": 0}] * 65_537},
        "/v1/rank": {"users": ["u"] * 100_001, "candidates": [item]},
        "/v1/suggest": {"pairs": [{"chosen": item, "rejected": item}] * 4_097},
        "/v1/users/ann/comparisons": {
            "comparisons": [{"chosen": {"item": 0}, "rejected": {"item": 1}}] * 4_097
        },
        "/get_reward": {"query": ["a"] * 65_537},
        "/classify": {"input": ["a"] * 65_537},
    }
    for path, body in bodies.items():
        yield Attack("too many", "POST", path, json.dumps(body).encode())
    wide = {"users": [f"u{number}" for number in range(50_000)], "candidates": candidates(some(1, 21, width))}
    yield Attack("too many scores", "POST", "/v1/score", json.dumps(wide).encode())
    yield Attack("too large", "POST", "/v1/score", b" " * (8 * 2**20 + 1))


def by_hand(width: int) -> Iterator[Attack]:
    """Yield all of the above."""
    for path, body in valid_bodies(width).items():
        yield from broken_json(path, body)
        yield from wrong_forms(path, body)
        yield from unlike(path, body, strict=True)
    for path, body in COMPAT_BODIES.items():
        yield from broken_json(path, body)
        yield from wrong_forms(path, body)
    yield from arrays(width)
    yield from ids_and_paths()
    yield from bulk(width)
    yield from too_much(width)


def from_schema(schema: dict[str, Any], width: int) -> Iterator[Attack]:
    """Yield a valid body of every route with one field, of whatever depth, that its schema does not allow."""
    bodies = {**valid_bodies(width), **COMPAT_BODIES}
    for template, methods in schema["paths"].items():
        if "post" not in methods or "requestBody" not in methods["post"]:
            continue
        path = template.replace("{user}", "ann")
        content = methods["post"]["requestBody"]["content"][JSON]["schema"]
        for place in places(bodies[path]):
            allowed = list(_at(content, place, schema))
            for value in WRONG:
                if not any(fits(value, kind, schema) for kind in allowed):
                    body = replaced(bodies[path], place, value)
                    yield Attack(f"{place} = {str(value)[:20]}", "POST", path, json.dumps(body).encode())
        for name in [name for kind in _resolved(content, schema) for name in kind.get("required", ())]:
            left = {key: value for key, value in bodies[path].items() if key != name}
            if not any(set(kind.get("required", ())) <= left.keys() for kind in _resolved(content, schema)):
                yield Attack(f"without {name}", "POST", path, json.dumps(left).encode())


def _resolved(kind: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the alternatives of a schema."""
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        found = schema["components"]["schemas"].get(name) or kind.get("$defs", {}).get(name)
        yield from _resolved(found, schema)
    elif "anyOf" in kind:
        for one in kind["anyOf"]:
            yield from _resolved(one, schema)
    else:
        yield kind


def _at(kind: dict[str, Any], place: tuple[Any, ...], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a schema allows in a place."""
    for one in _resolved(kind, schema):
        if not place:
            yield one
        elif isinstance(place[0], str) and place[0] in one.get("properties", {}):
            yield from _at(one["properties"][place[0]], place[1:], schema)
        elif isinstance(place[0], int) and one.get("type") == "array":
            yield from _at(one.get("items", {}), place[1:], schema)


def fits(value: Any, kind: dict[str, Any], schema: dict[str, Any]) -> bool:
    """Return whether a schema might take a value: where in doubt, it might."""
    expected = kind.get("type")
    if expected is None:
        return True
    if expected in ("number", "integer"):
        # Lax: numbers come as text too, and true as 1.
        if isinstance(value, str):
            return False
        if not isinstance(value, int | float):
            return False
        if expected == "integer" and value != int(value):
            return False
        low, high = kind.get("minimum", -np.inf), kind.get("maximum", np.inf)
        above, below = kind.get("exclusiveMinimum", -np.inf), kind.get("exclusiveMaximum", np.inf)
        return low <= value <= high and above < value < below
    if expected == "boolean":
        return value in (True, False) or isinstance(value, str)
    if expected == "string":
        if not isinstance(value, str) or ("enum" in kind and value not in kind["enum"]):
            return False
        return "pattern" not in kind or not value or (value.isalnum() and len(value) <= 128)
    if expected == "null":
        return value is None
    if expected == "array":
        if not isinstance(value, list) or len(value) < kind.get("minItems", 0):
            return False
        items = kind.get("items", {})
        return all(any(fits(part, one, schema) for one in _resolved(items, schema)) for part in value)
    if expected == "object":
        if not isinstance(value, dict) or not set(kind.get("required", ())) <= value.keys():
            return False
        properties = kind.get("properties", {})
        if kind.get("additionalProperties") is False and not value.keys() <= properties.keys():
            return False
        return all(
            any(fits(part, one, schema) for one in _resolved(properties.get(name, {}), schema))
            for name, part in value.items()
        )
    return True
