"""From a network to a velocity field, and from field to field: guidance is a closure.

A guided field is made of a field, a reference to lead away from (the network without its label,
with another label, or a weaker network), a weight for every time, and a rule that combines the two
estimates. The rules compose: `rescaled(projected(...))` projects first and rescales the outcome.
They act on the predicted picture, whatever the network predicts, and the noise of the pair follows
(`moved`), so that state, picture and noise stay on one path.

Sources: Ho and Salimans 2207.12598 (classifier-free), Kynkaanniemi et al. 2404.07724 (interval),
Lin et al. 2305.08891 (rescale), Sadat et al. 2410.02416 (adaptive projection), Karras et al.
2406.02507 (autoguidance), Gao et al. 2303.14389 and Hatamizadeh et al. 2312.02139 (power-cosine).
"""

from pointillist.guidance.configuration import APGConfig, AutoConfig, GuidanceConfig, label_number
from pointillist.guidance.field import (
    Count,
    Field,
    classifier_free,
    combined,
    network_field,
    pinned,
)
from pointillist.guidance.rules import Combine, first_channels, moved, plain, projected, rescaled
from pointillist.guidance.schedule import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    ListSchedule,
    PowerCosineSchedule,
    Schedule,
)

__all__ = [
    "APGConfig",
    "AutoConfig",
    "Combine",
    "ConstantSchedule",
    "CosineSchedule",
    "Count",
    "Field",
    "GuidanceConfig",
    "LinearSchedule",
    "ListSchedule",
    "PowerCosineSchedule",
    "Schedule",
    "classifier_free",
    "combined",
    "first_channels",
    "label_number",
    "moved",
    "network_field",
    "pinned",
    "plain",
    "projected",
    "rescaled",
]
