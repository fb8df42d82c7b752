from __future__ import annotations

import copy
from functools import cache

import pytest

from raypref.k8s.check import RULES, judge
from raypref.k8s.kustomize import Manifest, build
from raypref.k8s.objects import Build, at
from raypref.k8s.schema import RULE as SCHEMA
from raypref.k8s.schema import Schemas
from raypref.serve.launch import SERVE as SERVE_ENVIRONMENT
from raypref.serve.launch import THROUGHPUT
from tests.k8s.conftest import REPOSITORY, crds
from tests.k8s.faults import jobs, lifecycle, operator, reliability, security, serving
from tests.k8s.faults.seeding import HEAD, SERVICE, WORKER, Faults, Mutation, the

SERVE_TEXTS = {path.name: path.read_text() for path in (REPOSITORY / "serve_configs").glob("*.yaml")}

FAULTS: Faults = {
    f"{theme.__name__.rpartition('.')[2]}: {name}": fault
    for theme in (operator, lifecycle, security, reliability, serving, jobs)
    for name, fault in theme.FAULTS.items()
}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


@cache
def built(folder: str) -> list[Manifest]:
    return build(REPOSITORY / "k8s" / folder)


def mutated(folder: str, mutate: Mutation) -> Build:
    objects = copy.deepcopy(built(folder))
    mutate(objects)
    return Build("here", objects, SERVE_TEXTS, objects)


@pytest.mark.parametrize("folder", sorted({folder for folder, *_ in FAULTS.values()}))
def test_without_a_fault_nothing_is_found(folder: str) -> None:
    assert judge(mutated(folder, lambda objects: None), crds() or {}) == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_caught_by_its_own_rule(fault: str, request: pytest.FixtureRequest) -> None:
    folder, mutate, rule, message = FAULTS[fault]
    schemas: Schemas = request.getfixturevalue("schemas") if rule == SCHEMA else crds() or {}
    found = judge(mutated(folder, mutate), schemas)
    own = [finding for finding in found if finding.rule == rule]
    assert any(message in str(finding) for finding in own), found
    # A Serve configuration that is changed in the RayService alone is no longer the reviewed text.
    allowed = {rule, "serve-text"} if mutate.__qualname__.startswith("serve_text") else {rule}
    assert {finding.rule for finding in found} <= allowed, found


def test_there_is_a_fault_for_every_rule() -> None:
    idle = set(RULES)
    for folder, mutate, *_ in FAULTS.values():
        one = mutated(folder, mutate)
        idle -= {rule for rule in idle if any(True for _ in rule(one))}
    assert idle == set()


def test_workers_have_the_environment_that_serve_wants() -> None:
    for path in (HEAD, WORKER):
        given = at(the(built(SERVICE), "RayService"), f"{path}.template.spec.containers.0.env")
        assert {one["name"]: one["value"] for one in given} == THROUGHPUT | SERVE_ENVIRONMENT
