"""What the network is asked and how its answer is read: only this folder knows the noise end.

One convention for the whole package: `t = 0` is noise, `t = 1` is data. On any path

    x_t = alpha x + sigma eps        velocity v = alpha' x + sigma' eps

and on the straight one, the default, alpha = t, sigma = 1 - t, v = x - eps. Published code with the
other convention is converted at the door. A path is `alpha`, `sigma` and their derivatives
(`paths.py`); `discrete.py` has DDPM's path of whole steps, `edm.py` EDM's answer and `noise.py`
noise that is a function of the coordinates.

Sources: Lipman et al. 2210.02747 and Liu et al. 2209.03003 (straight path), Ma et al. 2401.08740
(SiT: GVP and VP as interpolants), Song et al. 2011.13456 (VP, VE), Nichol and Dhariwal 2102.09672
(cosine), Karras et al. 2206.00364 (EDM), Esser et al. 2403.03206 (logit-normal times, resolution
shift), Li and He 2511.13720 (x-prediction, clamp, noise by size).
"""

from typing import Annotated, Any

from pydantic import BeforeValidator

from pointillist.objective.discrete import DDPMConfig
from pointillist.objective.edm import EDMConfig
from pointillist.objective.interpolant import FAINTEST, Interpolant
from pointillist.objective.paths import (
    CosineConfig,
    GVPConfig,
    StraightConfig,
    VEConfig,
    VPConfig,
)
from pointillist.objective.times import LogitNormal, Times, Uniform, shift_times
from pointillist.types import by_kind

__all__ = [
    "FAINTEST",
    "CosineConfig",
    "DDPMConfig",
    "EDMConfig",
    "GVPConfig",
    "Interpolant",
    "LogitNormal",
    "Objective",
    "StraightConfig",
    "Times",
    "Uniform",
    "VEConfig",
    "VPConfig",
    "shift_times",
]


def _straight_unless_said(value: Any) -> Any:
    """A configuration may leave the kind out, as all did while there was one path."""
    return {"kind": "straight", **value} if isinstance(value, dict) else value


Objective = Annotated[
    StraightConfig | GVPConfig | VPConfig | CosineConfig | VEConfig | EDMConfig | DDPMConfig,
    by_kind,
    BeforeValidator(_straight_unless_said),
]
