"""Captions of whole sets, and prompts that are taken from them."""

from collections.abc import Iterable, Sequence

from pointillist.data.source import Source


def captions_of(source: Source) -> Sequence[tuple[str, ...]]:
    """Every caption of every sample; () where it has none."""
    return getattr(source, "caption", None) or ((),) * len(source)


def first_of(captions: Sequence[tuple[str, ...]] | None, count: int) -> tuple[str, ...]:
    """The first caption of each of `count` samples; "" where there is none."""
    return tuple(next(iter(some), "") for some in captions or ((),) * count)


def said_of(source: Source) -> tuple[str, ...]:
    """The first captions of a set's samples, where there are any; one that says nothing if none."""
    there = (caption for caption in first_of(captions_of(source), len(source)) if caption)
    return tuple(there) or ("",)


def prompts_of(there: Sequence[str], numbers: Iterable[int]) -> tuple[str, ...]:
    """Of some captions one for each picture of these numbers, in turn."""
    return tuple(there[number % len(there)] for number in numbers)
