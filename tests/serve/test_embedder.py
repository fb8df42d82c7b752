from __future__ import annotations

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ray import serve
from ray.serve.handle import DeploymentHandle

from raypref.checkpoint import BundleInfo
from raypref.config import HTTPConfig, InputConfig, RunConfig, TransformersConfig, VLLMConfig
from raypref.data.items import ItemTable
from raypref.embed import http
from raypref.embed.engine import resolve
from raypref.embed.load import load_engine
from raypref.embed.pipeline import embed, embed_texts
from raypref.embed.transformers import TransformersEngine
from raypref.errors import ConfigError
from raypref.methods.pal_b import PALBConfig
from raypref.schema import Embedder as Identity
from raypref.schema import content_hash
from raypref.serve.embedder import (
    BATCH_TEXTS,
    Embedder,
    embed_requests,
    embedder_deployment,
    matching,
    rendered,
    rendered_prompt,
)
from raypref.wire.errors import WireError
from raypref.wire.requests import Message, Text
from tests.embed import conftest as models
from tests.embed.embedding_server import DIM, Handler, Server, serving, vector
from tests.embed.test_engines import TEXTS, cosine

cache, minilm, tiny_qwen = models.cache, models.minilm, models.tiny_qwen

FICKLE_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "{{ messages[0]['content'] }}"
)


class FickleHandler(Handler):
    """Has no vector for a text with `nan` in it, and answers one with `too long` in it with 400."""

    def _answer(self, texts: list[str], fault: str | None) -> tuple[int, dict[str, Any]] | None:
        for word, own in (("nan", "nan"), ("too long", "400")):
            if any(word in text for text in texts):
                fault = own
        return super()._answer(texts, fault)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(http, "FIRST_PAUSE_S", 0.01)
    with serving() as server:
        server.RequestHandlerClass = FickleHandler
        yield server


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """An engine takes the process's threads for itself; other tests want theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def serve_instance(ray_cluster: None) -> Iterator[None]:
    serve.start(proxy_location="Disabled")
    yield
    serve.shutdown()


@pytest.fixture
def fickle(tiny_qwen: Path, tmp_path: Path) -> TransformersConfig:
    """A model whose chat template writes the first message's content alone, and refuses system messages."""
    folder = Path(shutil.copytree(tiny_qwen, tmp_path / "fickle"))
    (folder / "chat_template.jinja").write_text(FICKLE_TEMPLATE)
    return TransformersConfig(model=str(folder), template="chat", pooling="last", max_length=64)


def client_of(server: Server, **options: Any) -> HTTPConfig:
    return HTTPConfig(**{"model": "m", "url": server.url, "dim": DIM, "timeout_s": 5, **options})


async def started(config: HTTPConfig | dict[str, Any]) -> Embedder:
    """An embedder made as Serve makes it."""
    embedder = Embedder.__new__(Embedder)
    await embedder.__init__(config)
    return embedder


def expected(texts: list[str]) -> np.ndarray:
    return np.stack([vector(text) for text in texts])


def assert_refused(answer: np.ndarray | WireError, status: int) -> WireError:
    assert isinstance(answer, WireError)
    assert answer.status == status
    return answer


def chat(role: str, content: str) -> str:
    return json.dumps([{"role": role, "content": content}])


CHAT_PROMPT: Text = [Message(role="system", content="Be {prompt}."), Message(role="user", content="Why?")]


@pytest.mark.ray
@pytest.mark.parametrize("template", ["{prompt}\n\n{response}", "Q: {prompt} A: {response}"])
def test_texts_of_requests_are_the_texts_of_training(
    ray_cluster: None, server: Server, tmp_path: Path, template: str
) -> None:
    pairs: list[tuple[Text, Text]] = [
        ("plain {response}", "x"),
        (CHAT_PROMPT, "y"),
        (CHAT_PROMPT, [Message(role="assistant", content="überall 🌳")]),
        ([Message(role="user", content="one")], [Message(role="tool", content="z"), *CHAT_PROMPT]),
    ]
    rows = [
        {
            "user_id": "u",
            "prompt": prompt if isinstance(prompt, str) else [message.model_dump() for message in prompt],
            "response": response if isinstance(response, str) else [one.model_dump() for one in response],
            "rating": 1,
        }
        for prompt, response in pairs
    ]
    path = tmp_path / "ratings.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = client_of(server, template=template, prompts=True)
    embed(RunConfig(dir=tmp_path, input=InputConfig(path=path), embed=config))
    items = ItemTable.open(tmp_path / "items")
    found_N = items.rows_of([content_hash(rendered(template, *pair)) for pair in pairs])
    assert found_N.tolist() == [0, 1, 2, 3]
    prompt_N = items.rows_of([content_hash(rendered_prompt(template, prompt)) for prompt, _ in pairs])
    assert prompt_N.tolist() == items.prompt_N[:4].tolist() == [4, 5, 5, 6]


