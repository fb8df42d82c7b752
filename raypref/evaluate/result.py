"""What an evaluation found: numbers a cell, per-user columns beside them, differences between methods."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypref import files
from raypref.config import EvaluateConfig
from raypref.errors import CorruptError, InputError, MismatchError
from raypref.metrics import Estimate, ReliabilityBin, UncertaintyBin, bootstrap
from raypref.schema import Cohort

Setting = Literal["warm", "cold"]

EVALUATION_FILE = "evaluation.json"
PER_USER_FILE = "per_user.parquet"

PER_USER_SCHEMA = pa.schema(
    [
        pa.field("cell", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("user", pa.int32(), nullable=False),
        pa.field("comparisons", pa.int32(), nullable=False),
        pa.field("accuracy", pa.float64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("uncertainty", pa.float64(), nullable=False),
    ]
)
"""One row a cell and user, averages over the draws of the shots; by cell, then by user."""


class Section(BaseModel):
    """Base of every part of a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class UserBin(Section):
    """Users whose mean uncertainty lies between two quantiles."""

    users: int
    uncertainty: float = Field(description="Mean over the users.")
    accuracy: Estimate


class SelectivePoint(Section):
    """The accuracy when only the most confident share of the comparisons is judged."""

    coverage: float
    accuracy: float


class Uncertainty(Section):
    """How accuracy depends on the model's own uncertainty."""

    source: Literal["margin_std", "doubt"] = Field(
        description="margin_std: standard deviation of the reward difference; doubt: 1 − max(p, 1−p), "
        "of methods that have no variance."
    )
    by_quantile: list[UncertaintyBin] = Field(description="Equal shares of the comparisons, certain first.")
    by_user: list[UserBin] = Field(description="Equal shares of the users, certain first.")
    selective: list[SelectivePoint] = Field(
        description="By confidence max(p, 1−p), for every method: the deviation of a margin grows with the "
        "margin itself, so it cannot say which comparisons to leave to somebody else."
    )


class Collapse(Section):
    """How much a cohort's posteriors differ; all near 0 is a posterior that collapsed on the prior.

    Over the cohort's users that are judged in any setting, from the first draw of the shots.
    """

    active_units: int = Field(description="Units that vary over users by more than the threshold.")
    units: int
    kl: float = Field(description="KL from the prior, nats, mean over users.")
    mutual_information: float = Field(
        description="Of user and latent, nats, over a sample of the users; at most the log of its size."
    )


class Cell(Section):
    """One cohort, one setting, one number of shots."""

    cohort: Cohort
    setting: Setting
    shots: int | None = Field(description="Comparisons in the context; null: all the user's training ones.")
    users: int
    comparisons: int = Field(description="Held-out comparisons; each is judged once a draw of the shots.")
    draws: int = Field(description="Draws of the shots; 1 where every draw is the same.")
    mean_shots: float = Field(description="Context comparisons that users really had, on average.")
    full_share: float = Field(description="Share of users that had all the shots.")
    accuracy_per_user: Estimate
    accuracy_per_pair: float
    nll: float = Field(description="Nats, mean over users of each user's mean.")
    ece: float
    reliability: list[ReliabilityBin]
    uncertainty: Uncertainty
    latent_gain: Estimate | None = Field(
        None,
        description="Accuracy minus that with another user's vector, paired by user; null but for seen users "
        "and the most shots, and where a cohort has one user.",
    )
    collapse: Collapse | None = Field(
        None, description="Null but for seen users and the most shots, and where a method has no posteriors."
    )

    @property
    def key(self) -> str:
        """Name of the cell, such as `unseen/cold/8`."""
        return cell_key(self.cohort, self.setting, self.shots)


class Absent(Section):
    """A setting that the tables do not hold."""

    cohort: Cohort
    setting: Setting
    reason: str


