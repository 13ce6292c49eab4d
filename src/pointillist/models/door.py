"""The door of every network: what is asked, put into the form that the model takes.

A picture is a grid `b c *space`, sensors are a set `b c k` at `where`; observations come gridded,
scattered or both. A model states in `takes` what it works on, and only this file converts.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from pointillist.layers.dropout import name_dropouts
from pointillist.layers.observations import centres, to_grid, to_points
from pointillist.resolution import base_scale
from pointillist.types import Coarse, Given, InputError, Prediction, State, Takes, Time


def admit(takes: Takes, given: Given, size: tuple[int, ...], batch: int, name: str) -> Given:
    """`given` in the form a model takes for a state of `size`; InputError where it takes none."""
    axes = given.where.shape[-1] if given.where is not None else len(size)
    if axes not in takes.axes:
        raise InputError(
            f"model {name} takes {' or '.join(map(str, takes.axes))} axes of space, not {axes}"
        )
    if given.where is not None and not takes.sets:
        raise InputError(f"model {name} answers on grids only, not at scattered places")
    gridded, scattered = given.seen is not None, given.at is not None
    if (gridded or scattered) and takes.observations == "none":
        raise InputError(
            f"model {name} of this run takes no hints; train one with model.encoder.kind=grid (or "
            f"another) and task.kind=scatter"
        )
    if takes.observations == "gridded" and scattered:
        given = gather_on_grid(given, size)
    if takes.observations == "scattered" and gridded:
        given = _gather_as_points(given)
    if takes.sets and given.where is None:
        places = centres(size)[None].expand(batch, -1, -1)
        given = given._replace(where=places)
    return given


def gather_on_grid(given: Given, size: tuple[int, ...]) -> Given:
    """Scattered observations as gridded ones: each cell the mean of the points that lie in it."""
    assert given.at is not None and given.value is not None
    valid = given.valid
    if valid is None:
        valid = torch.ones_like(given.value[:, :1], dtype=torch.bool)
    seen, mask = to_grid(given.at, given.value, valid, size)
    if given.seen is not None:
        assert given.mask is not None
        if tuple(given.seen.shape[2:]) != size:
            raise InputError("scattered and coarse gridded observations cannot share one grid")
        held = given.mask.expand_as(given.seen)
        # A cell's own value wins over points that fell into the cell.
        seen, mask = torch.where(held, given.seen, seen), held | mask
    return given._replace(seen=seen, mask=mask, at=None, value=None, valid=None)


def _gather_as_points(given: Given) -> Given:
    assert given.seen is not None and given.mask is not None
    at, value, valid = to_points(given.seen, given.mask)
    if given.at is not None:
        assert given.value is not None and given.valid is not None
        at = torch.cat((given.at, at), 1)
        valid = torch.cat((given.valid.expand_as(given.value), valid), 2)
        value = torch.cat((given.value, value), 2)
    return given._replace(seen=None, mask=None, at=at, value=value, valid=valid)


class Network:
    """A model behind its door: the same two methods, for states and observations of any form."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.takes: Takes = model.takes  # type: ignore[assignment]
        self.name: str = model.config.kind  # type: ignore[union-attr, assignment]
        name_dropouts(model)

    def _admit(self, given: Given, size: tuple[int, ...], batch: int) -> Given:
        given = admit(self.takes, given, size, batch, self.name)
        where = given.where
        return given if where is None else given._replace(where=where.to(self.device))

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    def condition(
        self, given: Given, size: tuple[int, ...], asked: tuple[int, ...] | None = None
    ) -> Any:
        """All that needs neither state nor time, encoded once for a whole sampling run.

        `asked`: the grid of the answer, where a model that renders sees the state on one of `size`.
        """
        batch = next((v.shape[0] for v in given if isinstance(v, Tensor)), 1)
        admitted, model = self._admit(given, size, batch), cast(Any, self.model)
        if asked is None or asked == size:
            return model.condition(admitted, size)
        return model.condition(admitted, size, asked)

    def scale(self, size: tuple[int, ...]) -> int:
        """By how much the state that the model sees is smaller than `size`: 1 where it renders not.

        A model that does is best asked near its training size.
        """
        if not self.takes.renders:
            return 1
        model: Any = self.model
        return base_scale(size, model.spec.size, model.config.patch_size)

    def render(
        self,
        xt: State,
        t: Time,
        coarse: Coarse,
        t_coarse: Time,
        given: Given,
        context: Any = None,
        offsets: Tensor | None = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        """The model's answer for `xt`, of which it sees `coarse`, at the time of that.

        `context` and observations belong to the coarse size. Only for models that `takes.renders`.
        """
        if context is None:
            context = self.condition(given, tuple(coarse.shape[2:]), tuple(xt.shape[2:]))
        model: Any = self.model
        return model.render(xt, t, coarse, t_coarse, given, context, offsets, taps)

    def __call__(
        self,
        xt: State,
        t: Time,
        given: Given,
        context: Any = None,
        taps: tuple[int, ...] = (),
    ) -> Prediction:
        """The model's answer, and the tokens behind the blocks `taps`, counted from 1."""
        size = tuple(xt.shape[2:])
        # A model that gives nothing away is not asked to.
        tapped = {"taps": taps} if taps else {}
        if context is None:  # a context already holds what `given` says in the model's own form
            given = self._admit(given, size, xt.shape[0])
        if not self.takes.sets or xt.dim() == 3:
            return self.model(xt, t, given, context, **tapped)
        flat = self.model(xt.flatten(2), t, given, context, **tapped)
        return flat._replace(value=flat.value.unflatten(2, size))