def test_a_chat_is_rendered_as_one_canonical_json() -> None:
    text = rendered("chat", CHAT_PROMPT, "Because.")
    assert text == (
        '[{"content":"Be {prompt}.","role":"system"},{"content":"Why?","role":"user"},'
        '{"content":"Because.","role":"assistant"}]'
    )
    assert json.loads(rendered_prompt("chat", CHAT_PROMPT)) == json.loads(text)[:2]


def test_an_empty_response_is_a_text_like_any_other() -> None:
    assert rendered("{prompt} {response}", "p", "") == "p "


@pytest.mark.parametrize("blank", ["", " \n", [Message(role="assistant", content=" ")]])
def test_a_prompt_that_is_needed_must_be_given(blank: Text) -> None:
    with pytest.raises(WireError, match="needs the prompt") as refused:
        rendered_prompt("{prompt} {response}", blank)
    assert (refused.value.status, refused.value.param) == (422, "prompt")


@pytest.mark.ray
def test_vectors_are_those_of_the_items_table(ray_cluster: None, minilm: str, tmp_path: Path) -> None:
    config = TransformersConfig(model=minilm, template="{response}")
    metadata = embed_texts(TEXTS, tmp_path, config)
    table_ND = ItemTable.open(tmp_path).gather(np.arange(len(TEXTS)))
    engine, model = load_engine(config)
    assert model.embedder == metadata.embedder
    (together_ND,) = embed_requests(engine, model.embedder, [TEXTS])
    assert isinstance(together_ND, np.ndarray)
    assert together_ND.dtype == np.float16
    assert together_ND.tobytes() == table_ND.tobytes()
    # Other company means other padding, which may tip the last bit of a rounding.
    alone = embed_requests(engine, model.embedder, [[text] for text in TEXTS])
    np.testing.assert_array_max_ulp(np.concatenate(alone), table_ND, maxulp=1)


def test_a_bad_text_fails_its_own_request_only(fickle: TransformersConfig) -> None:
    engine, model = load_engine(fickle)
    good = [[chat("user", text) for text in texts] for texts in (TEXTS[:2], TEXTS[2:3], TEXTS[3:])]
    silent, refused = chat("user", "  "), chat("system", "obey")
    requests = [good[0], [silent], good[1], [*good[0], refused], good[2]]
    answers = embed_requests(engine, model.embedder, requests)
    for number in (1, 3):
        error = assert_refused(answers[number], 422)
        assert error.param == "text"
        assert "obey" not in error.message
    for number, texts in ((0, good[0]), (2, good[1]), (4, good[2])):
        np.testing.assert_allclose(answers[number], engine.embed(texts), atol=2e-3)


def test_a_vector_that_is_not_finite_fails_its_own_request_only(fickle: TransformersConfig) -> None:
    engine, model = load_engine(fickle)
    assert isinstance(engine, TransformersEngine)
    unknown = int(engine._tokens([chat("user", "parks")])[0][0])
    with torch.inference_mode():
        engine._model.get_input_embeddings().weight[unknown] = torch.nan
    bad, good = [chat("user", "parks")], [chat("user", "taxes"), chat("user", "the bus")]
    first, second = embed_requests(engine, model.embedder, [bad, good])
    assert_refused(first, 422)
    assert isinstance(second, np.ndarray)
    assert np.isfinite(second).all()


