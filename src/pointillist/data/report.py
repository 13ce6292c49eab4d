"""What a set holds, what of it is refused and why, and what an epoch will really use."""

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
        """unreadable, too small or outside (of both splits); missing (from the folder, though the
        metadata name it), caption or folder, where no picture is refused.
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
    text: tuple[str, ...] = ()  # what is said in place of counts of pictures


def check(config: Any) -> Report:
    """Walk the set behind a data configuration from end to end."""
    if hasattr(config, "examine"):
        return config.examine()
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
        "refused": [{"file": one.file, "reason": one.reason} for one in report.refused],
        "refused_by_kind": dict(Counter(one.kind for one in report.refused)),
        "unlabelled": report.unlabelled,
        "uncaptioned": report.uncaptioned,
        "ignored": dict(report.ignored),
        "borrowed": report.borrowed,
        "shapes": {f"{h}x{w}": n for (h, w), n in report.shapes.most_common()},
        "converted": dict(report.notes),
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
    text.append(f"an epoch uses {report.used['train']} ({used}), {spec.channels} x {size} each")
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
        text.append(f"captioned, but for {len(report.uncaptioned)}")
        text += [f"  uncaptioned {name}" for name in report.uncaptioned[:most]]
        if len(report.uncaptioned) > most:
            text.append(f"  and {len(report.uncaptioned) - most} more (--json names all)")
    else:
        text.append("no captions")
    return [shown(line) for line in text]
