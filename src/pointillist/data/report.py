"""What a set holds, what of it is refused and why, and what an epoch will really use."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pointillist.data.buckets import Epoch, Policy, Shape, first_epoch
from pointillist.types import Spec

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what would write over a terminal


def shown(text: str) -> str:
    """A name out of somebody's files, fit for one line of a terminal."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Refused(NamedTuple):
    """A file that is not used, relative to the set's folder, and the reason, as "kind: detail"."""

    file: str
    reason: str

    @property
    def kind(self) -> str:
        """unreadable, too small, aspect ratio (far from every bucket's) or outside (of both
        splits); missing (from the folder, though the metadata name it), caption or folder, where no
        picture is refused.
        """
        return self.reason.partition(":")[0]


@dataclass
class Report:
    """Counts of one walk through a set."""

    name: str
    spec: Spec
    found: int  # picture files that are there
    used: dict[str, int]  # by split
    refused: list[Refused] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)  # pictures used, by class
    borrowed: str = ""  # a split that has no picture of its own and takes the other's
    unlabelled: list[str] = field(default_factory=list)  # without a class, where there are classes
    uncaptioned: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)  # files that are no pictures, by ending
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (h, w) in the files
    notes: Counter[str] = field(default_factory=Counter)  # conversions: grey, CMYK, ...
    texts: Counter[int] = field(default_factory=Counter)  # captions, by their length in characters
    buckets: dict[str, dict[Shape, list[str]]] = field(default_factory=dict)  # files by split, size
    policy: Policy = "repeat"  # of the buckets
    epoch: Epoch | None = None  # the first, of a set in buckets
    text: tuple[str, ...] = ()  # what is said in place of counts of pictures


def check(config: Any, batch: int = 256, seed: int = 0) -> Report:
    """Walk the set behind a data configuration from end to end.

    What an epoch makes of buckets depends on the batch, and on the seed which pictures it drops.
    """
    if hasattr(config, "examine"):
        report = config.examine()
        if report.buckets.get("train"):
            report.epoch = first_epoch(report.buckets["train"], report.policy, batch, seed)
        return report
    sources = {split: config.open(split) for split in ("train", "test")}
    spec = sources["train"].spec
    report = Report(config.kind, spec, 0, {name: len(source) for name, source in sources.items()})
    report.found = sum(report.used.values())
    report.shapes[(spec.size[0], spec.size[1])] = report.found
    for name, source in sources.items():
        if source.label is not None:
            for i, number in enumerate(source.label.tolist()):
                if number < 0:
                    report.unlabelled.append(f"{name} {i}")
                else:
                    report.classes[spec.classes[number]] += 1
        for i, captions in enumerate(source.caption or ()):
            report.texts.update(map(len, captions))
            if not captions:
                report.uncaptioned.append(f"{name} {i}")
    return report


def facts(report: Report) -> dict[str, Any]:
    """The report as plain values."""
    return {
        "name": report.name,
        "found": report.found,
        "used": report.used,
        "size": list(report.spec.size),
        "channels": report.spec.channels,
        "classes": {name: report.classes[name] for name in report.spec.classes},
        "captions": report.spec.captions,
        "caption_characters": [min(report.texts), max(report.texts)] if report.texts else [],
        "caption_count": report.texts.total(),
        "refused": [{"file": one.file, "reason": one.reason} for one in report.refused],
        "refused_by_kind": dict(Counter(one.kind for one in report.refused)),
        "unlabelled": report.unlabelled,
        "uncaptioned": report.uncaptioned,
        "ignored": dict(report.ignored),
        "borrowed": report.borrowed,
        "shapes": {f"{h}x{w}": n for (h, w), n in report.shapes.most_common()},
        "converted": dict(report.notes),
        "buckets": {
            split: {_times(size): len(some) for size, some in sorted(found.items())}
            for split, found in report.buckets.items()
        },
        "epoch": None if report.epoch is None else _epoch_facts(report.epoch),
        "text": list(report.text),
    }