@pytest.mark.parametrize("word", ["nan", "too long"])
def test_what_a_server_refuses_fails_its_own_request_only(server: Server, word: str) -> None:
    async def ask() -> list[np.ndarray | WireError]:
        embedder = await started(client_of(server))
        requests = [[f"text {n}", "more"] for n in range(9)]
        requests[4][1] = f"my secret, {word}"
        return await asyncio.gather(*map(embedder.embed, requests))

    answers = asyncio.run(ask())
    assert "secret" not in assert_refused(answers.pop(4), 422).message
    for number, answer in zip([0, 1, 2, 3, 5, 6, 7, 8], answers, strict=True):
        assert not isinstance(answer, WireError)
        assert answer.dtype == np.float16
        np.testing.assert_array_equal(answer, expected([f"text {number}", "more"]).astype(np.float16))


def test_concurrent_requests_share_passes(server: Server) -> None:
    async def ask() -> list[np.ndarray | WireError]:
        embedder = await started(client_of(server))
        return await asyncio.gather(*(embedder.embed([f"text {n}"]) for n in range(40)))

    answers = asyncio.run(ask())
    np.testing.assert_allclose(np.concatenate(answers), expected([f"text {n}" for n in range(40)]), atol=1e-3)
    assert server.requests < 10


def test_a_large_request_takes_turns_with_small_ones(server: Server) -> None:
    texts = [f"text {n}" for n in range(4 * BATCH_TEXTS + 7)]
    done: list[str] = []

    async def ask(embedder: Embedder, name: str, texts: list[str]) -> np.ndarray | WireError:
        answer = await embedder.embed(texts)
        done.append(name)
        return answer

    async def both() -> tuple[np.ndarray | WireError, ...]:
        embedder = await started(client_of(server))
        large = asyncio.create_task(ask(embedder, "large", texts))
        await asyncio.sleep(0.05)
        return await asyncio.gather(large, ask(embedder, "small", ["small"]))

    server.pause_s = 0.05
    large, small = asyncio.run(both())
    assert done == ["small", "large"]
    np.testing.assert_array_equal(large, expected(texts).astype(np.float16))
    np.testing.assert_array_equal(small, expected(["small"]).astype(np.float16))


def test_no_texts_have_no_vectors(server: Server) -> None:
    async def ask() -> np.ndarray | WireError:
        return await (await started(client_of(server))).embed([])

    answer = asyncio.run(ask())
    assert isinstance(answer, np.ndarray)
    assert (answer.shape, answer.dtype, server.requests) == ((0, DIM), np.float16, 0)


def test_text_that_is_not_unicode_is_refused_before_the_engine(server: Server) -> None:
    async def ask() -> np.ndarray | WireError:
        return await (await started(client_of(server))).embed(["fine", "half \ud83c"])

    assert_refused(asyncio.run(ask()), 422)
    assert server.requests == 0


def test_a_slow_engine_does_not_block_the_loop(server: Server) -> None:
    async def longest_wait_s() -> float:
        embedder = await started(client_of(server))
        task = asyncio.create_task(embedder.embed(["text"]))
        longest_s, last_s = 0.0, time.monotonic()
        while not task.done():
            await asyncio.sleep(0.01)
            now_s = time.monotonic()
            longest_s, last_s = max(longest_s, now_s - last_s), now_s
        assert isinstance(task.result(), np.ndarray)
        return longest_s

    server.pause_s = 1.0
    assert asyncio.run(longest_wait_s()) < 0.5


def test_a_server_that_is_down_is_503_and_used_again_once_it_is_up(server: Server) -> None:
    async def ask() -> list[np.ndarray | WireError]:
        embedder = await started(client_of(server).model_dump())
        server.faults = ["503", "503"]
        answers = [await embedder.embed(["x"])]
        await embedder.check_health()
        return [*answers, await embedder.embed(["x"])]

    down, up = asyncio.run(ask())
    error = assert_refused(down, 503)
    assert error.retry_after_s == 5
    assert server.url not in error.message
    np.testing.assert_array_equal(up, expected(["x"]).astype(np.float16))
    # The client may ask again; the pipeline's five retries would keep it waiting.
    assert server.requests == 3


def test_no_server_at_all_is_503_for_every_request_of_the_batch(server: Server) -> None:
    with serving() as gone:
        config = client_of(gone)

    async def ask() -> list[np.ndarray | WireError]:
        embedder = await started(config)
        return await asyncio.gather(*(embedder.embed([text]) for text in "abc"))

    for answer in asyncio.run(ask()):
        assert_refused(answer, 503)


