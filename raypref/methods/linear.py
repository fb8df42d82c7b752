"""What the methods share whose reward is linear in the item's features."""

from __future__ import annotations

from torch import Tensor

from raypref.methods.base import RewardModel
from raypref.types import Reward


class LinearRewardModel(RewardModel):
    """A reward with r(a) − r(b) = r(a − b): the margin is the reward of the feature difference."""

    def margin(self, chosen_BNF: Tensor, rejected_BNF: Tensor, user_BZ: Tensor) -> Reward:
        """Return mean and variance of the reward difference; shared uncertainty cancels exactly."""
        return self.reward(chosen_BNF - rejected_BNF, user_BZ)
