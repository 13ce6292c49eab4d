"""From a run folder to pictures: load, sample, draw posteriors."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pointillist.data.latent import decoded, decoder_of
from pointillist.draws import Draw
from pointillist.engine.device import autocast, is_out_of_memory, pick_device
from pointillist.guidance import (
    AutoConfig,
    Count,
    GuidanceConfig,
    classifier_free,
    label_number,
    network_field,
)
from pointillist.known import Observed, check_known, given_of, rows_of
from pointillist.known_points import check_places, observed
from pointillist.losses.bound import check_sigma
from pointillist.models import Network, in_tiles
from pointillist.posterior import Posterior, RunningMoments
from pointillist.references import asked_guidance, check_guide, check_reference
from pointillist.request import (
    Ask,
    Prepared,
    Samples,
    ask_of,
    check_numbers,
    check_pixels,
    finer,
    labels_of,
    places_of,
    plain_label,
    state_size,
    too_many,
)
from pointillist.run import Run
from pointillist.runfolder import check_shapes, read_spec
from pointillist.samplers import Watch
from pointillist.settings import check_sampler
from pointillist.snapshots import Origin, parse_ema, read_weights
from pointillist.types import Given, InputError, Spec
from pointillist.walk import Walk, evaluated


class Trained:
    """A network with its run: ask it for pictures."""

    def __init__(self, run: Run, spec: Spec, model: nn.Module, device: torch.device) -> None:
        self.run, self.spec, self.device = run, spec, device
        self.model = model.to(device).eval()
        self.network = Network(self.model)
        self.origin: Origin | None = None
        self._guides: dict[AutoConfig, Trained] = {}

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
        `label` is one for all, or one for each picture; None is "not known", as -1 is. `progress`
        hears of pictures drawn.
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
        moments, kept, nfe = RunningMoments(), [], 0
        together = max(1, request.batch // count)
        for start in range(0, draws, together):
            number = torch.arange(start, min(start + together, draws))
            some = number.shape[0]
            answer = self.answer(
                dataclasses.replace(
                    request, count=some * count,
                    label=None if labels is None else tuple(labels.tolist()) * some,
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

    @torch.no_grad()
    def answer(
        self,
        ask: Ask,
        watch: Watch | None = None,
        progress: Callable[[int], None] | None = None,
        known: Observed | None = None,
        guide: "Trained | None" = None,
        numbers: Tensor | None = None,
        where: Any = None,
    ) -> Samples:
        """Pictures with their labels and the evaluations they cost, those of a guide included.

        `numbers`, one a picture, take the place of 0, 1, 2, ...: so a call goes on from another.
        """
        places = places_of(where, ask.count, len(self.spec.size))
        size, sampler, times, guidance, guide = self.prepare(ask, guide, places)
        numbers = torch.arange(ask.count) if numbers is None else numbers
        labels = labels_of(ask.label, numbers, self.spec.classes)
        every = None
        if known is not None:
            every = observed(known, ask.count, self.spec, size, places, self.network.takes)
        check_known(every, ask.noise, self._remedy(guide))
        parts, nfe = [], 0
        for first in range(0, ask.count, ask.batch):
            index = torch.arange(first, min(first + ask.batch, ask.count))
            given = Given(label=None if labels is None else labels[index].to(self.device))
            part = None if every is None else every.rows(index, self.device)
            if places is not None:
                given = given._replace(where=places[index].to(self.device))
            shows = part is not None and part.seen is not None and self._shows(ask)
            if part is not None and shows:
                given = part.shown(given)
            count = Count()
            try:
                # Drawn where the network is, as in training, unless there is no float64 there.
                home = torch.device("cpu") if self.device.type == "mps" else self.device
                draw = Draw(ask.seed, numbers[index].to(home))
                shape = (self.spec.channels, *size)
                at_places = functools.partial(self._noise, draw, shape, given.where)
                noise = at_places()
                # What is known begins on its own path; the rest of a picture is taken as grey.
                begin = torch.zeros_like(noise) if part is None else part.begin(noise)
                at = torch.zeros(index.shape[0], device=self.device)
                begin = self.run.objective.mix(begin, noise, at)
                with autocast(self.device, ask.dtype):
                    field = self._field(given, size, guidance, count, guide, ask.tile)
                field = evaluated(field, self.device, ask.dtype)
                walk = Walk(sampler, times, ask.consistency or self.run.sample.consistency,
                            at_places, watch)  # fmt: skip
                x = walk(field, begin, noise, part, ask.noise, shows)
                if self._decodes(ask):
                    x = decoded(self.run.data, self.spec, x, self.device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise too_many(index.shape[0], size, self.spec, self.device) from None
            parts.append(x.float().cpu())
            nfe = count.nfe
            if progress is not None:
                progress(min(first + ask.batch, ask.count))
        return Samples(torch.cat(parts), labels, nfe)

    def prepare(
        self, ask: Ask, guide: "Trained | None" = None, places: Tensor | None = None
    ) -> Prepared:
        """What the request and the run say together; InputError where it cannot be answered."""
        check_sigma(self.run.model, self.run.objective)
        size = state_size(ask, self.spec, places)
        if self._decodes(ask):
            decoder_of(self.run.data, self.spec, self.device)  # refused now, not after the walk
        if places is not None:
            check_places(places, self.network, self.run.objective)
        check_numbers(ask, self.spec)
        sampler = ask.sampler or self.run.sample.sampler
        check_sampler(sampler)
        times = self.run.sample.walk(ask.steps, self.run.objective)
        return Prepared(size, sampler, times, *self._guidance(ask, guide, size))

    def _noise(
        self, draw: Draw, shape: tuple[int, ...], where: Tensor | None, step: int | None = None
    ) -> Tensor:
        """What a walk begins with, or adds in a step: a function of seed, picture and step."""
        purpose = "sample" if step is None else f"step {step}"
        noise = self.run.objective.noise(draw, shape, purpose, where)
        return noise.to(self.device)  # no copy at home

    def _decodes(self, ask: Ask) -> bool:
        """Whether what the network draws are latents, and pictures are asked for."""
        return self.spec.code is not None and not ask.latents

    def _shows(self, ask: Ask) -> bool:
        """Whether the network is shown what is known.

        Not where that has noise, which it would take for the truth. Where it takes nothing, who
        names a way to make the walk agree with it does not expect that.
        """
        takes = self.network.takes.observations != "none"
        return not ask.noise and (takes or ask.consistency is None)

    def _remedy(self, guide: "Trained | None") -> str:
        """What to train with where this network, or its guide, was never without hints; or ""."""
        tasks = [trained.run.task for trained in (self, guide) if trained is not None]
        return next((task.remedy for task in tasks if task.always), "")

    def _field(
        self,
        given: Given,
        size: tuple[int, ...],
        guidance: GuidanceConfig,
        count: Count,
        guide: "Trained | None" = None,
        tile: float | None = None,
    ) -> Any:
        """The guided field of one batch; without need the reference is not even built."""
        objective, network = self.run.objective, in_tiles(self.network, tile)
        field = network_field(network, objective, given, size, count)
        if guidance.scale == 1:
            return field
        if guide is not None:
            seen = given if guide.spec.classes else given._replace(label=None)
            weaker = in_tiles(guide.network, tile)
            reference = network_field(weaker, guide.run.objective, seen, size, count)
        else:
            assert given.label is not None
            number = label_number(guidance.negative, self.spec.classes, "negative")
            away = torch.full_like(given.label, number)
            if torch.equal(given.label, away):
                return field  # the way from itself to itself
            other = given._replace(label=away)
            reference = network_field(network, objective, other, size, count)
        return classifier_free(field, reference, guidance)

    def _guidance(
        self, ask: Ask, guide: "Trained | None", size: tuple[int, ...]
    ) -> tuple[GuidanceConfig, "Trained | None"]:
        """What the request and the run say of guidance together, and the weaker network if any."""
        found = asked_guidance(ask, self.run.sample.guidance, guide is not None)
        if found.scale == 1:
            return found, None
        if guide is None and found.automatic:
            guide = self._weaker(found.auto)
        check_reference(found, self.run, self.spec, guide is not None)
        if guide is not None:
            check_guide((self.run, self.spec), (guide.run, guide.spec), size)
        return found, guide

    def _weaker(self, auto: AutoConfig) -> "Trained":
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
    return Trained(run, spec, run.model.build(spec), pick_device(device or run.device))
