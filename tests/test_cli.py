from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raypref.cli import main
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
    "command", ["embed", "prepare", "plant", "train", "eval", "methods", "check", "demo"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: raypref" in capsys.readouterr().out


def test_methods_lists_every_method_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in ("bt:", "lore:", "vrf:", "recipe: {"):
        assert name in out


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
