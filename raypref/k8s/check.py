"""`raypref check PATH…`: manifests and Serve configurations, before they meet a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raypref.k8s import jobs, lifecycle, operator, reachable, reliability, runtime, security, serving
from raypref.k8s.objects import Build, Finding
from raypref.k8s.schema import Schemas, check_schema
from raypref.k8s.walking import walk

Rule = Callable[[Build], Iterator[Finding]]

RULES: tuple[Rule, ...] = (
    *operator.RULES,
    *lifecycle.RULES,
    *security.RULES,
    *reachable.RULES,
    *reliability.RULES,
    *serving.RULES,
    *jobs.RULES,
    *runtime.RULES,
)
"""All rules but the schemas; each yields findings of one build."""

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass
class Checked:
    """What was looked at, and what was found."""

    findings: list[Finding] = field(default_factory=list)
    objects: dict[str, int] = field(default_factory=dict)
    """Number of objects by file or kustomization; a Serve configuration is one."""


def check(paths: Sequence[Path], schemas: Schemas) -> Checked:
    """Check all that stands at some paths; a kustomization is built, and its files are not looked at alone.

    Args:
        paths: files, folders, or `-` for standard input.
        schemas: KubeRay's; empty: its fields are not held against them.

    Raises:
        ConfigError: a path is missing, or nothing there can be checked.
    """
    found = walk(paths)
    checked = Checked(found.findings)
    for where, text in found.serve_texts.items():
        checked.objects[where] = 1
        checked.findings += [
            Finding(where, "", "", message, rule) for rule, message in serving.check_text(text)
        ]
    beside = [one for objects in found.builds.values() for one in objects]
    for where, objects in found.builds.items():
        checked.objects[where] = len(objects)
        checked.findings += judge(Build(where, objects, found.serve_texts, beside), schemas)
    checked.findings = sorted(set(checked.findings))
    return checked


def judge(build: Build, schemas: Schemas) -> list[Finding]:
    """Hold the objects of one build against schemas and rules."""
    found: list[Finding] = []
    for rule in (lambda one: check_schema(one, schemas), *RULES):
        try:
            for finding in rule(build):  # what comes before a failure counts
                found.append(finding)
        except MALFORMED as error:
            # What is not of its form at all has a finding by its schema; without one, it has this.
            name = getattr(rule, "__name__", "rule").replace("<lambda>", "schema")
            message = f"{name} cannot be judged: a field is not of its form ({error!r:.120})."
            found.append(Finding(build.where, "", "", message, "form"))
    return found
