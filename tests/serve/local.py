"""The whole service in this process, asked by tests that are no coroutines."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from raypref.errors import RayprefError
from raypref.serve.app import make_app
from raypref.serve.calls import Comparisons, Items
from raypref.serve.config import ServeConfig
from raypref.serve.scorer import Scorer
from raypref.serve.stores.base import Key, Record, Store
from raypref.serve.users import Users
from raypref.wire.arrays import Encoded
from tests.serve.world import LocalRemote


class Local:
    """Guard, routes, Scorer and store; `close` it."""

    def __init__(self, bundle: Path, store: str = "memory:", embedder: Any = None, **settings: Any) -> None:
        if "keys" not in settings:
            settings["open"] = True
        config = ServeConfig(bundle=bundle, store=store, **settings)
        self.bundle = bundle
        self._runner = asyncio.Runner()
        self.scorer = Scorer(config.settings, config.bundle)
        try:
            self.use(bundle)
        except RayprefError:
            self._runner.close()
            self.store.close()
            raise
        self.app = make_app(config.settings, LocalRemote(self.scorer), embedder)
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test")

    def use(self, bundle: Path) -> None:
        """Swap the bundle, as `user_config` does."""
        self._runner.run(self.scorer.reconfigure({"bundle": str(bundle)}))

    @property
    def users(self) -> Users:
        return self.scorer._users

    @property
    def store(self) -> Store:
        return self.scorer._store

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        if body is not None:
            call = self.http.request(method, path, json=body, headers=headers)
        else:
            call = self.http.request(method, path, content=content, headers=headers)
        return self._runner.run(call)

    def together(self, requests: Iterable[tuple[str, str, Any]]) -> list[httpx.Response]:
        """Send requests (method, path, body) at once."""

        async def send() -> list[httpx.Response]:
            asked = [self.http.request(method, path, json=body) for method, path, body in requests]
            return await asyncio.gather(*asked)

        return self._runner.run(send())

    def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Return the JSON of an answer that is to be 200."""
        response = self.request(method, path, body, **options)
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, status: int, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Return the error of an answer that is to be a refusal in OpenAI's form."""
        response = self.request(method, path, body, **options)
        assert response.status_code == status, response.text
        assert set(response.json()) == {"error"}
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == status
        return error

    def everything(self) -> list[Record]:
        """Return all that the store keeps of all users."""
        return self.store.records(self.store.keys(limit=1_000_000))

    def close(self) -> None:
        self._runner.run(self.http.aclose())
        self._runner.close()
        self.store.close()


def comparisons(
    chosen_PD: np.ndarray,
    rejected_PD: np.ndarray,
    ids: Iterable[str] | None = None,
    times: Iterable[float] | None = None,
    weights: Iterable[float] | None = None,
) -> Comparisons:
    """Return comparisons as the ingress hands them on; without ids `e0`, `e1`, …"""
    count = len(chosen_PD)
    return Comparisons(
        Items.of(chosen_PD),
        Items.of(rejected_PD),
        tuple(ids or (f"e{number}" for number in range(count))),
        tuple(times or (1.0,) * count),
        tuple(weights or (1.0,) * count),
    )


def compared(chosen_PD: np.ndarray, rejected_PD: np.ndarray, **fields: Any) -> list[dict[str, Any]]:
    """Return comparisons as JSON, with a list of values for each further field."""
    extra = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
    return [
        {"chosen": embedded(chosen), "rejected": embedded(rejected), **more}
        for chosen, rejected, more in zip(chosen_PD, rejected_PD, extra or [{}] * len(chosen_PD), strict=True)
    ]


def embedded(vector_D: np.ndarray) -> dict[str, Any]:
    return {"embedding": Encoded.of(vector_D).model_dump()}


def candidates(emb_ND: np.ndarray) -> dict[str, Any]:
    return {"embeddings": Encoded.of(emb_ND).model_dump()}


ANN = Key("default", "ann")
