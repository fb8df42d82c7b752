"""What the RayJobs run, run: their entrypoints and runtime environments, on a head and a worker."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raypref.checkpoint import Bundle
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.k8s.kustomize import Manifest, build
from raypref.k8s.objects import at, of_kind
from tests.k8s.cluster import REPOSITORY, LocalCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

USERS, QUESTIONS = 24, 30
PLACES = ("by the sea.", "in the hills!", "with friends.", "all alone?", "in the rain.", "at noon.")
TEXTS = [f"{what} {where}" for what in ("A quiet evening", "A loud party", "A long walk") for where in PLACES]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return build(REPOSITORY / "k8s/base/jobs")


@pytest.fixture(scope="module")
def jobs(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The RayJobs by their command."""
    return {job["metadata"]["labels"]["raypref.io/command"]: job for job in of_kind(manifests, "RayJob")}


def comparisons() -> pa.Table:
    """Users of two tastes, each asked about most questions; few enough that a worker has no held-out ones."""
    draw = random.Random(7)
    asked = [draw.sample(range(len(TEXTS)), 2) for _ in range(QUESTIONS)]
    rows: list[dict[str, Any]] = []
    for user in range(USERS):
        for number in draw.sample(range(QUESTIONS), 20):
            chosen, rejected = sorted(asked[number], reverse=user % 2 == 0)
            row = {"user_id": f"user-{user}", "prompt": f"What shall we do, {number}?"}
            rows.append(row | {"chosen": TEXTS[chosen], "rejected": TEXTS[rejected]})
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, manifests: list[Manifest], jobs: dict[str, Manifest]
) -> Iterator[LocalCluster]:
    """A head without CPUs and a worker with four, and the run of the manifests, but shorter."""
    app = tmp_path_factory.mktemp("app")
    [config_map] = of_kind(manifests, "ConfigMap")
    run = yaml.safe_load(config_map["data"]["run.yaml"])
    run["method"]["recipe"] = {"steps": 40, "users_per_step": 8}
    run["sweep"]["trials"] = 1
    for folder in ("config", "runs"):
        (app / folder).mkdir()
    (app / "config/run.yaml").write_text(yaml.safe_dump(run))
    pq.write_table(comparisons(), app / "runs/comparisons.parquet")
    cluster = LocalCluster(app, at(jobs["train"], "spec.rayClusterSpec"))
    try:
        cluster.start(workers=1)
        yield cluster
    finally:
        cluster.stop()


def test_whoever_has_no_token_is_refused(cluster: LocalCluster) -> None:
    assert cluster.get("/api/jobs/").status_code == 200
    assert cluster.get("/api/jobs/", token="0" * 64).status_code == 403
    refused = cluster.run(
        ["ray", "job", "submit", f"--address={cluster.dashboard}", "--", "true"], 60, RAY_AUTH_TOKEN="0" * 64
    )
    assert refused.returncode
    assert "InvalidAuthToken" in refused.stdout + refused.stderr or "token" in refused.stdout + refused.stderr


def test_embed_train_sweep_and_adapt_run_as_their_manifests_say(
    cluster: LocalCluster, jobs: dict[str, Manifest]
) -> None:
    for command in ("embed", "prepare", "train", "sweep", "adapt"):
        done = cluster.submit(jobs[command])
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    home = cluster.app / "runs/preferences"
    assert len(ItemTable.open(home / "items")) == 2 * QUESTIONS
    bundle = Bundle.load(home / "bundle")
    assert bundle.info.method.type == "vrf"
    assert bundle.info.steps == 40
    trials = (home / "sweep/trials.txt").read_text()
    assert trials.count("finished") == 1, trials
    users = pa.concat_tables(pq.read_table(part) for part in (home / "users").rglob("*.parquet"))
    kept = len(Tables.open(home / "tables").rows)
    assert users.num_rows == len(set(users["user_id"].to_pylist())) == kept > USERS // 2


def test_a_job_that_fails_says_so(cluster: LocalCluster, jobs: dict[str, Manifest]) -> None:
    job = jobs["train"] | {
        "spec": jobs["train"]["spec"] | {"entrypoint": "python jobs/train.py -c config/no.yaml"}
    }
    failed = cluster.submit(job)
    assert failed.returncode
    assert "config/no.yaml" in failed.stdout