def lines(report: Report, most: int = 12) -> list[str]:
    """The report as text; every refused file is named."""
    if report.text:
        return [shown(line) for line in report.text]
    spec = report.spec
    size = "x".join(map(str, spec.size))
    kinds = Counter(one.kind for one in report.refused)
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
    text = [f"{report.name}: {report.found} pictures found, {len(report.refused)} refused"
            + (f" ({counts})" if counts else "")]  # fmt: skip
    text += [f"  refused {one.file}: {one.reason}" for one in report.refused]
    used = ", ".join(f"{count} to {split}" for split, count in report.used.items())
    if report.epoch is None:
        text.append(f"an epoch uses {report.used['train']} ({used}), {spec.channels} x {size} each")
    else:
        text += _epoch_lines(report, report.epoch, used, most)
    if report.borrowed:
        text.append(f"{report.borrowed} has no picture of its own and takes the other split's")
    if report.ignored:
        endings = ", ".join(f"{n} {ending}" for ending, n in sorted(report.ignored.items()))
        text.append(f"files that are no pictures: {endings}")
    if len(report.shapes) > 1:
        common = ", ".join(f"{h}x{w} ({n})" for (h, w), n in report.shapes.most_common(most))
        more = ", ..." if len(report.shapes) > most else ""
        text.append(f"uneven in shape: {len(report.shapes)} shapes, height x width: {common}{more}")
    if report.notes:
        text.append("converted: " + ", ".join(f"{n} {what}" for what, n in report.notes.items()))
    if spec.classes:
        sizes = [report.classes[name] for name in spec.classes]
        text.append(f"{len(spec.classes)} classes of {min(sizes)} to {max(sizes)} pictures: "
                    + ", ".join(f"{name} ({report.classes[name]})" for name in spec.classes[:most])
                    + (", ..." if len(spec.classes) > most else ""))  # fmt: skip
        if report.unlabelled:
            text.append(f"{len(report.unlabelled)} without a class, as "
                        f"{report.unlabelled[0]}")  # fmt: skip
    else:
        text.append("no classes")
    if spec.captions:
        least, longest = min(report.texts, default=0), max(report.texts, default=0)
        text.append(f"captioned, but for {len(report.uncaptioned)}: {report.texts.total()} "
                    f"captions of {least:,} to {longest:,} characters")  # fmt: skip
        text += [f"  uncaptioned {name}" for name in report.uncaptioned[:most]]
        if len(report.uncaptioned) > most:
            text.append(f"  and {len(report.uncaptioned) - most} more (--json names all)")
    else:
        text.append("no captions")
    return [shown(line) for line in text]


def _epoch_lines(report: Report, epoch: Epoch, used: str, most: int) -> list[str]:
    """What is said of a set in buckets: what an epoch uses, of which shapes, and what is uneven."""
    text = [f"an epoch uses {epoch.used} ({used}) in {epoch.batches} batches of {epoch.batch} "
            f"at most, data.buckets.policy {epoch.policy}"]  # fmt: skip
    if epoch.repeats:
        text.append(f"{epoch.repeats} places of batches are filled up with repeats, which do not "
                    f"count")  # fmt: skip
    if epoch.left_out:
        text.append(f"{len(epoch.left_out)} pictures are left out of every epoch, others each "
                    f"time; of the first (--json names all):")  # fmt: skip
        text += [f"  left out {name}" for name in epoch.left_out[:most]]
    for split, found in report.buckets.items():
        counts = {size: len(some) for size, some in found.items()}
        text.append(f"{len(counts)} buckets of {split}, height x width: {_counted(counts)}")
    if epoch.policy == "merge" and len(epoch.counts) < len(report.buckets["train"]):
        text.append(f"merged into {len(epoch.counts)} for batches of {epoch.batch}: "
                    f"{_counted(epoch.counts)}")  # fmt: skip
    if epoch.short:
        never = ", and no epoch ever uses those" if epoch.policy == "drop" else ""
        text.append(f"uneven: {len(epoch.short)} of {len(epoch.counts)} buckets hold less than a "
                    f"batch of {epoch.batch}{never}: {_counted(epoch.short)}; a smaller batch, "
                    f"a larger data.buckets.step or policy merge evens them")  # fmt: skip
    return text


def _epoch_facts(epoch: Epoch) -> dict[str, Any]:
    told = epoch._asdict()
    return {**told, "counts": {_times(size): n for size, n in epoch.counts.items()},
            "left_out": list(epoch.left_out),
            "short": {_times(size): n for size, n in epoch.short.items()}}  # fmt: skip


def _counted(counts: dict[Shape, int]) -> str:
    return ", ".join(f"{_times(size)} ({n})" for size, n in counts.items())


def _times(size: Shape) -> str:
    return f"{size[0]}x{size[1]}"
