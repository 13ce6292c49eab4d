"""What every term has that can be switched off: a weight, and fields that mean nothing without."""

import dataclasses
from typing import Any

from pointillist.types import InputError, Spec


def check_term(config: Any, path: str) -> None:
    """InputError for a weight below 0, and for a field that is set while the weight is 0."""
    if config.weight < 0:
        raise InputError(f"{path}.weight is {config.weight}; a weight is 0 or more")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not config.weight and value != field.default:
            raise InputError(
                f"{path}.{field.name} is {value}, but {path}.weight is 0, so nothing comes of it; "
                f"set the weight too, or {path}={{}} to have none"
            )


def check_pictures(config: Any, path: str, spec: Spec, what: str, channels: int | None = 3) -> None:
    """InputError unless the data are pictures with the channels that the term looks at."""
    if not config.weight:
        return
    if spec.code is not None and channels is not None:
        raise InputError(
            f"{path}.weight is {config.weight}, but the data are latents, and {what} looks at "
            f"pictures; set {path}={{}}"
        )
    if len(spec.size) != 2:
        raise InputError(
            f"{path}.weight is {config.weight}, but the data have {len(spec.size)} axes, and "
            f"{what} looks at pictures; set {path}={{}}"
        )
    if channels is not None and spec.channels != channels:
        remedy = f"{path}.colour=none" if hasattr(config, "colour") else f"{path}={{}}"
        raise InputError(
            f"{path}.weight is {config.weight}, but the data have {spec.channels} channels, and "
            f"{what} looks at {channels}; set {remedy}"
        )
