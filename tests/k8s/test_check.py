"""What is read, what is told apart, and what the command says."""

from __future__ import annotations

import gzip
import io
import re
import sys
from pathlib import Path

import pytest
import yaml

from raypref.cli import main
from raypref.errors import ConfigError
from raypref.k8s import schema as checking_schema
from raypref.k8s.check import check
from raypref.k8s.kustomize import build
from raypref.k8s.schema import Schemas, read_crds
from tests.k8s.conftest import REPOSITORY

OVERLAYS = (
    "cpu-small",
    "gpu",
    "gcs-fault-tolerance",
    "postgres-store",
    "kueue",
    "incremental-upgrade",
    "dev-kind",
)
CONFIG_MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("RAYPREF_CRDS", raising=False)


def test_all_that_is_shipped_is_right(schemas: Schemas) -> None:
    checked = check([Path("k8s"), Path("serve_configs")], schemas)
    assert checked.findings == []
    texts = {str(path) for path in Path("serve_configs").glob("*.yaml")}
    assert {f"k8s/overlays/{name}" for name in OVERLAYS} | texts <= checked.objects.keys()
    assert not [where for where in checked.objects if where.startswith("k8s/components")]
    assert all(checked.objects.values())


def rules(folder: Path) -> dict[str, str]:
    """Messages by rule."""
    return {finding.rule: str(finding) for finding in check([folder], {}).findings}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"kind: [", "cannot be read as YAML"),
        (b"apiVersion: v1\nkind: Pod\nkind: Job\n", "the key 'kind' stands there twice"),
        (
            b"a: &a [x,x,x,x,x,x,x,x,x,x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(8)
            ),
            "more than 200000 values",
        ),
        (b"a: &a [*a]\n", "more than 200000 values"),
        (b"[" * 5000, "nested too deep"),
        (b"? [x]\n: y\n", "a key is no text"),
        (b"a: !!int x\n", "cannot be read as YAML"),
        (b"a: !!python/object:os.system {}\n", "cannot be read as YAML"),
        (b"a: *b\n", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "is no text"),
        (b"a: \x00\n", "cannot be read as YAML"),
    ],
    ids=[
        "rubbish",
        "twice",
        "bomb",
        "endless",
        "deep",
        "list key",
        "no int",
        "code",
        "alias",
        "bytes",
        "nul",
    ],
)
def test_rubbish_is_a_finding_of_one_line(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(text)
    (finding,) = check([tmp_path], {}).findings
    assert finding.rule == "yaml"
    assert message in finding.message
    assert "\n" not in str(finding)


@pytest.mark.parametrize("text", ["apps: []\n", CONFIG_MAP + "---\nkind: Pod\n", "- a\n", "a\n"])
def test_what_is_nothing_known_is_a_finding(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert rules(tmp_path).keys() == {"unknown"}


def test_what_is_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "good.yml").write_text(CONFIG_MAP + "data: {day: 2026-02-31, anchor: &a x, again: *a}\n")
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    (tmp_path / "tests.yaml").write_text("rule_files: [rules.yaml]\ntests: []\n")
    (tmp_path / "kind.yaml").write_text("apiVersion: kind.x-k8s.io/v1alpha4\nkind: Cluster\nnodes: []\n")
    (tmp_path / "widget.yaml").write_text("apiVersion: x.example/v1\nkind: Widget\nmetadata: {name: a}\n")
    (tmp_path / "empty.yaml").write_text("# nothing\n---\n")
    (tmp_path / "notes.txt").write_text("kind: [")
    assert rules(tmp_path) == {}


def test_objects_of_a_list_are_looked_at(tmp_path: Path) -> None:
    secret = "{apiVersion: v1, kind: Secret, metadata: {name: a}, stringData: {key: hunter2}}"
    (tmp_path / "a.yaml").write_text(f"apiVersion: v1\nkind: List\nitems:\n- {secret}\n")
    assert rules(tmp_path).keys() == {"secret-committed"}
    (tmp_path / "a.yaml").rename(tmp_path / "a.example.yaml")
    assert rules(tmp_path) == {}


def test_what_is_not_of_its_form_is_said_not_raised(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: ray.io/v1\nkind: RayJob\nmetadata: {name: a}\nspec: []\n")
    (tmp_path / "b.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: 3}\n"
    )
    (tmp_path / "c.yaml").write_text("apiVersion: v1\nkind: a/../b\nmetadata: []\n")
    found = check([tmp_path], {}).findings
    assert {finding.where for finding in found} == {str(tmp_path / f"{name}.yaml") for name in "abc"}
    assert "form" in {finding.rule for finding in found}


def test_a_kustomization_is_built_and_its_files_are_not_looked_at_alone(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\n")
    (tmp_path / "a.yaml").write_text(CONFIG_MAP)
    (tmp_path / "sub" / "patch.yaml").write_text("- {op: remove}\n")
    for path in (tmp_path, tmp_path / "kustomization.yaml"):
        checked = check([path], {})
        assert (checked.findings, checked.objects) == ([], {str(tmp_path): 1})
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]\n")
    (finding,) = check([tmp_path], {}).findings
    assert finding.rule == "kustomize"
    assert "missing.yaml" in finding.message


def test_policies_of_the_folder_beside_a_service_count() -> None:
    alone = {finding.rule for finding in check([Path("k8s/base/rayservice")], {}).findings}
    assert alone == {"network-policy"}
    together = [Path("k8s/base/rayservice"), Path("k8s/base/networkpolicy")]
    assert check(together, {}).findings == []


def test_without_definitions_a_kind_of_ray_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("apiVersion: ray.io/v1\nkind: RayJbo\nmetadata: {name: a}\n")
    assert rules(tmp_path).keys() == {"schema"}


def test_fields_of_kubernetes_need_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CONFIG_MAP + "daat: {}\n")
    assert "daat" in rules(tmp_path)["schema"]
    monkeypatch.setattr(checking_schema, "native_schemas", lambda: False)
    assert rules(tmp_path) == {}


@pytest.mark.parametrize("content", [b"kind: [", b"a", b"", gzip.compress(b"{}"), b"\x1f\x8b\x08rubbish"])
def test_definitions_that_are_none_are_said(content: bytes, tmp_path: Path) -> None:
    (tmp_path / ("a.yaml.gz" if content[:1] == b"\x1f" else "a.yaml")).write_bytes(content)
    with pytest.raises(ConfigError, match="is no custom resource definition"):
        read_crds(tmp_path)


def test_definitions_are_read_plain_too(schemas: Schemas, tmp_path: Path) -> None:
    names = {"RayCluster", "RayJob", "RayService"}
    assert {kind for version, kind in schemas if version == "ray.io/v1"} >= names
    field = {"type": "object", "properties": {"n": {"type": "integer", "nullable": True}}}
    definition = {
        "group": "x.example",
        "names": {"kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": field}}},
            }
        ],
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"spec": definition}))
    assert list(read_crds(tmp_path)) == [("x.example/v1", "Widget")]


