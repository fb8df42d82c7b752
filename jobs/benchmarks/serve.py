"""What serving costs: beside a Ray Serve application that does nothing, and within one large request.

    python jobs/benchmarks/serve.py [--quick] [--out FOLDER]

Both applications run side by side in one Serve, with the same replicas, in throughput mode; load alternates
between them, and a figure is the median of its rounds. Load comes from wrk (`apt-get install wrk`), which
draws users and ids in Lua. `--baseline` takes what an older `serve_bulk.py` printed, to stand beside the
large request's figures; without it the one that is recorded stays. Run it on an idle machine.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import yaml
from recording import options, parse, save, spread, surroundings, told

FILE = "serve.json"
COMMAND = "python jobs/benchmarks/serve.py"
WIDTH = 384
CANDIDATES = 8
READY_S = 180.0
STOP_S = 90.0
TARGETS = {"score": 0.7, "learn": 0.4}

LUA = """
local kind, prefix, before, after, seed = os.getenv("KIND"), os.getenv("PREFIX"), nil, nil, nil
local sent = 0
function init(args)
  local file = io.open(os.getenv("BODY")); local body = file:read("*a"); file:close()
  local cut = body:find("@@", 1, true)
  before, after = body:sub(1, cut - 1), body:sub(cut + 2)
  seed = os.getenv("SEED"); math.randomseed(tonumber(seed))
end
function request()
  local user = "user-" .. math.random(0, tonumber(os.getenv("USERS")) - 1)
  sent = sent + 1
  local path, id = prefix .. "/v1/score", user
  if kind == "learn" then
    path, id = prefix .. "/v1/users/" .. user .. "/comparisons", "e" .. seed .. "-" .. sent
  end
  return wrk.format("POST", path, {["content-type"] = "application/json"}, before .. id .. after)
