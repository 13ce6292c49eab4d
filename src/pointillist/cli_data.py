"""The commands of `pointillist data`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from pointillist.cli_words import AsJson, Overrides
from pointillist.types import InputError, parse_size

data_app = typer.Typer(
    no_args_is_help=True, help="Sets known; walk a set and report it; pack one; fetch one."
)
Set = Annotated[str, typer.Argument(metavar="SET", help="A kind, folder, .zip, preset or file.")]


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """The kinds of data set this version reads."""
    from pointillist.data import KNOWN

    if as_json:
        print(json.dumps(KNOWN))
        return
    for name, text in KNOWN.items():
        print(f"{name:<10} {text}")


@data_app.command("check")
def data_check(source: Set, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Walk a set and say what is found, refused (and why), and what an epoch will really use."""
    from pointillist.data.report import check, facts, lines

    run = _run(source, overrides)
    report = check(run.data, run.train.batch, run.seed)
    print(json.dumps(facts(report)) if as_json else "\n".join(lines(report)))
    if not report.used["train"]:
        raise InputError(f"{source}: not one of {report.found} files can be trained on")


@data_app.command("pack")
def data_pack(
    source: Set,
    overrides: Overrides = None,
    *,
    out: Annotated[Path, typer.Option(help="The .zip to write.")],
    size: Annotated[
        str | None, typer.Option(help="N or HxW in pixels (default: the set's).")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="adm, centre or none; default: as the set says.")
    ] = None,
    split: Annotated[str, typer.Option(help="both, train or test.")] = "both",
    as_json: AsJson = False,
) -> None:
    """Write a set as one zip file with dataset.json, the form that EDM's code reads too."""
    from pointillist.console import Drawing
    from pointillist.data.latent import pictures_of
    from pointillist.data.pack import check_out, count, pack
    from pointillist.data.report import shown

    crops: dict[str, Any] = {"adm": "adm", "centre": "centre", "none": "none"}
    if crop is not None and crop not in crops:
        raise InputError(f"--crop is {crop}; it is one of {', '.join(crops)}")
    splits: dict[str, Any] = {"both": "both", "train": "train", "test": "test"}
    if split not in splits:
        raise InputError(f"--split is {split}; it is one of {', '.join(splits)}")
    check_out(out)  # before a set is read for nothing
    data, wanted = pictures_of(_run(source, overrides).data), parse_size(size) if size else None
    pair = None if wanted is None else (wanted[0], wanted[1])
    with Drawing(count(data, split)) as drawing:
        packed = pack(data, out, pair, crops[crop] if crop else None, splits[split], drawing)
    h, w = packed.size
    if as_json:
        left = [{"file": one.file, "reason": one.reason} for one in packed.refused]
        print(json.dumps({"out": str(out), "size": [h, w], "written": packed.written,
                          "refused": left}))  # fmt: skip
        return
    for one in packed.refused:
        print(shown(f"left out {one.file}: {one.reason}"))
    counts = ", ".join(f"{number} to {name}" for name, number in packed.written.items())
    print(f"{sum(packed.written.values())} pictures of {h}x{w} in {out} ({counts})")


@data_app.command("fetch")
def data_fetch(
    source: Annotated[str, typer.Argument(metavar="NAME|URL", help="cifar10, or an address.")],
    out: Annotated[Path | None, typer.Option(help="Where to (default data/NAME).")] = None,
    sha256: Annotated[str | None, typer.Option(help="The checksum it must have.")] = None,
    as_json: AsJson = False,
) -> None:
    """Download a set, going on where an earlier try ended, and check it."""
    from pointillist.console import Bytes
    from pointillist.data.fetch import fetch

    with Bytes() as bar:
        found = fetch(source, out, sha256, bar)
    if as_json:
        print(json.dumps({"out": str(found.out), "bytes": found.bytes, "sha256": found.sha256,
                          "loaded": found.loaded}))  # fmt: skip
        return
    what = "is in" if found.loaded else "was already in"
    checked = f"sha256 {found.sha256}" if found.sha256 else "all files of the right size"
    print(f"{source} {what} {found.out} ({found.bytes} bytes, {checked})")


def _run(source: str, overrides: list[str] | None) -> Any:
    """The run with the data that a command names."""
    from pointillist.data import KNOWN
    from pointillist.data.archive import is_archive
    from pointillist.run import Run, from_dict

    extra = tuple(overrides or [])
    if source in KNOWN:
        return from_dict({"data": {"kind": source}}, extra)
    if is_archive(source):
        return from_dict({"data": {"kind": "zip", "path": source}}, extra)
    if Path(source).is_dir() and not (Path(source) / "run.yaml").exists():
        return from_dict({"data": {"kind": "folder", "path": source}}, extra)
    return Run.load(source, *extra)
