"""Best of N: the response that a bundle picks for a user, beside the one that everybody's reward picks.

The downstream use of a reward model: of N responses the best is shown. A pick is judged by what the
candidates are truly worth to the user; its win rate is against a baseline's pick (VRF, arXiv 2604.00997).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from raypref import files
from raypref.bestofn.questions import Questions, ask
from raypref.checkpoint import Bundle, name_of
from raypref.config import RunConfig
from raypref.data.items import ItemTable
from raypref.data.tables import Tables
from raypref.errors import ConfigError, InputError
from raypref.evaluate.batches import ItemFeatures, encode, keyed_order
from raypref.evaluate.canvas import label_ends, looks, picture
from raypref.evaluate.protocol import frozen, require_together
from raypref.methods.base import RewardModel
from raypref.metrics import Estimate, bootstrap
from raypref.schema import require_embedder

RESULT = "bestofn.json"
FIGURE = "bestofn.svg"
RANDOM = "random"
ORACLE = "truth"


class Section(BaseModel):
    """Base of every part of a result."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Choice(Section):
    """How well a chooser chooses among N candidates, averaged per user."""

    n: int
    worth: Estimate = Field(description="True worth of what it picks.")
    regret: Estimate = Field(description="Worth of the best candidate less that.")
    wins: Estimate | None = Field(
        description="How often the pick is worth more than the baseline's, ties half; null for the baseline."
    )


class BestOfN(Section):
    """What `bestofn.json` holds."""

    truth: str
    baseline: str
    shots: int
    users: int
    questions: dict[int, int] = Field(description="Questions with that many candidates, by N.")
    choosers: dict[str, list[Choice]] = Field(
        description="By bundle; random takes any candidate, truth the best one."
    )


def best_of_n(config: RunConfig, bundles: Sequence[Path], baseline: str | None = None) -> BestOfN:
    """Let bundles choose for unseen users, after so many of their comparisons, and write what they chose.

    Args:
        config: of the run; its section `bestofn` says how many candidates, questions and users.
        bundles: whose picks are judged.
        baseline: name of one of them; default: `evaluate.baseline`.

    Raises:
        ConfigError: two bundles have one name, or the baseline is none of them.
        InputError: see `ask`; or a reward is not finite.
        MismatchError: a bundle belongs to another embedder.
    """
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    tables.require_items(items)
    held: dict[str, Bundle] = {}
    for directory in bundles:
        bundle = Bundle.load(directory)
        require_embedder(items.metadata.embedder, bundle.info.embedder, config.items_dir)
        name = name_of(directory, bundle.info)
        if name in (*held, RANDOM, ORACLE):
            raise ConfigError(f"{directory}: another chooser is called {name}; rename its folder.")
        held[name] = bundle
    against = baseline or config.evaluate.baseline
    if against not in held:
        raise ConfigError(
            f"bestofn: the baseline {against} is none of the bundles {', '.join(held)}; name it with "
            "--baseline."
        )
    questions = ask(config, items, tables)
    scores = {
        name: _scores(
            bundle.model, items.with_prompts(bundle.info.method.needs_prompts), tables, questions, config
        )
        for name, bundle in held.items()
    }
    result = _judge(scores, questions, against, config)
    home = config.dir / "bestofn"
    files.write_text(home / RESULT, result.model_dump_json(indent=2) + "\n")
    files.write_text(home / FIGURE, _figure(result))
    return result


def _scores(
    model: RewardModel, items: ItemTable, tables: Tables, questions: Questions, config: RunConfig
) -> np.ndarray:
    """Return score_QN of every candidate by its user's vector, −inf where there is none."""
    require_together(model, items, tables)
    needed_N = np.zeros(len(items), bool)
    needed_N[questions.item_QN[questions.item_QN >= 0]] = True
    score_QN = np.full(questions.item_QN.shape, -np.inf)
    user_U, first_U = np.unique(questions.user_Q, return_index=True)
    last_U = np.append(first_U[1:], len(questions.user_Q))
    context = tables.comparisons("unseen", ["train"])
    with frozen(model):
        features = ItemFeatures(model, items, needed_N)
        for first in range(0, len(user_U), config.evaluate.users_per_batch):
            users = slice(first, first + config.evaluate.users_per_batch)
            own = context.select(user_U[users])
            evidence_BPE, weight_BP = encode(model, items, own)
            order_BP = keyed_order(user_U[users], own.counts_U, weight_BP.shape[1], config.bestofn.seed)
            order_BP = torch.from_numpy(order_BP[:, : max(1, config.bestofn.shots)])
            index_BPE = order_BP[:, :, None].expand(-1, -1, evidence_BPE.shape[2])
            told_BP = weight_BP.gather(1, order_BP) * (config.bestofn.shots > 0)
            user_BZ = model.infer(evidence_BPE.gather(1, index_BPE), told_BP)
            for place in range(len(own.user_U)):
                rows = slice(first_U[first + place], last_U[first + place])
                item_QN = questions.item_QN[rows]
                item_MF = features.gather(np.maximum(item_QN, 0).reshape(1, -1))
                mean_M = model.reward(item_MF, user_BZ[place : place + 1]).mean_BN[0].double().cpu().numpy()
                score_QN[rows] = np.where(item_QN >= 0, mean_M.reshape(item_QN.shape), -np.inf)
    if np.isnan(score_QN).any() or np.isposinf(score_QN).any():
        raise InputError("bestofn: a reward is not finite; the bundle is unusable, train it again.")
    return score_QN


