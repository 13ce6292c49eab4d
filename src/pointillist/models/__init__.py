"""The backbones, one line each; this list is the whole registry."""

from typing import Annotated

from pointillist.models.diffit import DiffiTConfig
from pointillist.models.diffit_flat import DiffiTFlatConfig
from pointillist.models.dit import DiTConfig
from pointillist.models.door import Network
from pointillist.models.hybrid import HybridConfig
from pointillist.models.jit import JiTConfig
from pointillist.models.local import LocalConfig
from pointillist.models.mamba import MambaConfig
from pointillist.models.perceiver_io import PerceiverIOConfig
from pointillist.models.pixeldit import PixelDiTConfig
from pointillist.models.pixeldit_text import PixelDiTTextConfig
from pointillist.models.pixelhdm import PixelHDMConfig
from pointillist.models.pixnerd import PixNerdConfig
from pointillist.models.pixnerd_text import PixNerdTextConfig
from pointillist.models.tiles import in_tiles
from pointillist.types import by_kind

Backbone = Annotated[
    DiTConfig
    | JiTConfig
    | PixelDiTConfig
    | PixelDiTTextConfig
    | PixNerdConfig
    | PixNerdTextConfig
    | PerceiverIOConfig
    | LocalConfig
    | MambaConfig
    | HybridConfig
    | DiffiTConfig
    | DiffiTFlatConfig
    | PixelHDMConfig,
    by_kind,
]

__all__ = [
    "Backbone",
    "DiTConfig",
    "DiffiTConfig",
    "DiffiTFlatConfig",
    "HybridConfig",
    "JiTConfig",
    "LocalConfig",
    "MambaConfig",
    "Network",
    "PerceiverIOConfig",
    "PixNerdConfig",
    "PixNerdTextConfig",
    "PixelDiTConfig",
    "PixelDiTTextConfig",
    "PixelHDMConfig",
    "in_tiles",
]
