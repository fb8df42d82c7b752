from __future__ import annotations

import asyncio
import copy
import importlib
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from raypref.client import RequestRefused, Unavailable
from raypref.client.adapters import openrlhf, rewards, verl
from raypref.client.adapters.trl import RayprefReward, make_async_reward
from raypref.errors import ConfigError, InputError
from tests.client.service import State, expected

PROMPTS = ["Tea?", "Tea?", "Pet?", "Pet?", "Tea?"]
COMPLETIONS = ["green", "black", "cat", "dog", "green"]
USERS = ["ann", "ann", "bob", "bob", None]
MEANS = [
    np.float32(expected(user, json.dumps(text))).item() for user, text in zip(USERS, COMPLETIONS, strict=True)
]


@pytest.fixture(autouse=True)
def fresh_connections() -> None:
    rewards.shared.cache_clear()


@pytest.fixture(params=["blocking", "async"])
def reward(request: pytest.FixtureRequest) -> Callable[..., Any]:
    def make(*arguments: Any, **settings: Any) -> Callable[..., list[float | None]]:
        if request.param == "blocking":
            return RayprefReward(*arguments, **settings)
        function = make_async_reward(*arguments, **settings)
        return lambda **given: asyncio.run(function(**given))

    return make


def test_trl_rows_that_ask_alike_share_a_request(service: State, reward: Any) -> None:
    metrics: dict[str, float] = {}
    extras: dict[str, list[Any]] = {}
    got = reward(service.url)(
        prompts=PROMPTS,
        completions=COMPLETIONS,
        user_id=USERS,
        completion_ids=[[1]] * 5,
        trainer_state=None,
        log_extra=extras.__setitem__,
        log_metric=metrics.__setitem__,
    )
    assert got == MEANS
    assert len(service.seen) == 3
    assert metrics == {"raypref/cold": 0.0, "raypref/degraded": 0.0, "raypref/failed": 0.0}
    assert extras == {"raypref_std": [pytest.approx(0.1)] * 5}


def test_trl_without_users_asks_for_the_population(service: State, reward: Any) -> None:
    service.cold = True
    metrics: dict[str, float] = {}
    reward(service.url)(prompts=PROMPTS, completions=COMPLETIONS, log_metric=metrics.__setitem__)
    assert all("user" not in json.loads(one.body) for one in service.seen)
    assert metrics["raypref/cold"] == 1.0


def test_trl_chats_keep_roles_and_text(service: State, reward: Any) -> None:
    prompt = [{"role": "user", "content": [{"type": "text", "text": "Tea"}, {"type": "text", "text": "?"}]}]
    completion = [{"role": "assistant", "content": "green", "tool_calls": None}]
    reward(service.url)(prompts=[prompt], completions=[completion], user_id=["ann"])
    sent = json.loads(service.seen[0].body)
    assert sent["prompt"] == [{"role": "user", "content": "Tea?"}]
    assert sent["candidates"] == [{"text": [{"role": "assistant", "content": "green"}]}]


def test_trl_failures_are_raised_or_none_as_set(service: State, reward: Any) -> None:
    ask = {"prompts": PROMPTS, "completions": COMPLETIONS, "user_id": USERS}
    service.always = "hang"
    with pytest.raises(Unavailable):
        reward(service.url, timeout_s=0.3)(**ask)
    metrics: dict[str, float] = {}
    got = reward(service.url, timeout_s=0.3, on_failure="none")(**ask, log_metric=metrics.__setitem__)
    assert got == [None] * 5
    assert metrics["raypref/failed"] == 1.0
    # What is wrong with the request is never passed over.
    service.always = "422"
    with pytest.raises(RequestRefused):
        reward(service.url, on_failure="none")(**ask)
    with pytest.raises(ConfigError):
        reward(service.url, on_failure="ignore")


def test_reward_functions_can_be_sent_to_other_processes(service: State) -> None:
    original = RayprefReward(service.url)
    original(PROMPTS, COMPLETIONS, USERS)
    # Copying does what sending does.
    other = copy.deepcopy(original)
    assert other(PROMPTS, COMPLETIONS, USERS) == MEANS


@pytest.mark.parametrize("async_too", [False, True])
def test_trl_calls_them_as_it_calls_its_own(service: State, async_too: bool) -> None:
    pytest.importorskip("accelerate")
    trainers = pytest.importorskip("trl.trainer.grpo_trainer")
    utils = importlib.import_module("trl.trainer.utils")
    accelerate = importlib.import_module("accelerate")
    functions: list[Any] = [RayprefReward(service.url)]
    stand_in = SimpleNamespace(
        accelerator=accelerate.Accelerator(cpu=True),
        reward_processing_classes=[None],
        state=SimpleNamespace(global_step=0),
        environments=None,
        _pending_extra_logs=defaultdict(list),
        _pending_metrics=defaultdict(list),
        args=SimpleNamespace(report_to=[]),
    )
    if async_too:
        functions.append(make_async_reward(service.url))
        stand_in.reward_processing_classes.append(None)
        thread, loop, ready = utils.start_event_loop_in_daemon(name="test")
        ready.wait()
        stand_in.async_loop = loop
    trainer = trainers.GRPOTrainer
    stand_in.reward_funcs = functions
    stand_in.reward_func_names = [utils.get_callable_name(one) for one in functions]
    for name in ("_log_completion_extra", "_log_metric"):
        setattr(stand_in, name, getattr(trainer, name).__get__(stand_in))
    rows = zip(PROMPTS, USERS, strict=True)
    inputs = [{"prompt": prompt, "user_id": user, "other": 1} for prompt, user in rows]
    got = trainer._calculate_rewards(stand_in, inputs, PROMPTS, COMPLETIONS, [[1]] * 5)
    assert stand_in.reward_func_names == ["raypref"] * len(functions)
    assert got.tolist() == [[mean] * len(functions) for mean in MEANS]
    assert stand_in._pending_metrics["raypref/failed"] == [0.0] * len(functions)
    if async_too:
        utils.shutdown_event_loop_in_daemon(thread, loop)
        loop.close()


