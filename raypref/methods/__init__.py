"""Every method, under one contract; the union below is the only list of them."""

from typing import Annotated, get_args

from pydantic import Field

from raypref.methods.base import MethodConfig
from raypref.methods.biscuit import BiscuitConfig
from raypref.methods.bt import BTConfig
from raypref.methods.dpl import DPLConfig
from raypref.methods.fedvpa import FedVPAConfig
from raypref.methods.lore import LoReConfig
from raypref.methods.pal import PALConfig
from raypref.methods.pal_b import PALBConfig
from raypref.methods.pref import PReFConfig
from raypref.methods.spl import SPLConfig
from raypref.methods.vpl import VPLConfig
from raypref.methods.vrf import VRFConfig

AnyMethod = Annotated[
    BTConfig
    | BiscuitConfig
    | DPLConfig
    | FedVPAConfig
    | LoReConfig
    | PALBConfig
    | PALConfig
    | PReFConfig
    | SPLConfig
    | VPLConfig
    | VRFConfig,
    Field(discriminator="type"),
]

DEFAULT_METHOD = VRFConfig()
METHODS: tuple[type[MethodConfig], ...] = get_args(get_args(AnyMethod)[0])

__all__ = [
    "DEFAULT_METHOD",
    "METHODS",
    "AnyMethod",
    "BTConfig",
    "BiscuitConfig",
    "DPLConfig",
    "FedVPAConfig",
    "LoReConfig",
    "PALBConfig",
    "PALConfig",
    "PReFConfig",
    "SPLConfig",
    "VPLConfig",
    "VRFConfig",
]
