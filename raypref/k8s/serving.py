"""Serve configurations: unknown keys, which Serve drops in silence, and what a service needs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from raypref.errors import ConfigError
from raypref.k8s.documents import load
from raypref.k8s.objects import Build, Cluster, Finding, amount, at, clusters
from raypref.k8s.runtime import LOGIN
from raypref.serve.config_file import BUILDER, parse_serve_config

PATH = "spec.serveConfigV2"
ALWAYS = ("Ingress", "Scorer")
KINDS = {"cpu": ("num_cpus", 1), "nvidia.com/gpu": ("num_gpus", 0)}
"""Resources of a container, what a replica asks of them, and how much unless it says."""


def check_text(text: str) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a Serve configuration by itself, as (rule, message)."""
    try:
        config = parse_serve_config(load(text), [], "serveConfigV2")
    except ConfigError as error:
        yield "serve-config", str(error)
        return
    for application in config.applications:
        if not _imports(application.import_path):
            yield "import-path", f"{application.import_path}: cannot be imported here."
    for login in LOGIN.findall(text):
        yield "secret-in-env", f"{login}: a password; the store takes it from PGPASSWORD, of a Secret."


def _imports(path: str) -> bool:
    """Return whether Serve will find what a path names: module:name, or module.name."""
    module, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    try:
        node: Any = import_module(module)
        for part in name.split("."):
            node = getattr(node, part)
    except Exception:  # a module may raise anything
        return False
    return True


def services(build: Build) -> Iterator[Finding]:
    """A RayService's configuration is right, is the reviewed text, and has its replicas, bounds and room."""
    for cluster in clusters(build):
        if cluster.owner.get("kind") != "RayService":
            continue
        text = str(at(cluster.owner, PATH, ""))
        problems = list(check_text(text))
        if not any(rule == "serve-config" for rule, _ in problems):
            if build.serve_texts and text not in build.serve_texts.values():
                problems.append(("serve-text", _difference(text, build.serve_texts)))
            config = load(text)
            problems += _replicas(config, cluster)
            yield from _listening(build, cluster, at(config, "http_options.port", 8000))
        for rule, message in problems:
            yield build.finding(cluster.owner, PATH, message, rule)


def _replicas(config: dict[str, Any], cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Yield deployments of too few replicas, of queues without end, and what the workers have no room for."""
    needs = {kind: [0.0] for kind in KINDS}
    for application in config["applications"]:
        held: dict[str, dict[str, Any]] = {one["name"]: one for one in application.get("deployments") or []}
        if application["import_path"] == BUILDER:
            needed = (*ALWAYS, "Embedder") if at(application, "args.embed") else ALWAYS
            held = {name: {} for name in needed} | held
        for name, one in held.items():
            least = _least(one)
            if least < 2:
                yield "min-replicas", f"{name}: say min_replicas of 2 or more: one may die."
            if (one.get("max_queued_requests") or -1) < 0:
                yield "queue-bound", f"{name}: say max_queued_requests: the queue has no end otherwise."
            for kind, (option, default) in KINDS.items():
                given = at(one, f"ray_actor_options.{option}")
                each = float(default if given is None else given)
                needs[kind] += [each] * least
                if each > max((amount(group, kind) for _, group in cluster.groups()), default=0.0):
                    yield "cpus-fit", f"{name}: {option} of {each:g} is more than a worker has."
    for kind, (option, _) in KINDS.items():
        room = sum(
            group.get("maxReplicas", 0) * group.get("numOfHosts", 1) * amount(group, kind)
            for _, group in cluster.groups()
        )
        if sum(needs[kind]) > room:
            yield (
                "cpus-fit",
                f"the fewest replicas take {option} of {sum(needs[kind]):g}, all workers have {room:g}.",
            )


def _least(deployment: dict[str, Any]) -> int:
    scaling = deployment.get("autoscaling_config")
    given = deployment.get("num_replicas")
    if scaling is not None or given == "auto":
        return int(at(scaling, "min_replicas", 1))
    return 1 if given is None else int(given)


def _listening(build: Build, cluster: Cluster, port: int) -> Iterator[Finding]:
    for path, group in cluster.groups():
        named = {
            one.get("name"): one.get("containerPort")
            for one in at(group, "template.spec.containers.0.ports") or []
        }
        if named.get("serve") != port:
            message = f"name the port on which Serve listens: {{name: serve, containerPort: {port}}}."
            where = f"{path}.template.spec.containers.0.ports"
            yield build.finding(cluster.owner, where, message, "serve-port")


def _difference(text: str, texts: dict[str, str]) -> str:
    """Say where a text leaves the one that it is most like."""
    lines = text.splitlines()

    def alike(other: str) -> int:
        pairs = zip(lines, other.splitlines(), strict=False)
        return next((number for number, (one, two) in enumerate(pairs) if one != two), len(lines))

    file = max(texts, key=lambda name: alike(texts[name]))
    return f"is none of the Serve configurations; from line {alike(texts[file]) + 1} it differs from {file}."


RULES = (services,)
