"""Tasks: what the network may see, and where its answer counts; one line each."""

from typing import Annotated

from pointillist.tasks.inpaint import InpaintConfig, read_mask
from pointillist.tasks.mixture import MixtureConfig, UpscaleConfig
from pointillist.tasks.places import BoxConfig, EverywhereConfig, RandomConfig
from pointillist.tasks.scatter import HintsConfig, ScatterConfig
from pointillist.tasks.task import GenerateConfig, HeldOut, Masking, TaskBase, said, show
from pointillist.types import by_kind

Task = Annotated[
    GenerateConfig | HintsConfig | ScatterConfig | InpaintConfig | UpscaleConfig | MixtureConfig,
    by_kind,
]

__all__ = [
    "BoxConfig",
    "EverywhereConfig",
    "GenerateConfig",
    "HeldOut",
    "HintsConfig",
    "InpaintConfig",
    "Masking",
    "MixtureConfig",
    "RandomConfig",
    "ScatterConfig",
    "Task",
    "TaskBase",
    "UpscaleConfig",
    "read_mask",
    "said",
    "show",
]
