"""GRPO with TRL, the reward raypref's: one small policy a user, each pulled where its user's taste lies.

    python jobs/examples/grpo.py

Everything is made here and runs on a CPU in a minute: a vocabulary of calm and loud words, a population whose
comparisons say who likes which, a personal reward model, two new users known from twelve comparisons each,
and a language model of 30,000 weights, from scratch. With a real policy, keep `reward_of` or, where a service
runs, use its adapter instead, `raypref.client.adapters.trl.RayprefReward`, which reads the user of a prompt
from the dataset's column `user_id`.

It prints what each policy earned and says, and fails where rewards did not rise or policies stayed alike.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from raypref.methods import LoReConfig
from raypref.methods.base import RewardModel
from raypref.train.loop import start, train
from raypref.types import Dims, Episodes, Pairs

CALM = ["quiet", "slow", "soft", "still", "warm", "gentle"]
LOUD = ["fast", "bright", "wild", "sharp", "bold", "noisy"]
PLAIN = ["the", "a", "and", "walk", "road", "table", "paper", "house"]
WORDS = [*CALM, *LOUD, *PLAIN]
PROMPTS = ["the road", "a house", "the table and", "a walk"]
LENGTH = 8
"""Words of a text."""
SEEN, COMPARISONS, SHOTS = 200, 24, 12


def embed(texts: Sequence[str]) -> Tensor:
    """Return emb_ND of texts: how often each word stands there. An embedder of yours comes here."""
    emb_ND = torch.zeros(len(texts), len(WORDS))
    for text, emb_D in zip(texts, emb_ND, strict=True):
        for word, count in Counter(text.split()).items():
            if word in WORDS:
                emb_D[WORDS.index(word)] = count
    return emb_ND


def comparisons(taste_U: Tensor, each: int, draw: torch.Generator) -> Pairs:
    """Return each user's choices between random texts; taste 1 is for loud words, −1 for calm ones."""
    place_UPTW = torch.randint(len(WORDS), (len(taste_U), each, 2, LENGTH), generator=draw)
    emb_UPTD = torch.nn.functional.one_hot(place_UPTW, len(WORDS)).sum(3).float()
    loud_D = torch.tensor([1.0 if word in LOUD else -1.0 if word in CALM else 0.0 for word in WORDS])
    gain_UP = taste_U[:, None] * ((emb_UPTD[:, :, 0] - emb_UPTD[:, :, 1]) @ loud_D)
    first_UP1 = (torch.rand(gain_UP.shape, generator=draw) < torch.sigmoid(2 * gain_UP))[..., None]
    first_UPD, second_UPD = emb_UPTD.unbind(2)
    return Pairs(
        torch.where(first_UP1, first_UPD, second_UPD),
        torch.where(first_UP1, second_UPD, first_UPD),
        torch.ones(len(taste_U), each),
    )


def reward_model(seed: int) -> RewardModel:
    """Return a personal reward model of a population half of which likes loud words, and half calm ones."""
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    seen = comparisons(torch.sign(torch.randn(SEEN, generator=draw)), COMPARISONS, draw)
    config = LoReConfig.model_validate({"bases": 2, "recipe": {"steps": 60, "users_per_step": SEEN}})
    model = config.build(Dims(len(WORDS), SEEN))
    model.fit_scale(seen.chosen_BPD.reshape(-1, len(WORDS)))
    nothing = Pairs(seen.chosen_BPD[:, :0], seen.rejected_BPD[:, :0], seen.mask_BP[:, :0])
    episodes = [Episodes(nothing, seen, torch.arange(SEEN))] * config.recipe.steps
    for _ in train(start(model, config.recipe), episodes, config.recipe, seed=seed):
        pass
    model.eval()
    with torch.no_grad():
        model.settle([seen])
    return model


@torch.no_grad()
def reward_of(model: RewardModel, told: Pairs) -> Callable[..., list[float]]:
    """Return TRL's reward function for one user, who is known from some comparisons."""
    user_BZ = model.infer(model.encode(told), told.mask_BP)

    @torch.no_grad()
    def raypref(completions: Sequence[str], **columns: Any) -> list[float]:
        return model.reward(model.item(embed(completions))[None], user_BZ).mean_BN[0].tolist()

    return raypref


def policy(seed: int) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return an untrained language model of all words, and its tokenizer."""
    names = ["<pad>", "<end>", "<unknown>", *WORDS]
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(names)}, unk_token="<unknown>"))
    words.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        padding_side="left",
    )
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(names),
        n_positions=32,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config), tokenizer


def align(reward: Any, steps: int, seed: int) -> tuple[list[float], Counter[str]]:
    """Train a policy on a user's reward; return its mean reward by step, and the words that it then says."""
    model, tokenizer = policy(seed)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=scratch,
                max_steps=steps,
                per_device_train_batch_size=32,
                num_generations=16,
                max_completion_length=LENGTH,
                learning_rate=3e-3,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                bf16=False,
                seed=seed,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": PROMPTS * 8}),
            processing_class=tokenizer,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    earned = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    return earned, said(model, tokenizer, seed)


@torch.no_grad()
def said(model: Any, tokenizer: PreTrainedTokenizerFast, seed: int) -> Counter[str]:
    """Return how often each word comes in texts that a policy makes."""
    torch.manual_seed(seed)
    model.eval()
    told = tokenizer(PROMPTS * 16, return_tensors="pt", padding=True)
    made = model.generate(**told, max_new_tokens=LENGTH, do_sample=True)
    texts = tokenizer.batch_decode(made[:, told["input_ids"].shape[1] :], skip_special_tokens=True)
    return Counter(word for text in texts for word in text.split())


def apart(one: Counter[str], other: Counter[str]) -> float:
    """Return the total variation distance of two distributions of words, 0 to 1."""
    return sum(abs(one[word] / one.total() - other[word] / other.total()) for word in WORDS) / 2


def main() -> int:
    """Align a policy with each of two users; return 1 where rewards do not rise or policies stay alike."""
    parser = argparse.ArgumentParser(description="GRPO whose reward is a user's own.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = reward_model(options.seed)
    draw = torch.Generator().manual_seed(options.seed + 1)
    words: dict[str, Counter[str]] = {}
    rose = True
    print(f"{'user':<8}{'reward, first':>15}{'last':>8}  says most")
    for name, taste in (("loud", 1.0), ("calm", -1.0)):
        reward = reward_of(model, comparisons(torch.tensor([taste]), SHOTS, draw))
        earned, words[name] = align(reward, options.steps, options.seed)
        part = max(1, len(earned) // 10)
        first, last = (sum(some) / part for some in (earned[:part], earned[-part:]))
        rose &= last > first
        most = " ".join(word for word, _ in words[name].most_common(4))
        print(f"{name:<8}{first:>15.2f}{last:>8.2f}  {most}")
    distance = apart(words["loud"], words["calm"])
    print(f"total variation of what they say: {distance:.2f}")
    if not rose or distance < 0.5:
        print("grpo: rewards did not rise, or the policies stayed alike; try more --steps.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
