"""The RayService's own serveConfigV2 on its head and workers, users in PostgreSQL, Ray's state in Redis."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raypref.client import AsyncClient, Client, ClientError, Comparison, NotFound
from raypref.data.items import HASH_BYTES, write_items
from raypref.k8s.kustomize import build
from raypref.k8s.objects import at, of_kind
from raypref.serve.keys import create_key
from tests.k8s.cluster import REPOSITORY, LocalCluster
from tests.serve.chaos.load import behind
from tests.serve.stores.conftest import running
from tests.serve.stores.servers import Postgres, Redis
from tests.serve.world import DIM, embedder_of, make_bundle, some

LOG = logging.getLogger(__name__)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

URL = "http://127.0.0.1:8000"
USERS, ASKERS, PAUSE_S = 20, 6, 0.1
AWAY_S = 20.0
PASSWORD = "not-a-secret"
NAMES = [f"user-{number}" for number in range(USERS)]
BUNDLE = "runs/preferences/bundle"


@dataclass
class Service:
    """The application and what a test needs to deal with it."""

    cluster: LocalCluster
    postgres: Postgres
    text: str
    key: str

    def deploy(self, text: str) -> None:
        """Deploy a configuration; it has begun to go through."""
        self.cluster.deploy(text)

    def application(self) -> dict[str, Any]:
        """Return what the controller says of the application."""
        return self.cluster.get("/api/serve/applications/").json()["applications"]["raypref"]

    def model(self) -> str:
        """Return which bundle answers."""
        with Client(URL, self.key) as client:
            return client.models().data[0].id

    def shots(self) -> Counter[str]:
        """Return how many comparisons of each user there are."""
        with Client(URL, self.key) as client:
            return Counter({name: client.user(name).shots for name in NAMES})

    def replicas(self, deployment: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the replicas that run, are wanted or are on their way out, by id."""
        deployments = self.application()["deployments"].items()
        wanted = [one for name, one in deployments if deployment in (None, name)]
        return {replica["replica_id"]: replica for one in wanted for replica in one["replicas"]}

    def await_running(self, within_s: float = 180.0, also: Callable[[], bool] = lambda: True) -> None:
        """Wait until the application runs as it was last told to, and something else holds."""

        def settled() -> bool:
            serve = self.cluster.get("/api/serve/applications/").json()
            application = serve["applications"]["raypref"]
            parts = [*application["deployments"].values(), *serve["proxies"].values()]
            healthy = {part["status"] for part in parts} == {"HEALTHY"}
            return application["status"] == "RUNNING" and healthy and also()

        self.cluster.wait("the application runs", settled, within_s)


@dataclass
class Traffic:
    """Calls of clients, and what became of them."""

    retries: int = 0
    models: list[tuple[float, str]] = field(default_factory=list)
    """When an answer came, by the monotonic clock, and of which bundle."""
    failures: list[tuple[float, str]] = field(default_factory=list)
    astray: list[float] = field(default_factory=list)
    """When a call met a proxy that knew no route yet."""
    slowest_s: float = 0.0
    learned: Counter[str] = field(default_factory=Counter)
    degraded: int = 0

    async def run(self, key: str, stop: threading.Event) -> None:
        """Score, and learn, until stopped."""
        async with AsyncClient(URL, key, retries=self.retries) as client:
            await asyncio.gather(*(self._ask(client, number, stop) for number in range(ASKERS)))

    async def _ask(self, client: AsyncClient, number: int, stop: threading.Event) -> None:
        turn = number
        while not stop.is_set():
            user = NAMES[turn % USERS]
            begun_s = time.monotonic()
            try:
                if turn % 10 == 9:
                    pair = Comparison(*some(turn, 2, DIM))
                    await client.learn(user, [pair])
                    self.learned[user] += 1
                else:
                    scores = await client.score(some(turn, 8, DIM), user=user)
                    assert np.isfinite(scores.mean).all()
                    self.models.append((time.monotonic(), scores.model))
                    self.degraded += int(scores.degraded.sum())
            except NotFound:
                self.astray.append(time.monotonic())
            except ClientError as error:
                self.failures.append((time.monotonic(), repr(error)))
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun_s)
            turn += ASKERS
            await asyncio.sleep(PAUSE_S)

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{len(self.models)} scores, {sum(self.learned.values())} comparisons, "
            f"{len(self.failures)} failed, {len(self.astray)} astray, slowest {self.slowest_s:.2f} s"
        )