def test_the_command_says_what_is_wrong_and_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["check", str(REPOSITORY / "serve_configs")]) == 0
    said = capsys.readouterr().out
    assert "not held against its schemas" in said
    assert re.search(r"production\.yaml: ok, 1 object$", said, re.MULTILINE)
    objects = build(REPOSITORY / "k8s/base/jobs")
    objects[1]["apiVersion"] = "ray.io/v1alpha1"
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump_all(objects))
    assert main(["check", str(bad)]) == 2
    said = capsys.readouterr()
    subject = f"{objects[1]['kind']}/{objects[1]['metadata']['name']}"
    assert (
        f"{bad}: {subject}: apiVersion: ray.io/v1alpha1 is gone; use ray.io/v1. [api-version]\n" in said.out
    )
    assert "1 finding in 1 place;" in said.err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bad.read_bytes())))
    assert main(["check", "-"]) == 2
    assert f"standard input: {subject}" in capsys.readouterr().out


def test_definitions_are_named_by_the_environment_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(CONFIG_MAP)
    monkeypatch.setenv("RAYPREF_CRDS", str(tmp_path))
    assert main(["check", str(tmp_path)]) == 2
    assert "is no custom resource definition" in capsys.readouterr().err
    monkeypatch.setenv("RAYPREF_CRDS", "")
    assert main(["check", str(tmp_path)]) == 0
    assert "not held against its schemas" in capsys.readouterr().out


def test_nothing_to_check_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path)]) == 2
    assert "no manifests" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["check", str(tmp_path), "--crds", str(tmp_path)]) == 2
    assert "no custom resource definitions" in capsys.readouterr().err
    assert main(["check"]) == 2
    assert "name a run's configuration" in capsys.readouterr().err