end
function done(summary, latency, requests)
  local bad = summary.errors
  io.write(string.format('FOUND {"requests": %d, "seconds": %.6f, ' ..
    '"p50_ms": %.3f, "p99_ms": %.3f, "failed": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    bad.status + bad.connect + bad.read + bad.write + bad.timeout))
end
"""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    users: int
    rounds: int
    round_s: int
    connections: int
    widths: tuple[int, ...]
    bulk_users: int
    repeats: int


FULL = Plan(users=1000, rounds=5, round_s=8, connections=32, widths=(384, 4096), bulk_users=1000, repeats=31)
QUICK = Plan(users=100, rounds=2, round_s=1, connections=32, widths=(384,), bulk_users=100, repeats=3)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write down."""
    parser = options(__doc__, FILE)
    parser.add_argument("--baseline", type=Path, help="what an older serve_bulk.py printed")
    given = parse(parser, arguments)
    if shutil.which("wrk") is None:
        parser.error("wrk makes the load: apt-get install wrk")
    signal.signal(signal.SIGTERM, _stop)
    file = given.out / FILE
    plan = QUICK if given.quick else FULL
    before = json.loads(given.baseline.read_text()) if given.baseline else _recorded(file)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "command": "python jobs/benchmarks/serve.py",
            **_surroundings(plan),
            **_load(plan, Path(folder)),
        }
    found["bulk"] = _bulk(plan, before)
    save(file, found)
    print(json.dumps({name: found[name] for name in ("score", "learn")}, indent=1))
    print(f"written to {file}")
    return 0


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _recorded(file: Path) -> list[dict[str, Any]] | None:
    return json.loads(file.read_text())["bulk"]["before"] if file.is_file() else None


def _surroundings(plan: Plan) -> dict[str, Any]:
    return {
        **surroundings("ray", "torch", "numpy", "pydantic", "fastapi", "orjson"),
        "config": {
            **vars(plan),
            "width": WIDTH,
            "candidates": CANDIDATES,
            "method": "vrf",
            "store": "SQLite, one commit of the write-ahead log synced for each batch of comparisons",
            "replicas": "one ingress, one worker behind it, each application; load on the same machine",
            "throughput_mode": True,
        },
    }


def _load(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return the figures of both applications under load."""
    from serve_bulk import fill, write_bundle

    from raypref.methods.vrf import VRFConfig

    bundle = write_bundle(folder / f"bundle-{WIDTH}", VRFConfig(), WIDTH)
    store = f"sqlite:///{folder / 'users.db'}"
    asyncio.run(fill(bundle, store, plan.users))
    bodies = _bodies(folder)
    (folder / "load.lua").write_text(LUA)
    found: dict[str, Any] = {"fsync_per_s": _fsyncs(folder)}
    with _serving(folder, bundle, store) as port:
        for kind in ("score", "learn"):
            for prefix in ("", "/nothing"):
                _wrk(
                    plan,
                    folder,
                    port,
                    kind,
                    prefix,
                    bodies[kind],
                    plan.connections,
                    max(1, plan.round_s // 2),
                )
            found[kind] = _beside(plan, folder, port, kind, bodies[kind], plan.connections, plan.round_s)
            holds = found[kind]["ratio"]["median"] >= TARGETS[kind]
            found[kind] |= {"target": TARGETS[kind], "holds": holds}
        found["low_load"] = {
            kind: _beside(plan, folder, port, kind, bodies[kind], 1, max(1, plan.round_s // 4))
            for kind in ("score", "learn")
        }
        found["client"] = _client(plan, port)
    return found


def _bodies(folder: Path) -> dict[str, Path]:
    """Write the requests' bodies, with @@ where the load puts the user or the comparison's id."""
    random = np.random.default_rng(0)

    def item() -> dict[str, Any]:
        data = random.standard_normal(WIDTH).astype("<f4").tobytes()
        return {"embedding": {"base64": base64.b64encode(data).decode()}}

    bodies = {
        "score": {"user": "@@", "candidates": [item() for _ in range(CANDIDATES)]},
        "learn": {"comparisons": [{"event_id": "@@", "chosen": item(), "rejected": item()}]},
    }
    for kind, body in bodies.items():
        (folder / f"{kind}.json").write_text(json.dumps(body))
    return {kind: folder / f"{kind}.json" for kind in bodies}


def _fsyncs(folder: Path) -> float:
    """Return how often a second 4 KiB can be appended and synced where the store is."""
    with (folder / "synced").open("wb") as file:
        begun_s, count = time.perf_counter(), 0
        while time.perf_counter() - begun_s < 1.0:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            count += 1
    return count / (time.perf_counter() - begun_s)


@contextmanager
def _serving(folder: Path, bundle: Path, store: str) -> Generator[int]:
    """Run both applications in one Serve, and yield their port; nothing is left behind."""
    port = _free_port(8200)

    def deployments(front: str, worker: str) -> list[dict[str, Any]]:
        one = {"min_replicas": 1, "max_replicas": 1}
        return [
            {"name": name, "autoscaling_config": one, "ray_actor_options": {"num_cpus": 0.4}}
            for name in (front, worker)
        ]

    config = {
        "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": 60},
        "logging_config": {"encoding": "JSON", "log_level": "INFO", "enable_access_log": False},
        "applications": [
            {
                "name": "raypref",
                "route_prefix": "/",
                "import_path": "raypref.serve.app:build",
                "args": {"bundle": str(bundle), "store": store, "open": True},
                "deployments": deployments("Ingress", "Scorer"),
            },
            {
                "name": "nothing",
                "route_prefix": "/nothing",
                "import_path": "serve_nothing:build",
                "args": {},
                "deployments": deployments("Front", "Worker"),
            },
        ],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # HAProxy's own ports and files, so that another service on the machine does not matter.
    for name, value in (("METRICS_PORT", _free_port(port + 1)), ("STATS_PORT", _free_port(port + 2))):
        environment[f"RAY_SERVE_HAPROXY_{name}"] = str(value)
    environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"] = str(folder / "haproxy" / "haproxy.cfg")
    environment["RAY_SERVE_HAPROXY_SOCKET_PATH"] = str(folder / "haproxy" / "admin.sock")
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-m", "raypref", "serve", str(folder / "serve.yaml")]
    log = folder / "serve.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C comes to us, and it is we who stop the service, in order.
        service = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, env=environment, start_new_session=True
        )
        try:
            deadline_s = time.monotonic() + READY_S
            while b"listening" not in log.read_bytes():
                if service.poll() is not None or time.monotonic() > deadline_s:
                    raise RuntimeError(f"the service did not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            yield port
        finally:
            service.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    service.wait(STOP_S)
            finally:
                # Too slow, or Ctrl-C once more: then by force.
                if service.poll() is None:
                    os.killpg(service.pid, signal.SIGKILL)
                    service.wait()


def _free_port(first: int) -> int:
    """Return a port from `first` on, below those that Ray's workers draw."""
    for port in range(first, 9000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"no free port between {first} and 9000")


def _beside(
    plan: Plan, folder: Path, port: int, kind: str, body: Path, connections: int, seconds: int
) -> dict[str, Any]:
    """Alternate load between both applications, and return both and the ratio of each pair of rounds."""
    rounds: dict[str, list[dict[str, float]]] = {"raypref": [], "nothing": []}
    for _ in range(plan.rounds):
        for name, prefix in (("raypref", ""), ("nothing", "/nothing")):
            rounds[name].append(_wrk(plan, folder, port, kind, prefix, body, connections, seconds))
    found: dict[str, Any] = {
        name: {figure: spread([one[figure] for one in own]) for figure in ("per_s", "p50_ms", "p99_ms")}
        for name, own in rounds.items()
    }
    pairs = zip(rounds["raypref"], rounds["nothing"], strict=True)
    found["ratio"] = spread([ours["per_s"] / theirs["per_s"] for ours, theirs in pairs])
    found["connections"] = connections
    return found


def _wrk(
    plan: Plan, folder: Path, port: int, kind: str, prefix: str, body: Path, connections: int, seconds: int
) -> dict[str, float]:
    """Load one application for some seconds.

    Raises:
        RuntimeError: a response was not 2xx, or a connection failed.
    """
    environment = {
        **os.environ, "KIND": kind, "PREFIX": prefix, "BODY": str(body), "USERS": str(plan.users),
        "SEED": str(time.time_ns() // 1000 % 2**40),
    }  # fmt: skip
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", "load.lua"]
    command.append(f"http://127.0.0.1:{port}")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    found = told(done.stdout)
    if found["failed"] or not found["requests"]:
        raise RuntimeError(f"{kind} {prefix}: not every request was answered 2xx:\n{done.stdout}")
    return {**found, "per_s": found["requests"] / found["seconds"]}


def _client(plan: Plan, port: int) -> dict[str, float]:
    """Return the requests per second of one thread with the client library."""
    from raypref.client import Client

    random = np.random.default_rng(1)
    emb_ND = random.standard_normal((CANDIDATES, WIDTH)).astype(np.float32)
    seconds: list[float] = []
    with Client(f"http://127.0.0.1:{port}") as client:
        client.score(emb_ND, user="user-0")
        begun_s = time.perf_counter()
        while time.perf_counter() - begun_s < plan.round_s:
            sent_s = time.perf_counter()
            client.score(emb_ND, user=f"user-{random.integers(plan.users)}")
            seconds.append(time.perf_counter() - sent_s)
    p50_ms, p99_ms = (1e3 * float(np.percentile(seconds, share)) for share in (50, 99))
    return {"score_per_s": 1.0 / float(np.mean(seconds)), "p50_ms": p50_ms, "p99_ms": p99_ms}


def _bulk(plan: Plan, before: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Return where the time of one large request goes, then and now, and what the machine allows at best."""
    from serve_bulk import CANDIDATES as BULK_CANDIDATES
    from serve_bulk import limits, measure

    now = measure(plan.widths, plan.bulk_users, plan.repeats)
    then = {(one["method"], one["width"], one["form"]): one["outside_ms"] for one in before or ()}
    for one in now:
        key = one["method"], one["width"], one["form"]
        one["outside_shrunk"] = then[key] / one["outside_ms"] if key in then else None
    return {
        "request": f"{plan.bulk_users} users, {BULK_CANDIDATES} candidates each, users in SQLite, one thread",
        "clock": "CPU time of the process: one thread works at a time, and neighbours do not count",
        "limits": limits(),
        "before": before,
        "now": now,
    }


if __name__ == "__main__":
    sys.exit(main())
