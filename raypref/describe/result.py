"""What a description holds; `raypref describe -o` writes it as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

UNNAMED = "unnamed"


class Part(BaseModel):
    """Base of every part of a description."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Correlation(Part):
    """Spearman's correlation of a basis with a feature of text, over responses to the same prompts."""

    name: str = Field(description="The feature; `raypref.describe.features` defines it.")
    rho: float
    low: float = Field(description="Lower end of the 95 % interval; prompts are independent, not responses.")
    high: float = Field(description="Its upper end.")
    significant: bool = Field(description="After Benjamini–Hochberg at 5 % over all bases and features.")


class ScoredItem(Part):
    """An item and its place on a basis."""

    item: int = Field(description="Row of the items table.")
    text: str | None = Field(description="The response; null where the input does not have it.")
    score: float = Field(description="Standard deviations above the other responses to its prompt.")


class Contrast(Part):
    """Two responses to one prompt that differ on this basis and hardly on the others."""

    prompt: str | None = Field(description="Null where the input does not have it.")
    higher: ScoredItem
    lower: ScoredItem
    difference: float = Field(description="Of their scores.")


class Leaning(Part):
    """Users by what they make of the contrasts; users within 1.96 standard deviations of 0 are undecided."""

    positive: int = Field(description="Like the higher side more than the average user does.")
    negative: int
    undecided: int


class Basis(Part):
    """One direction in which rewards differ."""

    kind: Literal["common", "axis"] = Field(
        description="common: the average user's reward; axis: a way in which users differ from it."
    )
    title: str = Field(description="`common`, `axis 1`, `axis 2` …: what tables call it.")
    name: str = Field(description="Of what scores high; `unnamed` where no feature of text says it.")
    share: float = Field(description="Of the variance of rewards over items, averaged over users.")
    leaning: Leaning | None = Field(
        description="Null where the method has no doubt about users, or no pairs are known; of `common`, who "
        "agrees with it."
    )
    features: list[Correlation] = Field(description="Strongest first; empty without texts.")
    top: list[ScoredItem] = Field(description="Highest first.")
    bottom: list[ScoredItem] = Field(description="Lowest first.")
    contrasts: list[Contrast] = Field(description="Purest first.")


class Match(Part):
    """A basis, and the one of an earlier bundle that orders items most like it."""

    basis: str = Field(description="Its title.")
    earlier: str = Field(
        description="The title of that one, where the earlier bundle is described by this run."
    )
    correlation: float = Field(
        description="Of their scores; an axis may have turned around, which is no drift."
    )


class Move(Part):
    """An item that the average user likes better, or less, than before."""

    before: float = Field(description="The score that it had.")
    now: ScoredItem


class Drift(Part):
    """What a bundle says otherwise than an earlier one, of users that both know."""

    against: str = Field(description="The earlier bundle.")
    users: int = Field(description="Users whom both keep: a sample of at most 1,000.")
    pairs: int = Field(description="Pairs of responses to one prompt.")
    agreement: list[float] = Field(
        description="Of each of these users, least first: the share of pairs that both bundles order alike."
    )
    average: float = Field(description="The same for the average of these users.")
    bases: list[Match]
    rose: list[Move] = Field(description="By the average of these users; most first.")
    fell: list[Move]


class Description(Part):
    """The bases of a bundle, the average user's first, then the axes by share."""

    method: str
    users: int = Field(description="Users whose rewards were taken apart: a sample of the bundle's.")
    items: int = Field(description="Items they were taken apart over: a sample of the table's.")
    prompts: int | None = Field(description="Prompts of these items; null without texts.")
    personal: bool = Field(description="Whether users' rewards differ at all.")
    rest: float = Field(description="Share of the axes that are too small to be described.")
    notes: list[str] = Field(description="How to read this, in sentences.")
    bases: list[Basis]
    drift: Drift | None = Field(default=None, description="Null where no earlier bundle was named.")