def lay_out(app: Path) -> str:
    """Put two bundles, items and a key where the manifest mounts them; return the key."""
    home = app / "runs/preferences"
    make_bundle(home / "bundle", seed=0)
    make_bundle(home / "bundle-2", seed=1)
    keys = np.arange(8, dtype=np.uint8).repeat(HASH_BYTES).tobytes()
    write_items(
        home / "items",
        embedder_of(),
        [(np.frombuffer(keys, f"V{HASH_BYTES}"), some(5, 8, DIM).astype(np.float16))],
    )
    return create_key(app / "secrets/keys.json", "me")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    app = tmp_path_factory.mktemp("app")
    key = lay_out(app)
    [rayservice] = of_kind(build(REPOSITORY / "k8s/overlays/gcs-fault-tolerance"), "RayService")
    with ExitStack() as stack:
        postgres = stack.enter_context(running(Postgres))
        postgres.execute("CREATE DATABASE raypref")
        redis = stack.enter_context(running(Redis))
        assert isinstance(redis, Redis)
        with redis.client() as client:
            client.config_set("requirepass", PASSWORD)
        secret = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(postgres.port),
            "PGUSER": "tester",
            "PGPASSWORD": "unused",
        }
        cluster = LocalCluster(
            app,
            at(rayservice, "spec.rayClusterConfig"),
            secret,
            redis=(f"127.0.0.1:{redis.port}", PASSWORD),
        )
        stack.callback(cluster.stop)
        cluster.start(workers=2)
        service = Service(cluster, postgres, at(rayservice, "spec.serveConfigV2"), key)
        service.deploy(service.text)
        service.await_running()
        with Client(URL, key) as client:
            for number, name in enumerate(NAMES):
                client.learn(name, [Comparison(*pair) for pair in some(number, 4, 2, DIM)])
        yield service


def test_it_is_what_the_manifest_says(service: Service) -> None:
    assert len({replica["node_id"] for replica in service.replicas().values()}) == 2
    with Client(URL, service.key) as client:
        assert client.models().data[0].method == "vrf"
        assert client.user("user-3").shots == 4
    assert service.postgres.execute("SELECT count(*) FROM raypref.events", "raypref") == [(4 * USERS,)]
    with Client(URL, "rp_wrong_key", retries=0) as stranger, pytest.raises(ClientError):
        stranger.models()


def test_it_is_upgraded_in_place_and_no_call_fails(service: Service) -> None:
    before, old, known, traffic = set(service.replicas()), service.model(), service.shots(), Traffic()
    with behind(lambda stop: traffic.run(service.key, stop)):
        time.sleep(3)
        # Another bundle: the Scorers swap it.
        other = service.text.replace(
            f"user_config: {{bundle: {BUNDLE}}}", f"user_config: {{bundle: {BUNDLE}-2}}"
        )
        assert other != service.text
        service.deploy(other)
        service.cluster.wait("the other bundle", lambda: traffic.models[-1][1] != old, 60)
        service.await_running()
        swapped_s = time.monotonic()
        assert set(service.replicas()) == before
        time.sleep(3)
        # Other arguments: new replicas, one after the other.
        service.deploy(other.replace("timeout_s: 30\n", "timeout_s: 29\n"))
        service.await_running(300, also=lambda: not set(service.replicas()) & before)
        rolled_s = time.monotonic()
        time.sleep(3)
    LOG.info(f"upgrades: {traffic}; replicas anew after {rolled_s - swapped_s:.0f} s")
    assert traffic.failures == []
    assert traffic.astray == []
    assert traffic.degraded == 0
    new = service.model()
    assert {model for _, model in traffic.models} == {old, new}
    assert {model for at_s, model in traffic.models if at_s > swapped_s + 1} == {new}
    assert service.shots() == known + traffic.learned


def test_the_head_dies_and_serving_goes_on(service: Service) -> None:
    """What goes on without a head, what does not, and how soon a new one makes up for it."""
    service.await_running()
    known = service.shots()
    victim = next(iter(service.replicas("Scorer").values()))
    # On Kubernetes no Service leads to the head; here its HAProxy is one of three, so a call may break, and
    # may meet the new one before that knows a route.
    traffic = Traffic(retries=10)
    with behind(lambda stop: traffic.run(service.key, stop)):
        time.sleep(3)
        service.cluster.kill("head")
        killed_s = time.monotonic()
        time.sleep(AWAY_S / 2)
        # Nobody replaces it.
        os.kill(victim["pid"], signal.SIGKILL)
        time.sleep(AWAY_S / 2)
        before = len(traffic.models)
        begun_s = time.monotonic()
        service.cluster.start_head()
        up_s = time.monotonic()
        service.await_running(also=lambda: victim["replica_id"] not in service.replicas())
        whole_s = time.monotonic()
        time.sleep(3)
    LOG.info(
        f"head away for {begun_s - killed_s:.0f} s, in which {before} scores were answered; its successor's "
        f"dashboard is up {up_s - begun_s:.1f} s after its start, the lost replica is replaced after "
        f"{whole_s - begun_s:.1f} s. In all: {traffic}"
    )
    assert traffic.failures == []
    assert all(begun_s < at_s < whole_s for at_s in traffic.astray)
    answered = [at_s for at_s, _ in traffic.models]
    # Answers came all the while; a lost connection or replica cost a moment.
    assert max(np.diff(answered)) < 5
    assert sum(killed_s < at_s < begun_s for at_s in answered) > 100
    # What was acknowledged is there, once.
    assert service.shots() == known + traffic.learned
