"""The example of docs/align.md: the same person, and who would be bolder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest

from raypref.client import Client, Comparison
from raypref.data.rows import Text
from raypref.schema import Embedder
from raypref.serve.config import ServeConfig
from tests.conftest import REPOSITORY
from tests.serve.conftest import MakeBundle
from tests.serve.world import DIM, embedder_of, listening


class Texts:
    """Makes the vector of a text from its digest."""

    async def embed(self, items: Sequence[tuple[Text | None, Text]]) -> tuple[np.ndarray, Embedder]:
        seeds = [int.from_bytes(hashlib.sha256(str(item).encode()).digest()[:4]) for item in items]
        rows = [np.random.default_rng(seed).standard_normal(DIM) for seed in seeds]
        return np.array(rows, np.float16), await self.describe()

    async def describe(self) -> Embedder:
        return embedder_of()


@pytest.mark.parametrize("method", ["lore", "vrf"])
def test_the_example_runs(method: str, bundle_of: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs/align.md").read_text()
    example = page.split("<!-- steering -->")[1].split("<!-- end of steering -->")[0]
    example = example.strip().removeprefix("```python\n").removesuffix("\n```")
    config = ServeConfig.model_validate(
        {"bundle": bundle_of(method), "store": "memory:", "open": True, "embed": {"model": "test"}}
    )
    with listening(config, Texts()) as address:
        with Client(address) as client:
            client.learn("anna", [Comparison("Hike up a hill.", "Book a spa.")])
        exec(compile(example.replace("http://127.0.0.1:8000", address), "align.md", "exec"), {})
    known, bolder = capsys.readouterr().out.strip().splitlines()
    assert known != bolder
