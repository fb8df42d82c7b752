"""Somebody at a terminal does what the pages say, line by line, as it stands there."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from raypref.demo.population import CONCENTRATION, TASTES, load_bank
from raypref.k8s.objects import at
from raypref.serve.keys import Keys
from raypref.serve.stores import open_store
from tests.conftest import REPOSITORY, DemoRun
from tests.data.test_published import prism
from tests.hub import TOKEN, Hub
from tests.k8s.conftest import CRDS
from tests.pages import Sections, Terminal, sections, write_block
from tests.serve.stores.conftest import running
from tests.serve.stores.events import ANN, BEN, event, write
from tests.serve.stores.servers import Postgres

USERS, QUESTIONS = 60, 3

FOLLOWED = {
    ("docs/align.md", "Best of N"),
    ("docs/align.md", "Share a bundle"),
    ("docs/choose-a-method.md", "Is there personal taste in my data?"),
    ("docs/data.md", "Published data"),
    ("docs/data.md", "Your own preferences"),
    ("docs/federated.md", "Train where data may not move"),
    ("docs/kubernetes.md", "A run of your own"),
    ("docs/kubernetes.md", "Manifests, checked"),
    ("docs/operations.md", "Deploy"),
    ("docs/operations.md", "Restore a store"),
    ("docs/operations.md", "Rotate secrets"),
    ("docs/serve.md", "Serve"),
    ("docs/train.md", "Sweeps"),
    ("docs/train.md", "Whole populations"),
    ("docs/understand.md", "The explorer"),
    ("docs/understand.md", "What a basis means"),
}
"""Here; docs/quickstart.md has a test of its own, and the README has lines of docs/data.md."""


def rate(file: Path) -> None:
    """Write ratings of all answers to a few prompts each, by people of conflicting tastes."""
    draw = np.random.default_rng(11)
    bank = load_bank()
    rows = []
    for user in range(USERS):
        weights = draw.dirichlet(np.full(len(TASTES), CONCENTRATION))
        for prompt in draw.choice(list(bank), QUESTIONS, replace=False).tolist():
            for answer in bank[prompt]:
                value = weights @ [answer.value(taste) for taste in TASTES.values()]
                rows.append(
                    {
                        "user_id": f"user-{user}",
                        "prompt": prompt,
                        "response": answer.response,
                        "rating": round(float(value + 0.3 * draw.standard_normal()), 1),
                    }
                )
    pq.write_table(pa.Table.from_pylist(rows), file)


def test_every_line_of_raypref_in_a_block_is_followed_by_a_test() -> None:
    pages = {f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")} - {"docs/quickstart.md"}
    assert {(page, heading) for page in pages for heading in sections(REPOSITORY / page)} == FOLLOWED


def test_the_readme_has_the_lines_of_the_page() -> None:
    def said(lines: Sections) -> list[list[str]]:
        return [line.split("#")[0].split() for section in lines.values() for line in section]

    assert [
        line
        for line in said(sections(REPOSITORY / "README.md"))
        if line not in said(sections(REPOSITORY / "docs/data.md"))
    ] == []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_preferences_of_ones_own_from_texts_to_a_pushed_bundle(tmp_path: Path) -> None:
    hub = Hub()
    terminal = Terminal(
        tmp_path,
        HF_ENDPOINT=hub.url,
        HF_HOME=str(tmp_path / "hub"),
        HF_HUB_DISABLE_XET="1",
        HF_HUB_OFFLINE="0",
        HF_TOKEN=TOKEN,
    )
    try:
        write_block("docs/data.md", "yaml", "comparisons.parquet", tmp_path / "run.yaml")
        rate(tmp_path / "comparisons.parquet")
        assert "axis 1" in terminal.follow("docs/data.md", "Your own preferences")
        terminal.follow("docs/choose-a-method.md", "Is there personal taste in my data?")
        terminal.follow("docs/align.md", "Best of N")
        terminal.follow("docs/align.md", "Share a bundle")
        assert hub.private == {"me/taste": True}
        assert (tmp_path / "bundle/manifest.json").is_file()
        write_block("docs/train.md", "yaml", "sweep:", tmp_path / "sweep.yaml")
        terminal.follow("docs/train.md", "Sweeps")
        assert pq.read_table(tmp_path / "run/sweep/trials.parquet").num_rows == 32
        answers = [answer for answers in load_bank().values() for answer in answers][:8]
        rows = [{"prompt": answer.prompt, "response": answer.response} for answer in answers]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
        terminal.follow("docs/train.md", "Whole populations")
        scores = pq.read_table(tmp_path / "run/scores/parts")
        assert scores.num_rows == pq.read_metadata(tmp_path / "run/tables/users.parquet").num_rows > USERS / 2
        assert set(map(len, scores["mean"].to_pylist())) == {len(rows)}
    finally:
        hub.stop()


@pytest.fixture(scope="module")
def demo(demo_run: DemoRun) -> Terminal:
    """A folder in which `make demo` has run, and beside it what a checkout has."""
    (demo_run.folder / "serve_configs").symlink_to(REPOSITORY / "serve_configs")
    return Terminal(demo_run.folder)


@pytest.mark.ray
@pytest.mark.slow
def test_after_the_demo_a_basis_is_described(demo: Terminal) -> None:
    printed = demo.follow("docs/understand.md", "What a basis means")
    page = (REPOSITORY / "docs/understand.md").read_text()
    head = re.search(r"^basis +share.*$", page, re.MULTILINE)
    assert head is not None
    assert head[0].split() in [line.split() for line in printed.splitlines()]


@pytest.mark.ray
@pytest.mark.slow
def test_after_the_demo_the_explorer_has_its_page(demo: Terminal) -> None:
    [line] = sections(REPOSITORY / "docs/understand.md")["The explorer"]
    with demo.running(line, "http://127.0.0.1:8000/explore"):
        assert httpx.get("http://127.0.0.1:8000/readyz").status_code == 200


@pytest.mark.ray
@pytest.mark.slow
def test_after_the_demo_a_service_learns_from_python(demo: Terminal) -> None:
    keys, serve = sections(REPOSITORY / "docs/serve.md")["Serve"]
    key = demo.run(keys).strip()
    write_block("docs/serve.md", "python", "client.learn", demo.folder / "ask.py")
    asked = demo.folder / "ask.py"
    asked.write_text(asked.read_text().replace("rp-…", key))
    with demo.running(serve, "http://127.0.0.1:8000/readyz"):
        arrays = re.findall(r"\[.*?\]", demo.run("python ask.py"))
    mean, std, probability = (re.findall(r"\d[\d.e+-]*", array) for array in arrays)
    assert len(mean) == len(std) == len(probability) > 1


@pytest.mark.ray
@pytest.mark.slow
def test_after_the_demo_a_bundle_is_read_in_python(demo: Terminal) -> None:
    write_block("docs/data.md", "python", "Bundle.load", demo.folder / "read.py")
    assert demo.run("python read.py").count("tensor(") == 2


@pytest.mark.ray
@pytest.mark.slow
def test_clients_train_without_their_data(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    Terminal(tmp_path).follow("docs/federated.md", "Train where data may not move")
    assert (tmp_path / "runs/federated/bundle/manifest.json").is_file()


def test_published_data_is_imported(tmp_path: Path) -> None:
    prism(tmp_path / "prism")
    printed = Terminal(tmp_path).follow("docs/data.md", "Published data")
    assert "rewardbench" in printed
    assert list((tmp_path / "prefs").iterdir())


def test_a_run_and_the_manifests_are_made_for_a_cluster(tmp_path: Path) -> None:
    for name in ("jobs", "k8s", "serve_configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    terminal = Terminal(tmp_path)
    run = {"dir": "runs/ann", "input": {"path": "runs/ann.parquet"}, "method": {"type": "vrf"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    objects = list(yaml.safe_load_all(terminal.follow("docs/kubernetes.md", "A run of your own")))
    assert [one["kind"] for one in objects] == ["ConfigMap", "RayJob"]
    if not CRDS.is_dir():
        pytest.skip(f"no custom resource definitions of KubeRay in {CRDS}")
    terminal.follow("docs/kubernetes.md", "Manifests, checked", FOLDER=str(CRDS))


def test_from_a_cluster_to_a_scored_request_in_under_fifteen_commands(tmp_path: Path) -> None:
    section = (REPOSITORY / "README.md").read_text().split("## On Kubernetes\n")[1].split("\n## ")[0]
    block = section.split("```\n")[1].replace("\\\n", " ")
    commands = block.splitlines()
    assert len(commands) < 15
    assert not re.search("&&|;", block)
    terminal = Terminal(tmp_path)
    (tmp_path / "k8s").symlink_to(REPOSITORY / "k8s")
    [key] = [command for command in commands if "raypref keys" in command]
    assert re.fullmatch(r"rp-\S+\n", terminal.run(f"{key}\necho $KEY"))
    assert (tmp_path / "keys.json").is_file()
    picked = [command.split("| kubectl apply -l ") for command in commands if "kubectl kustomize" in command]
    assert len(picked) == 2
    for build, selected in picked:
        name, value = selected.split()[0].split("=")
        found = [at(one, "metadata.labels", {}) for one in yaml.safe_load_all(terminal.run(build))]
        assert value in [labels.get(name) for labels in found]


def test_the_runbook_moves_users_and_turns_keys(tmp_path: Path) -> None:
    with running(Postgres) as postgres:
        assert isinstance(postgres, Postgres)
        postgres.execute("CREATE DATABASE raypref")
        terminal = Terminal(tmp_path, PGHOST="127.0.0.1", PGPORT=str(postgres.port), PGUSER="tester")
        with closing(open_store(postgres.address("raypref"))) as store:
            write(store, ANN, event("a"), event("b"))
            assert store.erase(ANN, 2.0)
            write(store, BEN, event("c"))
        export, restore = sections(REPOSITORY / "docs/operations.md")["Restore a store"]
        terminal.run(export)
        postgres.execute("DROP DATABASE raypref")
        postgres.execute("CREATE DATABASE raypref")
        terminal.run(restore)
        with closing(open_store(postgres.address("raypref"))) as store:
            assert [state.shots for state in store.read([ANN, BEN])] == [0, 1]
    old = terminal.follow("docs/operations.md", "Deploy").strip()
    create, revoke = sections(REPOSITORY / "docs/operations.md")["Rotate secrets"]
    new = terminal.run(create).strip()
    assert Keys.load(tmp_path / "keys.json").tenant_of(old) == "me"
    terminal.run(revoke.replace("0123456789abcdef", old.split("-")[1]))
    keys = Keys.load(tmp_path / "keys.json")
    assert (keys.tenant_of(old), keys.tenant_of(new)) == (None, "me")
