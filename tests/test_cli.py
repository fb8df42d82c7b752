from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raypref.cli import EXIT_CLOSED, NAME_WIDTH, NO_BREAK, TEXT_WIDTH, main
from raypref.methods import METHODS
from tests.conftest import REPOSITORY

RUN = [sys.executable, "-m", "raypref"]


def test_help_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from raypref.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'numpy', 'pyarrow', 'transformers', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_help_answers_within_half_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([*RUN, "--help"], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    "command",
    [
        "embed",
        "prepare",
        "plant",
        "train",
        "eval",
        "describe",
        "methods",
        "check",
        "demo",
        "serve",
        "keys",
        "users",
        "adapt",
        "score",
        "k8s",
    ],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: raypref" in capsys.readouterr().out


def test_methods_lists_every_method_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert {"bt", "lore", "vrf"} <= {method.model_fields["type"].default for method in METHODS}
    for method in METHODS:
        idea = (method.__doc__ or "").splitlines()[0]
        start = out.index(f"{method.model_fields['type'].default}: {idea} {method.citation}.")
        block = out[start : out.index(" recipe steps ", start)]
        for name, field in method.model_fields.items():
            if name not in ("type", "recipe"):
                told = block[block.index(f" {name} {field.description or ''}") :]
                default = field.default if isinstance(field.default, str) else json.dumps(field.default)
                assert f"; default {default}]" in told
    for told in (
        "kl β, weight of the KL in nats; rises over a fifth of training. [0 ≤ float; default 0.001]",
        "[between | posterior | both; default between]",
        "[0 ≤ float < 1; default 0.2]",
        "[0 < float or null; default null]",
        "recipe steps 250, schedule cosine, warmup 0.08, users_per_step 128, context [0, 0], targets 64,",
        "context Fewest and most comparisons a user's context may hold in training. [[0 ≤ int, 0 ≤ int]]",
    ):
        assert told in out


def test_output_that_nobody_reads_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*RUN, "methods"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.returncode == EXIT_CLOSED
    assert done.stderr == b""


@pytest.mark.parametrize(("columns", "width"), [(60, 60), (80, 80), (400, TEXT_WIDTH)])
def test_methods_fit_the_terminal_in_two_columns(
    columns: int, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert NO_BREAK not in out
    *lines, _ = (line for line in out.splitlines() if line)
    assert width - 15 < max(map(len, lines)) <= width
    for line in lines:
        assert line[NAME_WIDTH - 1] == " "
        assert line[NAME_WIDTH] != " "


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "method.tpye=bt"], "method"),
        (["--set", "nonsense=1"], "nonsense: unknown key"),
        (["--set", "train.workers=0"], "train.workers"),
        (["--set", "train.workers"], "write it as a.b=value"),
        (["--set", "embed.concurrency=[3, 1]"], "min <= max"),
        (["-c", "missing.yaml"], "missing.yaml"),
    ],
)
@pytest.mark.parametrize("command", ["embed", "prepare", "train", "eval", "check"])
def test_a_bad_configuration_is_refused_with_its_key(
    command: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_check_prints_the_resolved_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text(f"dir: {tmp_path / 'run'}\nmethod: {{type: bt}}\n")
    assert main(["check", "-c", str(tmp_path / "run.yaml"), "--set", "train.seed=7"]) == 0
    resolved = json.loads(capsys.readouterr().out)
    assert resolved["method"]["type"] == "bt"
    assert resolved["train"]["seed"] == 7


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs/configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_configuration_is_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "-c", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("job", ["embed", "prepare", "train", "evaluate"])
def test_jobs_are_the_commands(job: str) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), "--set", "nonsense=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "nonsense: unknown key" in done.stderr
