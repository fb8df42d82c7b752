"""Federated training of a run: rounds on a pool of actors, resumed after the last closed one."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raypref import files
from raypref.checkpoint import BUNDLE_USERS_SCHEMA, Bundle, BundleInfo, build, library_versions
from raypref.cluster import connected
from raypref.config import FederatedConfig, RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError
from raypref.federated.phases import Transport
from raypref.federated.pool import Pool
from raypref.federated.privacy import SECRET_BYTES
from raypref.federated.rounds import Round, federate
from raypref.federated.server import Server, require_covered
from raypref.train.log import MetricsLog, progress
from raypref.train.session import SCALE_SAMPLE
from raypref.train.trackers import open_trackers, require_trackers
from raypref.types import Dims

SECRET = "secret"
"""Who reads this file can take the noise off the model."""

KEPT = 2
"""Closed rounds whose state stays on disk."""


def run(config: RunConfig) -> BundleInfo:
    """Train the configured method with every seen user as a client, and write its bundle.

    The same configuration over the same tables continues after the last closed round, with the same result.
    The centre and scale of embeddings come from the items, which say nothing of users.

    Raises:
        InputError: the tables are missing or hold no seen user, or no client of a round came through.
        MismatchError: items and comparisons are of different embedders.
        ConfigError: the method cannot be trained under the privacy that is asked for, or a GPU is asked for,
            or a tracker is missing or does not start.
    """
    require_trackers(config.train.trackers, "train.trackers")
    if config.train.use_gpu:
        raise ConfigError("train.use_gpu: clients train on CPUs; leave it out.")
    config = config.absolute()
    tables = Tables.open(config.tables_dir)
    items = ItemTable.open(config.items_dir).with_prompts(config.method.needs_prompts)
    tables.require_items(items)
    if tables.metadata.seen_users == 0:
        raise InputError(f"{config.tables_dir}: no seen users to train on; lower prepare.unseen_share.")
    require_covered(config.federated, build(config.method, Dims(items.width, 1)))
    directory = run_directory(config, tables)
    directory.mkdir(parents=True, exist_ok=True)
    cpus = math.ceil(config.train.most_workers * config.train.cpus_per_worker)
    with (
        connected(cpus),
        progress(directory, config.federated.rounds),
        closing(Pool(config, tables, directory / "clients")) as pool,
    ):
        secret = secret_of(directory) if config.federated.privacy else b""
        server = started(config, items, pool, secret)
        for _ in closed(server, pool, config, directory):
            pass
    bundle = finished(config, server, tables)
    bundle.save(config.bundle_dir)
    return bundle.info


def run_directory(config: RunConfig, tables: Tables) -> Path:
    """Return where the rounds, the metrics and the clients' own state of a federated run stand."""
    training = config.train.model_dump(mode="json", include={"seed", "precision"})
    federated = config.federated.model_dump(mode="json", exclude={"deadline_s"})
    method = config.method.model_dump(mode="json")
    identity = json.dumps([method, training, federated, tables.metadata.fingerprint])
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return config.dir / "train" / f"{config.method.type}-federated-{digest}"


def secret_of(directory: Path) -> bytes:
    """Return the secret of a run, which its noise is drawn from; made where there is none yet."""
    path = directory / SECRET
    if not path.is_file():
        files.write_bytes(path, os.urandom(SECRET_BYTES), 0o600)
    return path.read_bytes()


def started(config: RunConfig, items: ItemTable, transport: Transport, secret: bytes = b"") -> Server:
    """Return the server before its first round.

    Raises:
        ConfigError: see `Server`.
    """
    model = build(config.method, Dims(items.width, 1), config.train.seed)
    model.fit_scale(torch.from_numpy(items.sample(SCALE_SAMPLE, config.train.seed)))
    return Server(model, transport.clients(), config.federated, config.train.seed, secret)


def closed(server: Server, transport: Transport, config: RunConfig, directory: Path) -> Iterator[Round]:
    """Run the rounds that are left after the last one on disk; yield each when it is there."""
    rounds = directory / "rounds"
    states = sorted(rounds.glob("round-*"))
    if states:
        server.load(states[-1])
    parameters = config.model_dump(mode="json")
    trackers = open_trackers(config.train.trackers, config.dir, directory.name, parameters)
    with closing(MetricsLog(directory, server.round, trackers)) as log:
        for done in federate(server, transport, config.federated, directory.name):
            server.save(rounds / f"round-{done.round:07d}")
            for old in sorted(rounds.glob("round-*"))[:-KEPT]:
                shutil.rmtree(old)
            log.write("round", done.round, figures(done))
            yield done


def figures(done: Round) -> dict[str, float]:
    """Return a round as a line of metrics."""
    found: dict[str, float] = {
        "sampled": done.sampled,
        "counted": len(done.found.clients),
        "failed": done.failed,
        "late": done.late,
        "step_norm": done.step,
        "bytes_down": done.found.traffic.down,
        "bytes_up": done.found.traffic.up,
        "bytes_vectors": done.found.traffic.vectors,
        "seconds": done.seconds,
        "clients_per_s": len(done.found.clients) / max(done.seconds, 1e-9),
    }
    if done.found.losses:
        found["loss"] = statistics.fmean(done.found.losses)
    if math.isfinite(done.epsilon):
        found["epsilon"] = done.epsilon
    return found


def finished(config: RunConfig, server: Server, tables: Tables) -> Bundle:
    """Return the bundle of a server: its model, and the vectors that clients last told it.

    What a method derives from comparisons when it settles is left at its start: there are none here. How
    many comparisons a client has is written where it told, else 0.
    """
    known = tables.users.take(pa.array(server.known.client_C.numpy()))
    counts = known["train"] if tells_size(config.federated) else pa.array(np.zeros(len(known), np.int32))
    users = pa.table(
        {
            "user_id": known["user_id"],
            "row": known["row"],
            "comparisons": counts,
            "vector": pa.array(list(server.known.vector_CZ.numpy()), pa.list_(pa.float32())),
        },
        schema=BUNDLE_USERS_SCHEMA,
    )
    info = BundleInfo(
        method=config.method,
        dim=server.model.dims.embedding,
        users=len(server.clients_N),
        federated=True,
        embedder=tables.metadata.embedder,
        data_fingerprint=tables.metadata.fingerprint,
        steps=server.round * config.federated.local_steps,
        metrics={},
        versions=library_versions(),
    )
    return Bundle(server.model, info, users)


def tells_size(config: FederatedConfig) -> bool:
    """Return whether clients tell how many comparisons they have; masked, their weights do not either."""
    return config.weights == "size" and not config.masking