def _judge(scores: dict[str, np.ndarray], questions: Questions, baseline: str, config: RunConfig) -> BestOfN:
    options = config.bestofn
    choosers: dict[str, list[Choice]] = {name: [] for name in (*scores, RANDOM, ORACLE)}
    counts: dict[int, int] = {}
    for n in sorted(set(options.n)):
        asked_Q = questions.candidates_Q >= n
        if not asked_Q.any():
            continue
        counts[n] = int(asked_Q.sum())
        user_Q, worth_QN = questions.user_Q[asked_Q], questions.worth_QN[asked_Q, :n]
        item_QN = questions.item_QN[asked_Q, :n]
        best_Q = worth_QN.max(1)
        picked = {
            name: _picked(score_QN[asked_Q, :n], item_QN, worth_QN) for name, score_QN in scores.items()
        }
        picked |= {RANDOM: worth_QN.mean(1), ORACLE: best_Q}
        for name, worth_Q in picked.items():
            wins_Q = np.sign(worth_Q - picked[baseline]) / 2 + 0.5
            if name == RANDOM:
                wins_Q = (np.sign(worth_QN - picked[baseline][:, None]) / 2 + 0.5).mean(1)
            choosers[name].append(
                Choice(
                    n=n,
                    worth=_estimate(worth_Q, user_Q, config),
                    regret=_estimate(best_Q - worth_Q, user_Q, config),
                    wins=None if name == baseline else _estimate(wins_Q, user_Q, config),
                )
            )
    return BestOfN(
        truth=questions.truth,
        baseline=baseline,
        shots=options.shots,
        users=len(np.unique(questions.user_Q)),
        questions=counts,
        choosers=choosers,
    )


def _picked(score_QN: np.ndarray, item_QN: np.ndarray, worth_QN: np.ndarray) -> np.ndarray:
    """Return the worth of the highest score; of equal ones that of the lowest item id, whatever the order."""
    best_QN = score_QN == score_QN.max(1, keepdims=True)
    place_Q = np.where(best_QN, item_QN, np.iinfo(np.int64).max).argmin(1)
    return worth_QN[np.arange(len(place_Q)), place_Q]


def _estimate(value_Q: np.ndarray, user_Q: np.ndarray, config: RunConfig) -> Estimate:
    """Return the mean over users of each user's mean, with an interval over users."""
    _, at_Q = np.unique(user_Q, return_inverse=True)
    value_U = np.bincount(at_Q, value_Q) / np.bincount(at_Q)
    return bootstrap(value_U, config.evaluate.bootstrap, config.evaluate.confidence)


def table(result: BestOfN) -> str:
    """Return the result as lines: win rate against the baseline, and regret, by N."""
    names = list(result.choosers)
    width = max(map(len, names)) + 2
    lines = [
        f"best of N for {result.users} unseen users after {result.shots} comparisons; {result.truth}",
        f"{'wins over ' + result.baseline:<{width + 12}}"
        + "".join(f"{f'N = {n}':>24}" for n in result.questions),
    ]
    for title in ("wins", "regret"):
        if title == "regret":
            lines.append("regret")
        for name in names:
            cells = [getattr(choice, title) for choice in result.choosers[name]]
            if all(cell is None for cell in cells):
                continue
            shown = "".join(f"{f'{cell.mean:.3f} [{cell.low:.3f}, {cell.high:.3f}]':>24}" for cell in cells)
            lines.append(f"  {name:<{width + 10}}{shown}")
    return "\n".join(lines)


def _figure(result: BestOfN) -> str:
    """Return a standalone SVG of win rates by N."""
    curves = {
        name: [choice.wins for choice in choices if choice.wins is not None]
        for name, choices in result.choosers.items()
        if name != result.baseline
    }
    style = looks([*curves, result.baseline], result.baseline)
    numbers = list(result.questions)

    def draw(axes: Any) -> None:
        ends: list[tuple[float, str, str]] = []
        for name, wins in curves.items():
            x, look = range(len(wins)), style[name]
            low, high = [one.low for one in wins], [one.high for one in wins]
            axes.fill_between(x, low, high, color=look.colour, alpha=0.1, lw=0)
            axes.plot(x, [one.mean for one in wins], **look.line)
            ends.append((wins[-1].mean, name, look.colour))
        axes.set(title="Best of N", xlabel="candidates", ylabel=f"win rate over {result.baseline}")
        axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
        label_ends(axes, ends)

    said = "; ".join(f"{name} {wins[-1].mean:.3f}" for name, wins in curves.items())
    drawn = picture("bestofn", f"Win rate over {result.baseline} at N = {numbers[-1]}: {said}.", draw)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#1b1f24"'
    )
    return drawn.svg.replace("<svg", f"{head} ", 1).replace(">", f"><title>{drawn.alt}</title>", 1) + "\n"
