"""A run's YAML becomes its RayJob."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from raypref.cli import main
from raypref.config_file import load_config, parse_config
from raypref.errors import ConfigError
from raypref.k8s.check import judge
from raypref.k8s.documents import load_all
from raypref.k8s.kustomize import Manifest, build
from raypref.k8s.objects import Build, at
from raypref.k8s.render import dump, render
from tests.k8s.conftest import REPOSITORY, crds
from tests.k8s.faults.seeding import the

COMMANDS = ("embed", "prepare", "train", "eval", "sweep", "adapt", "score", "demo")
JOBS = Path("k8s/base/jobs")
GPU = Path("k8s/overlays/gpu/jobs")
KUEUE = Path("k8s/overlays/kueue")
RUN: dict[str, Any] = {"dir": "runs/mine", "train": {"workers": [1, 4]}}


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def rendered(command: str, folder: Path = JOBS, **given: Any) -> list[Manifest]:
    return render(command, None if command == "demo" else RUN, "run.yaml", folder, **given)


def images(job: Manifest) -> list[str]:
    paths = (
        "spec.submitterPodTemplate",
        "spec.rayClusterSpec.headGroupSpec.template",
        "spec.rayClusterSpec.workerGroupSpecs.0.template",
    )
    return [at(job, f"{path}.spec.containers.0.image") for path in paths]


@pytest.mark.parametrize("folder", [JOBS, GPU, KUEUE], ids=str)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_job_is_right_and_is_the_one_of_the_manifests(command: str, folder: Path) -> None:
    objects = rendered(command, folder)
    assert judge(Build("here", objects), crds() or {}) == []
    assert [one["kind"] for one in objects] == ["ConfigMap", "RayJob"][command == "demo" :]
    built = the(build(folder), "RayJob", f"raypref-{command}")
    volume = at(built, "spec.rayClusterSpec.headGroupSpec.template.spec.volumes.0.configMap")
    assert volume["name"] == "raypref-run"
    if command != "demo":
        volume["name"] = f"raypref-{command}-run"
        assert objects[0]["metadata"]["name"] == volume["name"]
    assert objects[-1] == built


def test_the_run_is_what_was_given_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("k8s/base/run/run.yaml")
    sets = ["train.workers=[2,8]", "method.recipe.lr=1e-3", "dir=runs/é"]
    given = [word for one in sets for word in ("--set", one)]
    assert main(["k8s", "render", "train", "-c", str(path), *given]) == 0
    out = capsys.readouterr().out
    assert "  run.yaml: |\n    dir: runs/é\n" in out
    assert "  runtimeEnvYAML: |\n    env_vars:\n" in out
    text = the(load_all(out), "ConfigMap")["data"]["run.yaml"]
    assert list(yaml.safe_load(text)) == list(yaml.safe_load(path.read_text()))
    assert parse_config(yaml.safe_load(text), [], "it") == load_config(path, sets)


def test_runs_of_two_names_stand_side_by_side() -> None:
    first, second = (rendered("train", name=name) for name in ("ann", "ben"))
    names = [one["metadata"]["name"] for one in (*first, *second)]
    assert names == ["ann-run", "ann", "ben-run", "ben"]
    assert '"raypref-run"' not in json.dumps(first)
    assert judge(Build("here", [*first, *second]), {}) == []


def test_the_image_is_replaced_in_all_containers() -> None:
    _, job = rendered("train", GPU, image="registry.example/mine:7")
    assert images(job) == ["registry.example/mine:7"] * 3
    assert "ghcr.io" not in json.dumps(job)


def test_namespace_and_labels_are_those_of_the_job(tmp_path: Path) -> None:
    # kubectl takes no absolute path to a base.
    base = Path(*[".."] * len(tmp_path.relative_to("/").parts), *(REPOSITORY / JOBS).parts[1:])
    (tmp_path / "kustomization.yaml").write_text(f"namespace: mine\nresources: ['{base}']\n")
    config_map, job = rendered("train", tmp_path)
    assert config_map["metadata"]["namespace"] == job["metadata"]["namespace"] == "mine"
    assert config_map["metadata"]["labels"] == job["metadata"]["labels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "-c", "RUN"], "has adapt, demo, embed, eval, prepare, score, sweep, train."),
        (["train"], "train: name its run with -c run.yaml."),
        (["train", "--set", "dir=runs/x"], "name the run with -c"),
        (["demo", "-c", "RUN"], "demo has no run"),
        (["train", "-c", "RUN", "--name", "Ann_1"], "'Ann_1': use at most 47 of a-z"),
        (["train", "-c", "RUN", "--name", "a" * 48], "use at most 47"),
        (["train", "-c", "RUN", "--name", ""], "use at most 47"),
        (["train", "-c", "RUN", "--image", "mine:latest"], "mine:latest: pin a version"),
        (["train", "-c", "RUN", "--set", "dir=/data/x"], "dir: /data/x lies on no volume"),
        (["train", "-c", "RUN", "--set", "dir=elsewhere"], "put it under runs/"),
        (["train", "-c", "RUN", "--set", "input.path=a.parquet"], "input.path: a.parquet lies on no volume"),
        (["train", "-c", "RUN", "--set", "dir=/tmp/ray/x"], "goes with the pod"),
        (["train", "-c", "RUN", "--set", "trian.workers=2"], "run.yaml: trian: unknown key"),
        (["train", "-c", "RUN", "--set", "train.workers=17"], "room for 16"),
        (["train", "-c", "RUN", "--set", "train.use_gpu=true"], "no worker has a GPU"),
        (["train", "-c", "BROKEN"], "cannot be read as YAML"),
        (["train", "-c", "MISSING"], "cannot be read as YAML"),
        (["train", "-c", "RUN", "--from", "k8s"], "k8s: is no kustomization"),
        (["train", "-c", "RUN", "--from", "k8s/monitoring"], "it has no jobs"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "RUN": tmp_path / "run.yaml",
        "BROKEN": tmp_path / "broken.yaml",
        "MISSING": tmp_path / "no.yaml",
    }
    files["RUN"].write_text(yaml.safe_dump(RUN))
    files["BROKEN"].write_text("dir: [")
    out = tmp_path / "out"
    out.mkdir()
    said = [str(files.get(word, word)) for word in arguments]
    assert main(["k8s", "render", *said, "-o", str(out / "job.yaml")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("raypref: ")
    assert captured.out == ""
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("train", "folder", "message"),
    [
        ({"workers": 16}, JOBS, ""),
        ({"workers": [16, 64]}, JOBS, ""),
        ({"workers": 4, "cpus_per_worker": 3}, JOBS, ""),
        ({"workers": 5, "cpus_per_worker": 3}, JOBS, "of 3 CPU each, are needed, and there is room for 4 "),
        ({"workers": 1, "cpus_per_worker": 5}, JOBS, "room for 0 (4 pods of 4 CPU)"),
        ({"workers": 160, "cpus_per_worker": 0.1}, JOBS, ""),
        ({"workers": 161, "cpus_per_worker": 0.1}, JOBS, "room for 160"),
        ({"workers": 4, "use_gpu": True}, GPU, ""),
        (
            {"workers": 5, "use_gpu": True},
            GPU,
            "of 1 CPU and a GPU each, are needed, and there is room for 4",
        ),
        ({"workers": [1, 17], "mode": "federated"}, JOBS, "17 at the least"),
        ({"workers": 17}, KUEUE, "4 pods of 4 CPU"),
    ],
)
def test_the_fewest_workers_must_find_room(train: dict[str, Any], folder: Path, message: str) -> None:
    run = {"dir": "runs/mine", "train": train}
    if not message:
        assert render("train", run, "run.yaml", folder)
        return
    with pytest.raises(ConfigError, match="would wait for ever") as raised:
        render("train", run, "run.yaml", folder)
    assert message in str(raised.value)


def test_other_commands_do_not_wait_for_workers_of_a_training() -> None:
    assert render("embed", {"dir": "runs/mine", "train": {"workers": 99}}, "run.yaml", JOBS)


def test_the_file_is_what_is_printed_and_is_checked_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["k8s", "render", "train", "-c", "k8s/base/run/run.yaml", "--name", "ann"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert main([*arguments, "-o", str(tmp_path / "job.yaml")]) == 0
    assert capsys.readouterr().out == ""
    assert (tmp_path / "job.yaml").read_text() == printed
    assert [file.name for file in tmp_path.iterdir()] == ["job.yaml"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(printed.encode())))
    assert main(["check", "-"]) == 0
    assert "standard input: ok, 2 objects" in capsys.readouterr().out
    assert main([*arguments, "-o", str(tmp_path)]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["job.yaml"]


def test_kubectl_and_we_read_what_was_meant(tmp_path: Path) -> None:
    texts = [
        *("y", "N", "on", "1e3", "1E-5", "0o17", "0x1f", "1_000", "1:30", "~", "null", "", " "),
        *("2026-01-01", "a: b", "- a", "# a", "*a", "a\n", "\n", "\n\n a\nb", " a\nb\n\n", "a \nb", "a\tb\n"),
        *("a\u2028b\n", "é\n日本\n", "😀\n", "---\na\n", "...\n", "a\r\nb", "%a\n", "a: 'b\n"),
    ]
    held = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "y"}}
    held["data"] = {f"k{number}": text for number, text in enumerate(texts)}
    again = held | {"metadata": {"name": "1e3"}}
    written = dump([held, again])
    assert load_all(written) == list(yaml.safe_load_all(written)) == [held, again]
    odd = {"text": "a\x85b\nc"}  # kubectl reads it, and writes it as PyYAML does not read it
    assert load_all(dump([odd])) == [odd]
    (tmp_path / "kustomization.yaml").write_text("resources: [a.yaml]\n")
    (tmp_path / "a.yaml").write_text(written)
    assert sorted(build(tmp_path), key=lambda one: one["metadata"]["name"]) == [again, held]
