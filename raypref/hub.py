"""Bundles on the Hugging Face hub: a bundle's folder is a repository, and every fetched one is verified."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from raypref import files
from raypref.checkpoint import (
    BUNDLE_USERS_SCHEMA,
    MANIFEST,
    Bundle,
    Result,
    model_card,
    read_info,
    verify,
    write_manifest,
)
from raypref.errors import CorruptError, InputError

SCHEME = "hf://"
"""Begins what is on the hub: hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""

FILES = ("model.safetensors", "checkpoint.json", "users.parquet", "README.md", MANIFEST)
"""All that is pushed, and all that is fetched."""


def push(
    directory: Path,
    repository: str,
    *,
    private: bool = True,
    with_users: bool = False,
    licence: str | None = None,
    results: Sequence[Result] = (),
    revision: str | None = None,
) -> str:
    """Upload a bundle in one commit, to a repository that is made where there is none; return the commit.

    Args:
        directory: of the bundle.
        repository: OWNER/NAME.
        private: of a repository that is made.
        with_users: push the vectors and rows of the users that it was trained on, too.
        licence: for the card.
        results: for the card.
        revision: branch; default main.

    Raises:
        InputError: there is no bundle, or the hub refuses or is out of reach.
        CorruptError: the bundle is damaged.
    """
    from huggingface_hub import HfApi

    bundle = Bundle.load(directory)
    with tempfile.TemporaryDirectory() as scratch, _hub(repository):
        work = Path(scratch) / "bundle"
        (bundle if with_users else without_users(bundle)).save(work)
        files.write_text(work / "README.md", model_card(bundle.info, licence, results, with_users))
        write_manifest(work)
        verify(work)
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=work,
            allow_patterns=list(FILES),
            revision=revision,
            commit_message=f"raypref {bundle.info.method.type} bundle, {bundle.info.steps} steps",
        )
    return done.oid


def without_users(bundle: Bundle) -> Bundle:
    """Return a bundle without the vectors and the rows of seen users; new users are inferred as before."""
    model = bundle.model
    tensors = {
        name: torch.zeros_like(tensor) if name in model.user_rows else tensor
        for name, tensor in model.state_dict().items()
    }
    model.load_state_dict(tensors)
    return Bundle(model, bundle.info, BUNDLE_USERS_SCHEMA.empty_table())


def pull(place: str, target: Path) -> str:
    """Fetch a bundle into a folder, verified, all or nothing; return its commit.

    Args:
        place: OWNER/NAME or OWNER/NAME@REVISION, with or without hf://.
        target: the folder; an older bundle there is replaced.

    Raises:
        InputError: there is no such repository or revision, it holds no bundle, or the hub is out of reach.
        CorruptError: what came is damaged.
    """
    snapshot = _fetch(place.removeprefix(SCHEME))
    with files.new_directory(target, MANIFEST) as work:
        for name in FILES:
            shutil.copyfile(snapshot / name, work / name)
        verify(work)
    return snapshot.name


def resolve(place: str) -> Path:
    """Return the folder of a bundle: the path itself, or where hf://… was fetched to and verified.

    Raises:
        InputError, CorruptError: as `pull`.
    """
    if not place.startswith(SCHEME):
        return Path(place)
    return _fetch(place.removeprefix(SCHEME))


def require_revision(place: str) -> str:
    """Return the place of a bundle that is the same whenever it is read, as far as its revision is.

    Raises:
        ValueError: it is on the hub, without a revision.
    """
    if place.startswith(SCHEME) and not place.partition("@")[2]:
        raise ValueError(
            f"{place}: name a revision, {place}@REVISION, best a commit; replicas that start later would "
            "otherwise serve what is pushed meanwhile"
        )
    return place


def _fetch(named: str) -> Path:
    """Return the folder of the hub's cache that holds a bundle, verified."""
    try:
        return _download(named, again=False)
    except CorruptError:
        # What is in the cache may have come damaged, once.
        return _download(named, again=True)


def _download(named: str, again: bool) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = named.partition("@")
    with _hub(named):
        found = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(FILES), force_download=again
        )
    snapshot = Path(found)
    missing = [name for name in FILES if not (snapshot / name).is_file()]
    if missing:
        raise InputError(f"{SCHEME}{named}: is no bundle ({', '.join(missing)} missing).")
    verify(snapshot)
    read_info(snapshot)
    return snapshot


@contextmanager
def _hub(named: str) -> Generator[None]:
    """Say what the hub's own errors mean."""
    import httpx
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{SCHEME}{named}"
    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(
            f"{where}: no such repository, or not yours to read; `hf auth login`, or set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where}: has no such revision.") from error
    except HFValidationError as error:
        raise InputError(f"{where}: is no name of a repository, which is OWNER/NAME.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        advice = " `hf auth login`, or set HF_TOKEN to one that may write." if status in (401, 403) else ""
        raise InputError(f"{where}: the hub answers {status}.{advice}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
        raise InputError(f"{where}: the hub is out of reach ({error}).") from error


def results_of(report: Path, bundle: str) -> list[Result]:
    """Return a bundle's accuracies of a report, for its card.

    Args:
        report: the report's folder.
        bundle: name of the bundle there.

    Raises:
        InputError: there is no report, or the bundle is not in it.
        CorruptError: it cannot be read.
    """
    path = report / "report.json"
    if not path.is_file():
        raise InputError(f"{report}: no report here; `raypref eval` writes one.")
    try:
        found = json.loads(path.read_text())["evaluations"]
        if bundle not in found:
            raise InputError(f"{path}: has {', '.join(found)} and no {bundle}.")
        return [
            Result(_users(cell["cohort"], cell["shots"]), cell["setting"], cell["accuracy_per_user"]["mean"])
            for cell in found[bundle]["cells"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{path}: not readable ({error!r}).") from error


def _users(cohort: str, shots: int | None) -> str:
    return f"{cohort} users" if shots is None else f"{cohort} users after {shots} comparisons"