def test_verl_gets_a_score_and_figures(service: State) -> None:
    asked = {"data_source": "d", "solution_str": "green", "ground_truth": ""}
    info = {
        "user_id": "ann",
        "prompt": np.array([{"role": "user", "content": "Tea?"}], object),
        "num_turns": 2,
    }
    blocking = verl.compute_score(**asked, extra_info=info, url=service.url)
    awaited = asyncio.run(verl.compute_score_async(**asked, extra_info=info, url=service.url))
    assert blocking == awaited
    assert blocking == {
        "score": MEANS[0],
        "raypref_cold": 0.0,
        "raypref_degraded": 0.0,
        "raypref_std": pytest.approx(0.1),
    }
    with pytest.raises(InputError, match="prompt"):
        verl.compute_score(**asked, extra_info={"user_id": "ann"}, url=service.url)


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verl_calls_them_as_it_calls_its_own(
    service: State, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    loading = pytest.importorskip("verl.trainer.ppo.reward")
    managers = importlib.import_module("verl.experimental.reward_loop.reward_manager.naive")
    torch = importlib.import_module("torch")
    monkeypatch.setenv("RAYPREF_URL", service.url)
    custom = {"path": str(Path(verl.__file__)), "name": name, "reward_kwargs": {"timeout_s": 5.0}}
    config = SimpleNamespace(reward={"custom_reward_function": custom})
    function = loading.get_custom_reward_fn(config)
    row = SimpleNamespace(
        batch={"responses": torch.tensor([7, 8]), "attention_mask": torch.ones(4, dtype=torch.int64)},
        non_tensor_batch={
            "data_source": "d",
            "reward_model": {"ground_truth": ""},
            "extra_info": {"user_id": "ann", "prompt": "Tea?"},
        },
    )

    class Batch:
        def __getitem__(self, place: Any) -> Any:
            return self if isinstance(place, slice) else row

    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "green")

    async def run() -> dict[str, Any]:
        manager = managers.NaiveRewardManager(config, tokenizer, function)
        assert manager.is_async_reward_score == name.endswith("async")
        return await manager.run_single(Batch())

    result = asyncio.run(run())
    assert result["reward_score"] == MEANS[0]
    assert result["reward_extra_info"]["raypref_cold"] == 0.0


@pytest.mark.parametrize("label", ["ann", '{"user_id": "ann", "answer": 4}', {"user_id": "ann"}])
def test_openrlhf_labels_name_the_user(service: State, monkeypatch: pytest.MonkeyPatch, label: Any) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("RAYPREF_URL", service.url)
    result = openrlhf.reward_func(["<s>Tea?green", "Tea?black"], ["Tea?", "Tea?"], [label, label])
    assert result["rewards"].tolist() == MEANS[:2]
    assert result["scores"].tolist() == MEANS[:2]
    assert result["extra_logs"]["raypref_cold"].tolist() == [0.0, 0.0]
    (sent,) = [json.loads(one.body) for one in service.seen]
    assert (sent["user"], sent["prompt"]) == ("ann", "Tea?")
    assert sent["candidates"] == [{"text": "green"}, {"text": "black"}]


def test_openrlhf_without_user_or_with_a_cut_prompt(service: State, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("RAYPREF_URL", service.url)
    openrlhf.reward_func(["a?green"], ["Tea?"], [None])
    sent = json.loads(service.seen[0].body)
    assert "user" not in sent
    assert "prompt" not in sent
    assert sent["candidates"] == [{"text": "a?green"}]
    for label in ('{"user": "ann"}', "{ann"):
        with pytest.raises(InputError, match="label"):
            openrlhf.reward_func(["Tea?green"], ["Tea?"], [label])
    empty = openrlhf.reward_func([], [], [])
    assert empty["rewards"].tolist() == []


def test_openrlhf_calls_it_as_it_calls_its_own(service: State, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec("openrlhf")
    if found is None or found.origin is None:
        pytest.skip("openrlhf is not installed")
    pytest.importorskip("aiohttp")
    # Its packages import DeepSpeed; the one module that calls reward functions needs none of it.
    for package in ("openrlhf", "openrlhf.utils"):
        bare = ModuleType(package)
        bare.__path__ = [str(Path(found.origin).parent.joinpath(*package.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, package, bare)
    agent = importlib.import_module("openrlhf.utils.agent")
    monkeypatch.setenv("RAYPREF_URL", service.url)
    executor = agent.SingleTurnAgentExecutor([openrlhf.__file__])
    results = asyncio.run(
        executor._fetch_rewards_via_func(["Tea?green", "Tea?black"], ["Tea?"] * 2, ["ann"] * 2)
    )
    assert [one["rewards"].item() for one in results] == MEANS[:2]
