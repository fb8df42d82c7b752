from __future__ import annotations

from raypref.methods import BTConfig
from tests.methods.contract import Contract


class TestBT(Contract):
    config = BTConfig()