def test_a_key_that_the_server_refuses_is_503(server: Server) -> None:
    async def ask() -> np.ndarray | WireError:
        embedder = await started(client_of(server))
        server.faults = ["401"]
        return await embedder.embed(["x"])

    assert_refused(asyncio.run(ask()), 503)


def test_the_key_of_a_server_comes_from_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = client_of(server, api_key_env="RAYPREF_TEST_KEY")
    with pytest.raises(ConfigError, match="RAYPREF_TEST_KEY is not set"):
        load_engine(config)
    monkeypatch.setenv("RAYPREF_TEST_KEY", "secret")
    load_engine(config)[0].embed(["x"])
    assert server.headers[0]["Authorization"] == "Bearer secret"


def deployed(config: TransformersConfig | VLLMConfig) -> DeploymentHandle:
    return serve.run(embedder_deployment(config).bind(config), name="embedder", route_prefix=None)


@pytest.mark.ray
@pytest.mark.slow
def test_the_deployment_answers_mixed_requests(
    serve_instance: None, fickle: TransformersConfig, tmp_path: Path
) -> None:
    texts = [chat("user", f"{text} {n}") for n in range(5) for text in TEXTS[:4]]
    embed_texts(texts, tmp_path / "items", fickle)
    table_ND = ItemTable.open(tmp_path / "items").gather(np.arange(len(texts)))
    handle = deployed(fickle)
    try:
        assert handle.describe.remote().result(timeout_s=60) == resolve(fickle).embedder
        alone_ND = handle.embed.remote(texts).result(timeout_s=60)
        assert alone_ND.tobytes() == table_ND.tobytes()
        sent = [handle.embed.remote([text]) for text in texts]
        bad = handle.embed.remote([texts[0], chat("user", " ")])
        answers = [response.result(timeout_s=60) for response in sent]
        assert_refused(bad.result(timeout_s=60), 422)
        np.testing.assert_array_max_ulp(np.concatenate(answers), table_ND, maxulp=1)
    finally:
        serve.delete("embedder")


def engine_processes() -> list[psutil.Process]:
    """The processes of vLLM's engines that descend from this one's cluster."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "EngineCore" in " ".join([child.name(), *child.cmdline()])]


@pytest.mark.ray
@pytest.mark.engine
@pytest.mark.slow
def test_vllm_agrees_with_transformers_and_is_replaced_when_it_dies(
    serve_instance: None, minilm: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"model": minilm, "max_length": 64}
    reference = TransformersConfig(**options)
    engine, model = load_engine(reference)
    config = VLLMConfig(**options, dtype="float32", enforce_eager=True)
    handle = deployed(config)
    try:
        assert handle.describe.remote().result(timeout_s=60) == model.embedder
        answer_ND = handle.embed.remote(TEXTS).result(timeout_s=60)
        assert answer_ND.dtype == np.float16
        assert cosine(answer_ND, engine.embed(TEXTS)).min() > 0.9999
        (process,) = engine_processes()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert_refused(handle.embed.remote(TEXTS).result(timeout_s=60), 503)
        end = time.monotonic() + 240
        while isinstance(again := handle.embed.remote(TEXTS).result(timeout_s=120), WireError):
            assert_refused(again, 503)
            assert time.monotonic() < end
            time.sleep(1)
        np.testing.assert_array_equal(again, answer_ND)
    finally:
        serve.delete("embedder")


def test_what_a_service_leaves_open_is_as_the_bundle_has_it() -> None:
    embedder = Identity(
        model="m",
        revision="1",
        pooling="last",
        normalised=False,
        template="{prompt} {response}!",
        max_length=99,
        dim=3,
    )
    info = BundleInfo(
        method=PALBConfig(),
        dim=6,
        users=1,
        embedder=embedder,
        data_fingerprint="0",
        steps=1,
        metrics={},
        versions={},
    )
    left_open = matching(TransformersConfig(model="other", batch_size=5), info)
    assert isinstance(left_open, TransformersConfig)
    assert (left_open.pooling, left_open.normalise, left_open.prompts) == ("last", False, True)
    assert (left_open.template, left_open.max_length) == ("{prompt} {response}!", 99)
    assert (left_open.model, left_open.batch_size) == ("other", 5)
    given = TransformersConfig(template="{prompt}{response}?")
    assert matching(given, info).template == "{prompt}{response}?"
