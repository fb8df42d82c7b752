"""What one client does in a round, on its own comparisons alone. Pure torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from raypref.config import RunConfig
from raypref.data.episodes import EpisodeSampler, Gather, pad
from raypref.data.tables import Comparisons
from raypref.federated.messages import Broadcast, PeerList, Update
from raypref.federated.privacy import clip
from raypref.methods.base import Recipe, RewardModel
from raypref.train.loop import start, step_seed, train
from raypref.train.shards import own_rows, shared_parameters, shared_state, user_tables
from raypref.train.state import fill, moments, set_moments
from raypref.types import Episodes, Pairs, Peers

MOMENTS = "moments."


def recipe_of(config: RunConfig) -> Recipe:
    """Return the recipe of a client: the method's, over the steps of all rounds, one user a step."""
    federated = config.federated
    steps = federated.rounds * federated.local_steps
    return config.method.recipe.model_copy(update={"steps": steps, "users_per_step": 1})


def local_round(
    model: RewardModel,
    broadcast: Broadcast,
    client: int,
    comparisons: Comparisons,
    gather: Gather,
    kept: Mapping[str, Tensor],
    config: RunConfig,
) -> tuple[Update, dict[str, Tensor]]:
    """Return a client's update of a round, and what it keeps until its next.

    The optimiser starts anew in every round but for the client's own rows, whose moments it keeps. Everything
    drawn is drawn from (seed, client, round).

    Args:
        model: for one user; its weights are replaced by those of the broadcast, its row by the client's.
        broadcast: what the server sent.
        client: number of the user.
        comparisons: training comparisons of this user alone.
        gather: looks up embeddings.
        kept: what it kept last time; the rows of a fresh model before its first round.
        config: the run.

    Raises:
        DivergedError: the gradient is not finite.
        CorruptError: the broadcast, or what was kept, is of another model.
    """
    options, recipe = config.federated, recipe_of(config)
    # One user of one row, whatever their number among all.
    comparisons = replace(comparisons, row_U=np.zeros(1, np.int64))
    fill(shared_state(model), broadcast.weights, "the server's broadcast")
    tables = user_tables(model)
    fill(tables, {name: kept[name] for name in tables}, f"what client {client} kept")
    state = start(model, recipe)
    known = {name.removeprefix(MOMENTS): part for name, part in kept.items() if name.startswith(MOMENTS)}
    set_moments(state, tables, known, f"what client {client} kept")
    state.step = broadcast.round * options.local_steps
    local = local_items(comparisons, gather)
    sampler = EpisodeSampler(comparisons, local, recipe, config.train.seed, rank=client)
    peers = broadcast.peers and _peers(broadcast.peers, client)
    steps = range(state.step, state.step + options.local_steps)
    loss = float("nan")
    for metrics in train(
        state,
        _episodes(sampler, steps, peers),
        recipe,
        seed=step_seed(config.train.seed, client, 0),
        bfloat16=config.train.precision == "bfloat16",
    ):
        loss = metrics.loss
    delta = {
        name: part.detach() - broadcast.weights[name]
        for name, part in shared_parameters(model).items()
        if part in state.optimiser.state
    }
    if options.privacy:
        delta, _ = clip(delta, options.privacy.clip)
    update = Update(
        delta,
        vector(model, comparisons, local) if model.peers else None,
        len(comparisons) if options.weights == "size" else None,
        loss if options.tell_loss else None,
    )
    own = {f"{MOMENTS}{name}": part for name, part in moments(state, tables).items()}
    return update, own_rows(model) | {name: part.clone() for name, part in own.items()}


def _episodes(sampler: EpisodeSampler, steps: range, peers: Peers | None) -> Iterator[Episodes]:
    for step in steps:
        yield replace(sampler.episodes(step), peers=peers)


def _peers(known: PeerList, client: int) -> Peers:
    others = known.but(client)
    return Peers(others.vector_CZ, others.client_C, torch.tensor([known.group_of(client)]))


@torch.no_grad()
def vector(model: RewardModel, comparisons: Comparisons, gather: Gather) -> Tensor:
    """Return vector_Z of one user, inferred from all comparisons."""
    model.eval()
    chosen_BP, rejected_BP, mask_BP = pad(comparisons, np.zeros(1, np.int64))
    chosen_BPD, rejected_BPD = (
        torch.from_numpy(gather(ids_BP[0])).unsqueeze(0) for ids_BP in (chosen_BP, rejected_BP)
    )
    pairs = Pairs(chosen_BPD, rejected_BPD, torch.from_numpy(mask_BP))
    return model.infer(model.encode(pairs), pairs.mask_BP)[0]


def local_items(comparisons: Comparisons, gather: Gather) -> Gather:
    """Return a look-up of the items of some comparisons that asks `gather` once."""
    known_N = np.unique(np.concatenate([comparisons.chosen_M, comparisons.rejected_M]))
    emb_ND = gather(known_N)

    def look_up(ids_N: np.ndarray) -> np.ndarray:
        # Padding asks for item 0, which need not be there: its mask is 0.
        return emb_ND[np.minimum(np.searchsorted(known_N, ids_N), len(known_N) - 1)]

    return look_up
