from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from raypref import checkpoint
from raypref.checkpoint import (
    BUNDLE_USERS_SCHEMA,
    BUNDLE_VERSION,
    MANIFEST,
    Bundle,
    BundleInfo,
    build,
    library_versions,
    verify,
    write_manifest,
)
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.methods import METHODS, VRFConfig
from raypref.methods.base import MethodConfig
from raypref.schema import Embedder
from raypref.types import Dims
from tests.conftest import REPOSITORY

FILES = ("README.md", "checkpoint.json", "manifest.json", "model.safetensors", "users.parquet")
EMBEDDER = Embedder(
    model="fake", revision="0", pooling="mean", normalised=True, template="{response}", max_length=8, dim=6
)


def small(method: MethodConfig | None = None, seed: int = 0) -> Bundle:
    method = method or VRFConfig(bases=2, latent=3, hidden=4, features=2)
    info = BundleInfo.model_validate(
        {
            "method": method.model_dump(),
            "dim": 6,
            "users": 2,
            "embedder": EMBEDDER.model_dump(),
            "data_fingerprint": "f" * 64,
            "steps": 7,
            "metrics": {"valid_nll": 0.5},
            "versions": library_versions(),
        }
    )
    rows = {"user_id": ["ann", "bob"], "row": [0, 1], "comparisons": [3, 0], "vector": [[1.0], [-2.5]]}
    return Bundle(build(method, Dims(6, 2), seed), info, pa.table(rows, schema=BUNDLE_USERS_SCHEMA))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    small().save(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    small().save(folder)
    return folder


def rewrite(bundle: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file of a bundle, and the manifest to fit."""
    raw = json.loads((bundle / name).read_text())
    change(raw)
    (bundle / name).write_text(json.dumps(raw))
    write_manifest(bundle)


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_comes_back_as_it_was(method: type[MethodConfig], tmp_path: Path) -> None:
    saved = small(method())
    saved.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle")
    assert loaded.info == saved.info
    assert loaded.users.equals(saved.users)
    assert not loaded.model.training
    state = saved.model.state_dict()
    assert loaded.model.state_dict().keys() == state.keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_bundle_is_these_files_and_they_are_readable(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == sorted(FILES)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in bundle.iterdir())
    assert sorted(json.loads((bundle / MANIFEST).read_text())["files"]) == sorted(set(FILES) - {MANIFEST})


def test_loading_leaves_the_random_state_alone(bundle: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Bundle.load(bundle)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_changed_byte_is_found(name: str, kept: Path, place: float, flip: int) -> None:
    path = kept / name
    data = path.read_bytes()
    changed = bytearray(data)
    changed[int(place * len(data))] ^= flip
    path.write_bytes(changed)
    try:
        with pytest.raises(CorruptError, match=r"manifest\.json|bundle"):
            Bundle.load(kept)
    finally:
        path.write_bytes(data)


def test_no_changed_byte_of_the_manifest_goes_by(kept: Path) -> None:
    """Every place, and the changes that a reader of text would not see: line ends and spaces."""
    path = kept / MANIFEST
    data = path.read_bytes()
    try:
        for place, old in enumerate(data):
            for new in {old ^ 1, 0x0D, 0x20, 0x09} - {old}:
                path.write_bytes(data[:place] + bytes([new]) + data[place + 1 :])
                with pytest.raises(CorruptError):
                    verify(kept)
    finally:
        path.write_bytes(data)


@pytest.mark.parametrize("name", sorted(set(FILES) - {MANIFEST}))
def test_a_missing_file_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    with pytest.raises(CorruptError, match=f"{name}.*missing"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", sorted(set(FILES) - {MANIFEST, "README.md"}))
def test_a_file_that_the_manifest_forgot_as_well_is_named(name: str, bundle: Path) -> None:
    (bundle / name).unlink()
    write_manifest(bundle)
    with pytest.raises(CorruptError, match=name):
        Bundle.load(bundle)


def test_a_folder_without_a_manifest_is_no_bundle(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).unlink()
    for folder in (bundle, tmp_path / "nothing"):
        with pytest.raises(InputError, match="no bundle here"):
            Bundle.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_named(name: str, keep: float, bundle: Path) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CorruptError, match=name):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", sorted(set(FILES) - {MANIFEST, "README.md"}))
@pytest.mark.parametrize("rubbish", [b"", b"\x00\xff" * 300, b"[]", b"{}"])
def test_rubbish_with_a_fitting_manifest_is_named(name: str, rubbish: bytes, bundle: Path) -> None:
    (bundle / name).write_bytes(rubbish)
    write_manifest(bundle)
    with pytest.raises(CorruptError, match=name):
        Bundle.load(bundle)


def test_users_of_another_shape_are_refused(bundle: Path) -> None:
    pq.write_table(pa.table({"user_id": ["ann"]}), bundle / "users.parquet")
    write_manifest(bundle)
    with pytest.raises(CorruptError, match="columns"):
        Bundle.load(bundle)


@pytest.mark.parametrize("version", [BUNDLE_VERSION + 1, 0, None, "1"])
def test_another_bundle_version_says_what_to_do(version: object, bundle: Path) -> None:
    rewrite(bundle, "checkpoint.json", lambda raw: raw.update(bundle_version=version, news=1))
    with pytest.raises(MismatchError, match="install the raypref that wrote it"):
        Bundle.load(bundle)


@pytest.mark.parametrize(
    "change",
    [{"dim": 0}, {"dim": 7}, {"method": {"type": "nobody"}}, {"method": {"type": "bt"}}, {"surprise": 1}],
    ids=str,
)
def test_a_claim_that_does_not_fit_is_refused(change: dict[str, Any], bundle: Path) -> None:
    rewrite(bundle, "checkpoint.json", lambda raw: raw.update(change))
    with pytest.raises(CorruptError):
        Bundle.load(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, bundle: Path) -> None:
    tensors = load_file(bundle / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.numel() > 1)
    tensors[name].view(-1)[0] = value
    save_file(tensors, bundle / "model.safetensors")
    write_manifest(bundle)
    with pytest.raises(CorruptError, match=f"{name} holds values that are not finite"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", ["model.pt", "model.bin", "pytorch_model.bin", "model.pkl"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_pickle_in_the_bundle_is_never_run(name: str, listed: bool, bundle: Path) -> None:
    proof = bundle.parent / "proof"
    (bundle / name).write_bytes(f"cos\nsystem\n(S'touch {proof}'\ntR.".encode())
    if listed:
        write_manifest(bundle)
    Bundle.load(bundle)
    assert not proof.exists()
    if listed:
        shutil.copy(bundle / name, bundle / "model.safetensors")
        write_manifest(bundle)
        with pytest.raises(CorruptError):
            Bundle.load(bundle)
        assert not proof.exists()


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["save_tensors", "model_card", "write_manifest"])
def test_a_save_that_fails_keeps_the_old_bundle(
    step: str, error: BaseException, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(checkpoint, step, broken)
    with pytest.raises(type(error)):
        small(seed=1).save(bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_last_step_that_fails_keeps_the_old_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    replace, calls = os.replace, []

    def broken(source: Path, target: Path) -> None:
        if Path(target) == bundle:
            calls.append(source)
            if len(calls) == 1:
                raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        small(seed=1).save(bundle)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_new_bundle_takes_the_place_of_the_old(bundle: Path) -> None:
    (bundle / "stray").write_text("old")
    small(seed=1).save(bundle)
    assert not (bundle / "stray").exists()
    weights = Bundle.load(bundle).model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in small(seed=1).model.state_dict().items())
    assert list(bundle.parent.iterdir()) == [bundle]


def test_the_information_is_frozen(bundle: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Bundle.load(bundle).info.dim = 3


def python_files() -> list[Path]:
    return sorted([*(REPOSITORY / "raypref").rglob("*.py"), *(REPOSITORY / "jobs").rglob("*.py")])


UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {
    "torch.load",
    "torch.save",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.unsafe_load_all",
    "yaml.full_load",
    "yaml.full_load_all",
    "pandas.read_pickle",
    "pd.read_pickle",
    "eval",
    "exec",
}


def unsafe(source: str) -> list[str]:
    """Return what of a module could run code that stands in a file."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if set(alias.name.split(".")) & UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            parts = {part for name in names for part in name.split(".")}
            found += sorted(parts & UNSAFE_MODULES) + sorted(names & UNSAFE_CALLS)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "trust_remote_code"):
            found += [ast.unparse(node)] if ast.unparse(node.value) != "False" else []
    return found


def test_no_module_can_run_what_stands_in_a_file() -> None:
    assert len(python_files()) > 40
    found = {path.name: reasons for path in python_files() if (reasons := unsafe(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from ray import cloudpickle",
        "import ray.cloudpickle as p",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader=yaml.Loader)",
        "from torch import load",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert unsafe(line)
    assert not unsafe("yaml.safe_load(text); np.load(path, allow_pickle=False)")
