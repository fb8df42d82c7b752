"""What the serving application is built from: the `args` of a Serve configuration."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from raypref.config import EmbedConfig, Section
from raypref.hub import require_revision
from raypref.serve.guard import Limits
from raypref.serve.tracing import TracingConfig

Seconds = PositiveFloat


BundlePlace = Annotated[str, BeforeValidator(os.fspath), AfterValidator(require_revision)]


class ServeSettings(Section):
    """The application but for its bundle: which users, who may ask, how much."""

    items: Path | None = Field(
        default=None, description="Items table whose ids requests may name; of the bundle's embedder."
    )
    embed: EmbedConfig | None = Field(
        default=None,
        description="Embed text that comes in, as the bundle's embedder does; without it text is refused. No "
        "`engine` named: vllm where it is installed, otherwise transformers.",
    )
    store: str = Field(
        default="sqlite:///raypref-users.db",
        description="Where users are: memory:, sqlite:///FILE, postgresql://…, redis://… or valkey://….",
    )
    store_timeout_s: Seconds = Field(default=2.0, description="Seconds after which the store is down.")
    on_store_failure: Literal["prior", "refuse"] = Field(
        default="prior",
        description="Scoring while the store is down: as the population, marked `degraded`, or 503.",
    )
    keep: Literal["given", "ids"] = Field(
        default="given",
        description="What stays of a comparison: items as they came, or ids of registered items only.",
    )
    half_life_days: PositiveFloat | None = Field(
        default=None, description="Age at which a comparison counts half; null: tastes do not change."
    )
    max_comparisons: PositiveInt = Field(default=1024, description="Most comparisons of one user.")
    max_candidates: PositiveInt = Field(default=65_536, description="Most candidates of a request.")
    max_scores: PositiveInt = Field(
        default=1_000_000, description="Most scores of a request: users times candidates."
    )
    keys: Path | None = Field(
        default=None, description="File of API keys, each with its tenant; `raypref keys` writes it."
    )
    open: bool = Field(
        default=False, description="Serve everybody who can reach the port, as one tenant, without keys."
    )
    limits: Limits = Limits()
    explore: Path | None = Field(
        default=None,
        description="Gallery that `raypref explore` wrote, for the page at /explore; null: none.",
    )
    tracing: TracingConfig | None = Field(
        default=None,
        description="Send traces to an OpenTelemetry collector; null: none are made.",
    )
    timeout_s: Seconds = Field(default=30.0, description="Seconds after which a request is given up.")
    batch: PositiveInt = Field(default=64, description="Requests that a Scorer takes together at most.")
    threads: NonNegativeInt = Field(default=1, description="Torch threads of a Scorer; 0 leaves it to torch.")

    @field_validator("embed", mode="before")
    @classmethod
    def _choose_engine(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "engine" not in raw:
            return {"engine": "vllm" if find_spec("vllm") else "transformers", **raw}
        return raw

    @model_validator(mode="after")
    def _check(self) -> ServeSettings:
        if self.keys is None and not self.open:
            raise ValueError(
                "name a file of API keys (`keys`; `raypref keys create` writes one), or say `open: true` "
                "where everybody who reaches the port may read, change and erase all users"
            )
        if self.keys is not None and self.open:
            raise ValueError("keys and open: true contradict each other; give one")
        if self.keep == "ids" and self.items is None:
            raise ValueError("keep: ids needs the items table that the ids are of (`items`)")
        return self


class ScorerConfig(Section):
    """`user_config` of the Scorer: what its replicas change to in place."""

    bundle: BundlePlace = Field(description="A bundle of the same embedder and width.")


class ServeConfig(ServeSettings):
    """The application."""

    bundle: BundlePlace = Field(
        description="Trained bundle, a folder or hf://OWNER/NAME@REVISION. Replicas swap to another one in "
        "place where the Scorer's `user_config` names it; `raypref serve` does so on SIGHUP."
    )

    @property
    def settings(self) -> ServeSettings:
        """All but the bundle: what a running application cannot change without new replicas."""
        return ServeSettings.model_validate(self.model_dump(exclude={"bundle"}))
