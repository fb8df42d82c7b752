"""The server of federated training: sums of updates, the vectors it was told, and who took part when."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raypref import files
from raypref.checkpoint import MANIFEST, read_tensors, save_tensors, verify, write_manifest
from raypref.config import FederatedConfig
from raypref.errors import ConfigError
from raypref.federated.aggregation import Collected
from raypref.federated.groups import group
from raypref.federated.keys import derive, words
from raypref.federated.layout import Sum
from raypref.federated.messages import Broadcast, PeerList
from raypref.federated.privacy import noise
from raypref.federated.rows import FIRST
from raypref.methods.base import RewardModel
from raypref.train.shards import shared_state
from raypref.train.state import fill

WEIGHTS, KNOWN, STATE = "model.safetensors", "known.safetensors", "state.json"


def require_covered(config: FederatedConfig, model: RewardModel) -> None:
    """Raise ConfigError where there is to be privacy, but the method sends what no noise covers."""
    if config.privacy and model.peers:
        raise ConfigError(
            "federated.privacy covers updates alone, but this method sends every client's user vector to "
            "others, so no finite ε would be true. Leave privacy out, or train without peers (fedvpa: "
            "method.prior=normal, method.orthogonal=0)."
        )


class Server:
    """The model and what is known of clients, after a number of closed rounds."""

    def __init__(
        self,
        model: RewardModel,
        clients_N: np.ndarray,
        config: FederatedConfig,
        seed: int,
        secret: bytes = b"",
    ) -> None:
        """Begin before the first round.

        Args:
            model: for one user; its row is nobody's.
            clients_N: numbers of all clients, sorted.
            config: of the run.
            seed: of who is sampled.
            secret: what noise is drawn from, where `config.privacy` wants any; 32 random bytes of the run.

        Raises:
            ConfigError: see `require_covered`.
        """
        require_covered(config, model)
        self.model = model.eval()
        self.clients_N = clients_N
        self.round = 0
        """Rounds closed."""
        self._config = config
        self._seed = seed
        self._secret = secret
        self._counted_N = np.full(len(clients_N), FIRST, np.int64)
        nobody = torch.empty(0, dtype=torch.int64)
        self.known = PeerList(nobody, _vector_of_nobody(model)[:0], nobody)
        """The vectors that may be sent to others, the latest last."""

    @property
    def rate(self) -> float:
        """The share of clients that a round samples."""
        return min(1.0, self._config.clients / len(self.clients_N))

    def sample(self) -> np.ndarray:
        """Return the numbers of the clients of the next round, sorted.

        Where there is privacy each client is in it by a chance of its own (Poisson sampling, which the
        accounting is about), else they are equally many in every round.
        """
        count = len(self.clients_N)
        if self._config.privacy:
            # Nobody may know who is in a round, so it is drawn as the noise is.
            key = derive(self._secret, b"sample", str(self.round).encode())
            return self.clients_N[words(key, count) < self.rate * 2.0**64]
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, self.round))))
        return np.sort(rng.choice(self.clients_N, min(count, self._config.clients), replace=False))

    def since(self, client: int) -> int:
        """Return the round that a client last counted in, -1 if in none."""
        return int(self._counted_N[np.searchsorted(self.clients_N, client)])

    def broadcast(self) -> Broadcast:
        """Return what the clients of the next round are sent."""
        return Broadcast(self.round, shared_state(self.model), self.known if self.model.peers else None)

    @torch.no_grad()
    def close(self, found: Collected) -> float:
        """Close the round with the mean of its updates, and return the length of the step.

        A parameter moves by the mean over the clients that moved it. Where there is privacy it is the noisy
        sum over the clients expected, so that one client more or less changes a sum alone.
        """
        squared = 0.0
        for name, step in self._steps(found.sum).items() if found.sum else ():
            self.model.get_parameter(name).add_(step)
            squared += float(step.square().sum())
        self._counted_N[np.searchsorted(self.clients_N, found.clients)] = self.round
        if found.vectors:
            self._learn(found.vectors)
        self.round += 1
        return math.sqrt(squared)

    def _steps(self, found: Sum) -> dict[str, Tensor]:
        if privacy := self._config.privacy:
            blur = noise(found.total, privacy.noise * privacy.clip, self._secret, self.round)
            expected = self.rate * len(self.clients_N)
            return {name: (total + blur[name]) / expected for name, total in found.total.items()}
        weight = found.weight
        return {name: total / weight[name] for name, total in found.total.items() if weight[name] > 0}

    def _learn(self, vectors: Mapping[int, Tensor]) -> None:
        """Take note of vectors, forget those that are too old, and group those that are left."""
        kept_C = torch.tensor(
            [
                client not in vectors and self.round - self.since(client) <= self._config.peer_rounds
                for client in self.known.client_C.tolist()
            ],
            dtype=torch.bool,
        )
        news = sorted(vectors)
        last = slice(-self._config.peers, None)
        client_C = torch.cat([self.known.client_C[kept_C], torch.tensor(news)])[last]
        new_CZ = torch.stack([vectors[client] for client in news])
        vector_CZ = torch.cat([self.known.vector_CZ[kept_C], new_CZ])[last]
        before_C = torch.tensor([self.known.group_of(client) for client in client_C.tolist()])
        self.known = PeerList(client_C, vector_CZ, group(self.model, vector_CZ, before_C))

    def save(self, directory: Path) -> None:
        """Write the state after a closed round, whole or not at all."""
        with files.new_directory(directory, MANIFEST) as work:
            save_tensors(shared_state(self.model), work / WEIGHTS)
            known = {**vars(self.known), "counted_N": torch.from_numpy(self._counted_N)}
            save_tensors(known, work / KNOWN)
            files.write_text(work / STATE, json.dumps({"round": self.round}) + "\n")
            write_manifest(work)

    def load(self, directory: Path) -> None:
        """Go on from what `save` wrote.

        Raises:
            InputError: there is nothing.
            CorruptError: a file is missing or changed, or is of another model or other clients.
        """
        verify(directory)
        fill(shared_state(self.model), read_tensors(directory / WEIGHTS), directory / WEIGHTS)
        known = read_tensors(directory / KNOWN)
        counted = {"counted": torch.from_numpy(self._counted_N)}
        fill(counted, {"counted": known.pop("counted_N")}, directory / KNOWN)
        self.known = PeerList(**known)
        self.round = json.loads((directory / STATE).read_text())["round"]


@torch.no_grad()
def _vector_of_nobody(model: RewardModel) -> Tensor:
    """Return vector_1Z of a user nothing is known of."""
    nothing_BPD = torch.empty(1, 0, model.dims.embedding)
    return model.infer(model.evidence(nothing_BPD, nothing_BPD), torch.empty(1, 0))
