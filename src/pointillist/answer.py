"""From a request to pictures: the walk of a trained network, in portions."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from pointillist.data.latent import decoded, decoder_of
from pointillist.data.words import Reader, check_same_words
from pointillist.draws import Draw
from pointillist.engine.device import autocast, is_out_of_memory
from pointillist.frozen.text import Features
from pointillist.guidance import AutoConfig, Count, GuidanceConfig, label_number
from pointillist.known import Observed, check_known
from pointillist.known_points import check_places, observed
from pointillist.losses.bound import check_sigma
from pointillist.models import Network
from pointillist.references import asked_guidance, check_guide, check_reference
from pointillist.request import (
    Ask,
    Prepared,
    Samples,
    Start,
    check_numbers,
    labels_of,
    places_of,
    prompts_of,
    state_size,
    too_many,
)
from pointillist.run import Run
from pointillist.samplers import Watch
from pointillist.settings import check_sampler
from pointillist.snapshots import Origin
from pointillist.types import Given, Spec
from pointillist.walk import Asked, Said, Walk, evaluated, guided


class Answering(ABC):
    """A network with its run, which answers requests."""

    def __init__(
        self, run: Run, spec: Spec, model: nn.Module, device: torch.device,
        reader: Reader | None = None,
    ) -> None:  # fmt: skip
        self.run, self.spec, self.device = run, spec, device
        self.model = model.to(device).eval()
        self.network = Network(self.model)
        self.origin: Origin | None = None
        self._guides: dict[AutoConfig, Any] = {}
        self._reader = reader

    @property
    def reader(self) -> Reader:
        """What reads prompts, opened once; InputError where it is not what the run learnt with."""
        if self._reader is None:
            self._reader = self.run.text.open(self.device)
        check_same_words(self.run.text, self.spec.words, self._reader.words)
        return self._reader

    def reads(self, captions: Sequence[str]) -> Features:
        """What captions become, on the network's device."""
        return self.reader.take(captions, self.device)(captions)

    @torch.no_grad()
    def answer(
        self,
        ask: Ask,
        watch: Watch | None = None,
        progress: Callable[[int], None] | None = None,
        known: Observed | None = None,
        guide: "Answering | None" = None,
        numbers: Tensor | None = None,
        where: Any = None,
        start: Start | None = None,
    ) -> Samples:
        """Pictures with their labels and the evaluations they cost, those of a guide included.

        `numbers`, one a picture, take the place of 0, 1, 2, ...: so a call goes on from another.
        `start`: pictures to begin with, in the place of noise alone.
        """
        places = places_of(where, ask.count, len(self.spec.size))
        size, sampler, times, guidance, guide = self.prepare(ask, guide, places)
        times = times if start is None else start.rest(times)
        numbers = torch.arange(ask.count) if numbers is None else numbers
        prompts, label = prompts_of(ask.prompt, ask.count, self.spec), ask.label
        if prompts is not None and label is None and self.spec.classes:
            label = -1  # the prompt says it all
        labels = labels_of(label, numbers, self.spec.classes)
        away = str(guidance.negative) if guidance.negated else ""
        said = None
        if prompts is not None:
            said = Said(self.reader.take((*prompts, away), self.device), prompts, away)
        every = None
        if known is not None:
            every = observed(known, ask.count, self.spec, size, places, self.network.takes)
        check_known(every, ask.noise, self._remedy(guide))
        parts, nfe = [], 0
        for first in range(0, ask.count, ask.batch):
            index = torch.arange(first, min(first + ask.batch, ask.count))
            given = Given(label=None if labels is None else labels[index].to(self.device))
            given = given if said is None else said.into(given, index)
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
                if start is not None and start.t:
                    begin, at = start.x[index].to(self.device), at + start.t
                begin = self.run.objective.mix(begin, noise, at)
                with autocast(self.device, ask.dtype):
                    reference = self._reference(given, guidance, guide, said, index)
                    asked = Asked(self.network, self.run.objective, given)
                    field = guided(asked, reference, guidance, size, count, ask.tile)
                field = evaluated(field, self.device, ask.dtype)
                walk = Walk(sampler, times, ask.consistency or self.run.sample.consistency,
                            at_places, watch)  # fmt: skip
                x = walk(field, begin, noise, part, ask.noise, shows)
                if self._decodes(ask):
                    x = decoded(self.run.data, self.spec, x, self.device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise too_many(index.shape[0], size, self.spec, self.device,
                               start is not None) from None  # fmt: skip
            parts.append(x.float().cpu())
            nfe = max(nfe, count.nfe)  # a portion that asks no reference costs less
            if progress is not None:
                progress(min(first + ask.batch, ask.count))
        return Samples(torch.cat(parts), labels, nfe)

    def prepare(
        self, ask: Ask, guide: "Answering | None" = None, places: Tensor | None = None
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

    def _remedy(self, guide: "Answering | None") -> str:
        """What to train with where this network, or its guide, was never without hints; or ""."""
        tasks = [trained.run.task for trained in (self, guide) if trained is not None]
        return next((task.remedy for task in tasks if task.always), "")

    def _reference(
        self, given: Given, guidance: GuidanceConfig, guide: "Answering | None", said: Said | None,
        index: Tensor,
    ) -> Asked | None:  # fmt: skip
        """What is led away from; None where nothing is, as on the way from itself to itself."""
        if guidance.scale == 1:
            return None
        if guide is not None:
            seen = given if guide.spec.classes else given._replace(label=None)
            if guide.spec.words is None:
                seen = seen._replace(text=None, text_mask=None, pooled=None)
            return Asked(guide.network, guide.run.objective, seen)
        away = given
        if given.label is not None:
            number = -1
            if said is None:
                number = label_number(guidance.negative, self.spec.classes, "negative")
            away = away._replace(label=torch.full_like(given.label, number))
        if said is not None:
            away = said.away_into(away, index)
        same = given.label is None or torch.equal(given.label, cast(Tensor, away.label))
        if same and (said is None or said.is_away(index)):
            return None
        return Asked(self.network, self.run.objective, away)

    def _guidance(
        self, ask: Ask, guide: "Answering | None", size: tuple[int, ...]
    ) -> tuple[GuidanceConfig, "Answering | None"]:
        """What the request and the run say of guidance together, and the weaker network if any."""
        if self.spec.words is None and ask.negative == "-1":  # no label, as it is typed
            ask = dataclasses.replace(ask, negative=-1)
        found = asked_guidance(ask, self.run.sample.guidance, guide is not None)
        if found.scale == 1:
            return found, None
        if guide is None and found.automatic:
            guide = self.weaker(found.auto)
        check_reference(found, self.run, self.spec, guide is not None)
        if guide is not None:
            check_guide((self.run, self.spec), (guide.run, guide.spec), size)
        return found, guide

    @abstractmethod
    def weaker(self, auto: AutoConfig) -> "Answering":
        """The network that `auto` names, loaded once."""
