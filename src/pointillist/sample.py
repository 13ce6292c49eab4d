"""From a run folder to pictures: load, sample, draw posteriors."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointillist.agreement import check_reads
from pointillist.answer import Answering
from pointillist.engine.device import pick_device
from pointillist.guidance import AutoConfig
from pointillist.known import Observed, given_of, rows_of
from pointillist.known_points import observed
from pointillist.models import Network
from pointillist.posterior import Posterior, RunningMoments
from pointillist.request import (
    ask_of,
    check_pixels,
    finer,
    labels_of,
    places_of,
    plain_label,
    prompts_of,
    start_of,
)
from pointillist.run import Run
from pointillist.runfolder import check_shapes, read_spec
from pointillist.samplers import Watch
from pointillist.snapshots import Origin, parse_ema, read_weights
from pointillist.types import InputError, Spec


class Trained(Answering):
    """A network with its run: ask it for pictures."""

    def sample(
        self,
        count: int = 16,
        label: Any = None,
        *,
        known: Observed | None = None,
        where: Any = None,
        guide: "Trained | None" = None,
        watch: Watch | None = None,
        **ask: Any,
    ) -> Tensor:
        """`count` pictures, `count c *space` in [-1, 1]; fields of `Ask` by name.

        A model on sets answers at the places `where`, `k s` or `count k s`, in the place of a grid.

        `known` holds pixels that are known, as `Given(seen=, mask=)` on the picture's grid or
        `Given(at=, value=)` at points (row, column), [-1, -1] the top left corner; they come back
        unchanged. On a coarser grid they are means over its cells. A pair (measure, y) is any
        linear measurement (`pointillist.measure`) with its outcome, which no network is shown.

        `guide` is a weaker network to lead away from (autoguidance), in the place of one without
        labels.

        `label` is a class by number or name, one for each picture, or None: the classes in turn.
        A run that reads captions takes `prompt=`, one text or one for each picture ("": nothing is
        said), and `negative=`, a text to lead away from; without a label it is told none.
        Picture i is a function of (seed, i) and the request, not of what it is batched with.
        """
        request = ask_of({**ask, "count": count, "label": label})
        return self.answer(request, watch, known=known, guide=guide, where=where).x

    def posterior(
        self,
        known: Observed,
        draws: int = 19,
        label: Any = None,
        *,
        where: Any = None,
        first: int = 0,
        keep: bool = True,
        progress: Callable[[int], None] | None = None,
        **ask: Any,
    ) -> Posterior:
        """`draws` pictures for each row of `known`, `draws b c *space`; fields of `Ask` by name.

        Draw j of picture i is a function of (seed, i, j) and the request; draw 0 is what `sample`
        gives with the same label. `first` is the number of the first row, for rows that are a part
        of more. Without `keep` mean and spread are gathered on the way and the draws forgotten.
        `label` is one for all, or one for each picture; None is "not known", as -1 is; so is
        `prompt`, where the run reads captions. `progress` hears of pictures drawn.
        """
        for name, value, least in (("draws", draws, 1), ("first", first, 0)):
            if value < least:
                raise InputError(f"{name} is {value}; it is {least} or more")
        check_pixels(self.spec)
        label = plain_label(-1 if label is None and self.spec.classes else label)
        count = rows_of(known)
        count = len(label) if count == 1 and isinstance(label, tuple) else count
        request = ask_of(ask)
        places = places_of(where, count, len(self.spec.size))
        size = self.prepare(request, places=places).size
        every = observed(known, count, self.spec, size, places, self.network.takes)
        pictures = torch.arange(first, first + count)
        labels = labels_of(label, pictures, self.spec.classes)
        unsaid = "" if self.spec.words is not None and request.prompt is None else request.prompt
        prompts = prompts_of(unsaid, count, self.spec)
        moments, kept, nfe = RunningMoments(), [], 0
        together = max(1, request.batch // count)
        for start in range(0, draws, together):
            number = torch.arange(start, min(start + together, draws))
            some = number.shape[0]
            answer = self.answer(
                dataclasses.replace(
                    request, count=some * count,
                    label=None if labels is None else tuple(labels.tolist()) * some,
                    prompt=None if prompts is None else prompts * some,
                ),
                known=every.rows(torch.arange(count).repeat(some)),
                where=None if places is None else places.repeat(some, 1, 1),
                # The picture in the lower half of the number, the draw in the upper.
                numbers=(number[:, None] * 2**32 + pictures).flatten(),
            )  # fmt: skip
            x = answer.x.unflatten(0, (some, count))
            moments.add(x)
            nfe = answer.nfe
            kept.extend([x] * keep)
            if progress is not None:
                progress((start + some) * count)
        hidden = ~every.mask if every.mask is not None and every.within(size) else None
        return Posterior(moments, torch.cat(kept) if keep else None, hidden, nfe=nfe)

    def reconstruct(
        self,
        values: Any,
        mask: Any = None,
        *,
        at: Any = None,
        where: Any = None,
        draws: int = 19,
        label: Any = None,
        **ask: Any,
    ) -> Posterior:
        """The posterior of one picture (`c *space`) or several (`b c *space`) of what is known.

        `values` are numbers in [-1, 1] or 8-bit levels, on the grid or at points `at`; `mask` is
        true where they are known; without one NaN is "not known". numpy in, numpy out. Fields of
        `Ask` by name: `size` asks for a finer grid, of which a value is then the mean over its
        cell; `noise` states the standard deviation of the values, which then need not come back as
        they are. A model on sets answers at any places `where`, `k s`, in the place of a grid.
        """
        given, one = given_of(values, mask, at, len(self.spec.size))
        if given.seen is not None and ask.get("size") is None and where is None:
            ask["size"] = tuple(given.seen.shape[2:])
        post = self.posterior(given, draws, label, where=where, **ask)
        post = post.first() if one else post
        return post.in_arrays() if isinstance(values, np.ndarray) else post

    def upscale(
        self,
        image: Any,
        size: tuple[int, ...] | None = None,
        scale: int | None = None,
        *,
        draws: int = 1,
        **ask: Any,
    ) -> Any:
        """One picture (`c *space`) or several on a finer grid, of `size` or `scale` times as fine.

        The mean of `draws`: one draw is sharp, the mean of many is nearest to the truth. Area means
        of the answer are the picture that was given. numpy in, numpy out.
        """
        given, _ = given_of(image, None, None, len(self.spec.size))
        assert given.seen is not None
        wanted = finer(tuple(given.seen.shape[2:]), size, scale)
        return self.reconstruct(image, draws=draws, size=wanted, **ask).mean

    def edit(
        self,
        image: Any,
        prompt: Any = None,
        strength: Any = 0.6,
        *,
        label: Any = None,
        **ask: Any,
    ) -> Any:
        """One picture (`c h w`) or several, changed towards what prompt or label say.

        SDEdit (Meng et al. 2108.01073): the picture gets the noise of t = 1 - `strength`, in (0, 1]
        on the path's own clock, and is walked from there, on those of the run's times that are
        left. Strength 1 is `sample` at that size; with little the picture stays. Values as
        `reconstruct` takes them; numpy in, numpy out.
        """
        given, one = given_of(image, None, None, len(self.spec.size))
        start = start_of(given, strength, self.spec, ask)
        if label is None and self.spec.classes:
            label = -1
        asked = {"count": start.x.shape[0], "size": tuple(start.x.shape[2:])}
        request = ask_of({**ask, **asked, "prompt": prompt, "label": label})
        found = self.answer(request, start=start).x
        found = found[0] if one else found
        return found.numpy() if isinstance(image, np.ndarray) else found

    def weaker(self, auto: AutoConfig) -> "Trained":
        """The network that `auto` names, loaded once."""
        ema, origin = None if auto.ema == "" else auto.ema, self.origin
        if auto in self._guides:
            return self._guides[auto]
        if auto.run:
            guide = load(auto.run, ema, str(self.device))
        elif origin is None:
            raise InputError(
                f"guidance.auto.ema is {ema}, but this network came from no run folder; name one "
                f"in guidance.auto.run"
            )
        elif ema is not None and parse_ema(ema) == parse_ema(origin.ema):
            raise InputError(
                f"guidance.auto.ema is {ema}, which is the average that is guided itself; name "
                f"another"
            )
        else:
            guide = load(origin.folder, ema, str(self.device), origin.images)
        self._guides[auto] = guide
        return guide


def load(
    source: str | Path,
    ema: float | str | None = None,
    device: str | None = None,
    at: int | None = None,
) -> Trained:
    """A trained network from a run folder: its newest checkpoint (or that `at` so many images).

    `ema` chooses one of the averages the run kept (default: the first), 0 the raw weights, and
    "power:WIDTH" the power-function average of that relative width, from the run's snapshots.
    """
    folder = Path(source)
    if not folder.is_dir():
        raise InputError(f"{source} is not a run folder; `pointillist train` makes one")
    if not (folder / "run.yaml").is_file():
        raise InputError(f"{folder / 'run.yaml'} is missing; {folder} is not a run folder")
    run, spec = Run.load(folder / "run.yaml"), read_spec(folder)
    weights, source = read_weights(folder, run, ema, at)
    # A run that is kept in half precision is computed in float32 all the same.
    weights = {name: w.float() for name, w in weights.items()}
    with torch.device("meta"):
        model = run.model.build(spec)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    check_shapes(weights, shapes, source)
    model.load_state_dict(weights, assign=True)
    trained = Trained(run, spec, model, pick_device(device or run.device))
    trained.origin = Origin(folder, int(source.name), run.train.ema[0] if ema is None else ema)
    return trained


def untrained(run: Run, spec: Spec, device: str | None = None) -> Trained:
    """A network with the random weights of the run's seed."""
    torch.manual_seed(run.seed)
    model = run.model.build(spec)
    check_reads(run, spec, Network(model).takes)
    return Trained(run, spec, model, pick_device(device or run.device))
