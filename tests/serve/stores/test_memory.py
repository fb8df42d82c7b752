from __future__ import annotations

import pytest

from tests.serve.stores.laws import Laws


class TestMemory(Laws):
    @pytest.fixture
    def url(self) -> str:
        return "memory:"
