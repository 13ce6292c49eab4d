"""The encoders of observations, one line each; this list is the whole registry."""

from typing import Annotated

from pointillist.encoders.curve import CurveConfig
from pointillist.encoders.encoder import Encoder, NoEncoderConfig, Site, answered
from pointillist.encoders.grid import GridConfig
from pointillist.encoders.perceiver import PerceiverConfig
from pointillist.encoders.splat import SplatConfig
from pointillist.encoders.unet import UNetConfig
from pointillist.types import by_kind

Observing = Annotated[
    NoEncoderConfig | GridConfig | PerceiverConfig | CurveConfig | SplatConfig | UNetConfig, by_kind
]

__all__ = [
    "CurveConfig",
    "Encoder",
    "GridConfig",
    "NoEncoderConfig",
    "Observing",
    "PerceiverConfig",
    "Site",
    "SplatConfig",
    "UNetConfig",
    "answered",
]