class Evaluation(Section):
    """Everything measured of one model on one pair of tables."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    fingerprint: str = Field(description="Of the comparisons table.")
    config: EvaluateConfig
    cells: list[Cell]
    absent: list[Absent]
    per_user: pa.Table = Field(exclude=True, repr=False, description="PER_USER_SCHEMA.")

    def cell(self, cohort: Cohort, setting: Setting, shots: int | None) -> Cell | None:
        """Return one cell, None where the tables do not hold it."""
        key = cell_key(cohort, setting, shots)
        return next((cell for cell in self.cells if cell.key == key), None)

    def users(self, key: str) -> pa.Table:
        """Return the per-user columns of one cell."""
        row = [cell.key for cell in self.cells].index(key)
        first = sum(cell.users for cell in self.cells[:row])
        return self.per_user.slice(first, self.cells[row].users)

    def save(self, directory: Path) -> None:
        """Write the evaluation, whole or not at all."""
        with files.new_directory(directory, EVALUATION_FILE) as work:
            pq.write_table(self.per_user, work / PER_USER_FILE, compression="zstd")
            files.write_text(work / EVALUATION_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> Evaluation:
        """Read an evaluation that `save` wrote.

        Raises:
            InputError: there is none.
            CorruptError: it is not what this version writes.
        """
        path = directory / EVALUATION_FILE
        if not path.is_file():
            raise InputError(f"{directory}: no evaluation here ({EVALUATION_FILE} is missing).")
        try:
            per_user = pq.read_table(directory / PER_USER_FILE).cast(PER_USER_SCHEMA)
            rest = _Stored.model_validate_json(path.read_bytes())
        except (OSError, ValueError, ValidationError) as error:
            raise CorruptError(f"{directory}: not a readable evaluation ({error}).") from error
        if per_user.num_rows != sum(cell.users for cell in rest.cells):
            raise CorruptError(f"{directory}: {PER_USER_FILE} and {EVALUATION_FILE} count other users.")
        return cls(**dict(rest), per_user=per_user)


class _Stored(Section):
    fingerprint: str
    config: EvaluateConfig
    cells: list[Cell]
    absent: list[Absent]


class Difference(Section):
    """A method's accuracy minus the baseline's, user by user."""

    method: str
    cell: str = Field(description="Name of the cell, such as `unseen/cold/8`.")
    users: int
    accuracy: Estimate


def cell_key(cohort: Cohort, setting: Setting, shots: int | None) -> str:
    """Return the name of a cell."""
    return f"{cohort}/{setting}/{'all' if shots is None else shots}"


def compare(evaluations: Mapping[str, Evaluation], baseline: str) -> list[Difference]:
    """Return each method's difference to the baseline in every cell both have, paired by user.

    Raises:
        InputError: the baseline is not among them.
        MismatchError: two evaluations were made on other tables or with other draws.
    """
    if baseline not in evaluations:
        raise InputError(f"no evaluation of the baseline {baseline!r}; there are {', '.join(evaluations)}.")
    base = evaluations[baseline]
    differences: list[Difference] = []
    for name, other in evaluations.items():
        require_same_data(base, other, f"{baseline} and {name}")
        if name == baseline:
            continue
        for cell in other.cells:
            if base.cell(cell.cohort, cell.setting, cell.shots) is None:
                continue
            ours, theirs = other.users(cell.key), base.users(cell.key)
            if not ours["user"].equals(theirs["user"]):
                raise MismatchError(f"{cell.key}: {baseline} and {name} were evaluated on other users.")
            delta_U = ours["accuracy"].to_numpy() - theirs["accuracy"].to_numpy()
            config = other.config
            estimate = bootstrap(delta_U, config.bootstrap, config.confidence, config.seeds[0])
            differences.append(Difference(method=name, cell=cell.key, users=cell.users, accuracy=estimate))
    return differences


def require_same_data(one: Evaluation, other: Evaluation, which: str) -> None:
    """Raise MismatchError unless two evaluations judged the same comparisons from the same shots."""
    if one.fingerprint != other.fingerprint:
        raise MismatchError(f"{which} were evaluated on different tables; evaluate both on one.")
    if one.config.seeds != other.config.seeds:
        raise MismatchError(f"{which} were evaluated with other seeds; evaluate both with the same.")
