"""Alert rules and dashboard: they hold what they promise, of figures that a running service really has."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from raypref.k8s.kustomize import build
from tests.conftest import REPOSITORY
from tests.serve.chaos.service import RealService
from tests.serve.local import candidates, compared
from tests.serve.stores.conftest import running
from tests.serve.stores.servers import Redis
from tests.serve.world import DIM, make_bundle, some

FOLDER = REPOSITORY / "k8s/monitoring"
GROUPS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "raypref.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GRAFANA = {"$namespace": ".*", "$__rate_interval": "5m"}

SELECTED = re.compile(r"\b(ray_(?!io_)\w+|raypref:[\w:]+)(?:\{([^}]*)\})?")
MATCHED = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')
GROUPED = re.compile(r"\b(?:by|on|without)\s*\(([^)]*)\)")
LABELS_OF_SCRAPE = {"namespace", "pod", "ray_io_cluster"}
"""What Prometheus adds to a figure: where it was read."""


def promtool(*args: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is not installed; apt-get install prometheus")
        pytest.skip("promtool is not installed; apt-get install prometheus")
    done = subprocess.run([program, *args], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard_exprs() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            expr: str = target["expr"]
            for name, value in GRAFANA.items():
                expr = expr.replace(name, value)
            yield expr


def exprs() -> list[str]:
    return [rule["expr"] for rule in RULES] + list(dashboard_exprs())


def test_the_rules_are_rules() -> None:
    promtool("check", "rules", "--lint-fatal", "alerts.yaml")


@pytest.mark.slow
def test_alerts_fire_on_what_is_sick_and_on_nothing_else() -> None:
    promtool("test", "rules", "alerts_test.yaml")


def test_every_alert_is_tested_and_says_what_to_do() -> None:
    tested = {
        case["alertname"]
        for test in yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    }
    assert tested == {alert["alert"] for alert in ALERTS}
    assert len(tested) == len(ALERTS)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert re.fullmatch(r"\d+[mh]", alert["for"])
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}


def test_every_alert_has_its_place_in_the_runbook() -> None:
    headings = re.findall(r"^#+ (.*)$", (REPOSITORY / "docs/operations.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"): heading for heading in headings}
    for alert in ALERTS:
        address, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert address.endswith("/docs/operations.md")
        assert alert["alert"] in anchors[anchor]


def test_the_queue_is_long_before_it_is_full() -> None:
    (expr,) = (alert["expr"] for alert in ALERTS if alert["alert"] == "RayprefQueueLong")
    (long,) = map(int, re.findall(r"ray_raypref_in_flight\[5m\]\)\) > (\d+)", expr))
    production = yaml.safe_load((REPOSITORY / "serve_configs/production.yaml").read_text())
    full = production["applications"][0]["args"]["limits"]["max_in_flight"]
    assert 0.7 * full < long < 0.9 * full


def test_the_operator_gets_the_same_rules() -> None:
    rule, dashboard = sorted(build(FOLDER), key=lambda found: found["kind"], reverse=True)
    assert (rule["kind"], rule["apiVersion"]) == ("PrometheusRule", "monitoring.coreos.com/v1")
    assert rule["spec"] == {"groups": GROUPS}
    assert dashboard["kind"] == "ConfigMap"
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(dashboard["data"]["raypref.json"]) == DASHBOARD


def test_the_dashboard_is_one() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    assert DASHBOARD["schemaVersion"] >= 39
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
    titles = [panel["title"] for panel in PANELS]
    assert len(set(titles)) == len(titles)
    for panel in PANELS:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["legendFormat"]
            assert "$namespace" in target["expr"]
            assert set(re.findall(r"\$\w+", target["expr"])) <= set(GRAFANA)


def test_every_expression_of_the_dashboard_parses(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(dashboard_exprs())]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_what_is_recorded_is_what_is_asked_for() -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    asked = {name for expr in exprs() for name, _ in SELECTED.findall(expr) if name.startswith("raypref:")}
    assert asked == recorded


Figures = dict[str, set[str]]
"""Labels of each figure, by its name in Prometheus."""


def scrape(url: str, into: Figures) -> None:
    for line in httpx.get(url, timeout=10).text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.partition("{")
            into.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Figures]:
    """What a service shows Prometheus that was used, lost a replica and its store."""
    folder = tmp_path_factory.mktemp("monitored")
    with running(Redis) as store:
        assert isinstance(store, Redis)
        service = RealService(
            folder / "service", make_bundle(folder / "taste"), store=store.new_url(), store_timeout_s=1
        )
        try:
            service.start()
            (address,) = re.findall(r"http://\S+/metrics", service.output())
            service.await_answer("/readyz", 200)
            with httpx.Client(base_url=service.url, timeout=60) as client:
                score = {"candidates": candidates(some(1, 5, DIM)), "users": ["ann", "ben"]}
                learned = {"comparisons": compared(some(1, 2, DIM), some(2, 2, DIM))}
                client.post("/v1/users/ann/comparisons", json=learned).raise_for_status()
                service.replicas("Scorer")[0].kill()
                client.post("/v1/score", json=score).raise_for_status()
                store.kill()
                found: Figures = {}
                wanted = names_of_ray()
                deadline_s = time.monotonic() + 60
                # Ray hands figures on every few seconds; a gauge only where it was set in between.
                while wanted - found.keys() and time.monotonic() < deadline_s:
                    client.post("/v1/score", json=score)
                    scrape(address, found)
                    time.sleep(0.2)
            yield found
        finally:
            service.stop()


def names_of_ray() -> set[str]:
    return {name for expr in exprs() for name, _ in SELECTED.findall(expr) if name.startswith("ray_")}


@pytest.mark.ray
@pytest.mark.server
@pytest.mark.slow
def test_a_running_service_has_every_figure_and_label_that_is_asked_for(exported: Figures) -> None:
    assert names_of_ray() - exported.keys() == set()
    labels: set[str] = set()
    for expr in exprs():
        for name, matchers in SELECTED.findall(expr):
            if name.startswith("ray_"):
                assert set(MATCHED.findall(matchers)) <= exported[name] | LABELS_OF_SCRAPE, expr
                labels |= exported[name]
    for expr in exprs():
        asked = {label.strip() for group in GROUPED.findall(expr) for label in group.split(",")}
        assert asked <= labels | LABELS_OF_SCRAPE, expr
