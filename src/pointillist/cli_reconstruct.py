"""Words to verbs, for pictures of which something is known: reconstruct, upscale and edit."""

import json
import re
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from pointillist.cli_words import (
    SAMPLERS,
    AsJson,
    check_sample_words,
    check_sheet,
    set_words,
    tell_cut,
)
from pointillist.types import InputError, parse_size

reconstruct_app = typer.Typer()

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT... [sample.KEY=VALUE]...",
        help="Pictures, and fields of the run's `sample` to set, as sample.consistency.kind=dps.",
    ),
]
Draws = Annotated[int, typer.Option(help="Draws from the posterior of each picture.")]
Size = Annotated[str | None, typer.Option(help="HxW of the answer.")]
Label = Annotated[str | None, typer.Option(help="Class by number or name (default: none known).")]
Steps = Annotated[int | None, typer.Option(help="Steps of the sampler.")]
SamplerName = Annotated[str | None, typer.Option(help=f"One of {SAMPLERS}.")]
Guidance = Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")]
Ema = Annotated[
    str | None, typer.Option(help="Which average: a decay, power:WIDTH, or 0 for the weights.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Seed = Annotated[int, typer.Option(help="One seed; draw j of picture i is (seed, i, j).")]
Portion = Annotated[int, typer.Option(help="Draws at once.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]


@reconstruct_app.command()
def reconstruct(
    run: RunFolder,
    inputs: Inputs = None,
    keep: Annotated[
        float | None, typer.Option(help="This share of the pixels is seen, at random.")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="A picture: seen where it is white, asked where black.")
    ] = None,
    points: Annotated[
        Path | None,
        typer.Option(help="CSV of seen pixels: x,y,r,g,b, on INPUT's grid, else on --size's."),
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Standard deviation of what is seen, in [-1, 1]; 0: exact.")
    ] = 0.0,
    draws: Draws = 9,
    interval: Annotated[
        float | None, typer.Option(help="Also write the ends of this level, as 0.8.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HxW of the answer; without INPUT also the grid of --points."),
    ] = None,
    label: Label = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    ema: Ema = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
    batch: Portion = 64,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out/reconstruct"),
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """The whole picture from some of its pixels: mean, spread and draws."""
    from pointillist.reconstruct import kept, masked, pointed
    from pointillist.sample import load

    ways = {"--keep": keep, "--mask": mask, "--points": points}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(
            f"{' and '.join(chosen) or 'none of --keep, --mask, --points'} given; give one of them"
        )
    files, words = _split(inputs)
    if points is None and not files:
        raise InputError(f"no INPUT is given; {chosen[0]} needs a picture")
    if points is not None and len(files) > 1:
        raise InputError(f"{len(files)} inputs are given; --points tells of one picture")
    trained = load(run, ema, device)
    set_words(trained, words)
    wanted = parse_size(size) if size else None
    questions = []
    for i, file in enumerate(files or [None]):
        if points is not None:
            there = wanted or tuple(trained.spec.size)
            questions.append(pointed(points, trained.spec, there, file))
        elif keep is not None:
            questions.append(kept(file, trained.spec, keep, i))  # type: ignore[arg-type]
        else:
            questions.append(masked(file, trained.spec, mask))  # type: ignore[arg-type]
    if wanted is not None:
        questions = [question._replace(size=wanted) for question in questions]
    _draw(
        trained, questions, draws, out, as_json, words, level=interval, noise=noise,
        label=label, steps=steps, sampler=sampler, guidance=guidance, dtype=dtype, seed=seed,
        batch=batch,
    )  # fmt: skip


@reconstruct_app.command()
def upscale(
    run: RunFolder,
    inputs: Inputs = None,
    size: Size = None,
    scale: Annotated[int | None, typer.Option(help="This many times as fine.")] = None,
    draws: Draws = 4,
    label: Label = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    ema: Ema = None,
    dtype: Dtype = "float32",
    seed: Seed = 0,
    batch: Portion = 64,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out/upscale"),
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Pictures on a finer grid; the means over its boxes are the picture that was given."""
    from pointillist.reconstruct import coarse
    from pointillist.request import finer
    from pointillist.sample import load

    if (size is None) == (scale is None):
        raise InputError("give either --size or --scale")
    files, words = _split(inputs)
    if not files:
        raise InputError("no INPUT is given; upscale needs a picture")
    wanted = parse_size(size) if size else None
    trained = load(run, ema, device)
    set_words(trained, words)
    questions = []
    for file in files:
        question = coarse(file, trained.spec)
        try:
            there = finer(tuple(question.seen.shape[2:]), wanted, scale)
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
        questions.append(question._replace(size=there))
    _draw(
        trained, questions, draws, out, as_json, words, label=label, steps=steps,
        sampler=sampler, guidance=guidance, dtype=dtype, seed=seed, batch=batch,
    )  # fmt: skip


@reconstruct_app.command()
def edit(
    run: RunFolder,
    inputs: Inputs = None,
    prompt: Annotated[str | None, typer.Option(help="What the picture becomes.")] = None,
    negative: Annotated[
        str | None, typer.Option(help="A prompt, or a class, to lead away from.")
    ] = None,
    strength: Annotated[
        float, typer.Option(help="In (0, 1]: 1 leaves nothing of the picture.")
    ] = 0.6,
    label: Label = None,
    steps: Steps = None,
    sampler: SamplerName = None,
    guidance: Guidance = None,
    ema: Ema = None,
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(help="One seed; what is drawn is a function of it.")] = 0,
    out: Annotated[Path, typer.Option(help="A .png, or a folder for several pictures.")] = Path(
        "out/edit.png"
    ),
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """A picture changed towards what a prompt or a class says, at its own size."""
    from pointillist.engine.checkpoint import check_writable
    from pointillist.layers.patch import patch_grid
    from pointillist.pictures import contact_sheet, save_png
    from pointillist.reconstruct import read_picture
    from pointillist.sample import load

    files, words = _split(inputs)
    if not files:
        raise InputError("no INPUT is given; edit needs a picture")
    check_sheet(out)
    single = out.suffix.lower() == ".png" and not out.is_dir()
    if single and len(files) > 1:
        raise InputError(f"--out is {out}, and {len(files)} inputs are given; name a folder")
    names = [out if single else out / f"{file.stem}.png" for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two inputs are named {twice.stem}; rename one, it would be written "
                         f"over")  # fmt: skip
    trained = load(run, ema, device)
    set_words(trained, words)
    pictures = [read_picture(file, trained.spec) for file in files]
    for file, picture in zip(files, pictures, strict=True):  # all, before the first is drawn
        try:
            patch_grid(tuple(picture.shape[2:]), getattr(trained.run.model, "patch_size", 1))
        except InputError as error:
            raise InputError(f"{file}: {error}") from None
    for name in names:
        check_writable(name)
    begun = time.perf_counter()
    for name, picture in zip(names, pictures, strict=True):
        found = trained.edit(
            picture, prompt, strength, label=label, negative=negative, steps=steps,
            sampler=sampler, guidance=guidance, dtype=dtype, seed=seed,
        )  # fmt: skip
        save_png(contact_sheet(found), name)
    seconds, cut = round(time.perf_counter() - begun, 2), tell_cut(trained, prompt)
    if as_json:
        facts = {"out": [str(name) for name in names], "strength": strength, "seed": seed,
                 "cut": cut}  # fmt: skip
        print(json.dumps({**facts, "seconds": seconds}))
        return
    print(f"{len(names)} edited, strength {strength:g}, {seconds:.1f} s, in {out}")


def _split(inputs: list[str] | None) -> tuple[list[Path], list[str]]:
    """Pictures, and words KEY=VALUE; InputError for a word that sets no field of `sample`.

    A file of such a name is a picture, unless it begins with `sample.`.
    """
    words = [
        word for word in inputs or []
        if re.match(r"[\w.]+=", word) and (word.startswith("sample.") or not Path(word).exists())
    ]  # fmt: skip
    check_sample_words(words)
    return [Path(word) for word in inputs or [] if word not in words], words


def _draw(
    trained: Any, questions: list[Any], draws: int, out: Path, as_json: bool, words: list[str],
    **ask: Any,
) -> None:  # fmt: skip
    from pointillist.console import Drawing
    from pointillist.engine.checkpoint import check_writable
    from pointillist.reconstruct import reconstruct as draw

    # Who names a way to make draws agree wants it of a network that can be shown nothing, too.
    if any(word.startswith("sample.consistency") for word in words):
        ask["consistency"] = trained.run.sample.consistency
    check_writable(out / "mean.png")
    begun = time.perf_counter()
    with Drawing(draws * len(questions)) as drawing:
        made = draw(trained, questions, draws, out, progress=drawing, **ask)
    seconds = round(time.perf_counter() - begun, 2)
    if as_json:
        print(json.dumps({"pictures": made, "seconds": seconds}))
        return
    for facts in made:
        scores = "".join(
            f", {name} {facts[name]:.4g}"
            for name in ("psnr", "psnr_whole", "ssim", "crps") if name in facts
        )  # fmt: skip
        again = facts["repeated"]
        twice = f" ({again:,} lines told of one again, means are taken)" if again else ""
        print(f"{facts['input']}: {facts['observed']:,} of {facts['of']:,} pixels seen{twice}, "
              f"{facts['draws']} draws{scores}, in {facts['out']}")  # fmt: skip
    print(f"{seconds:.1f} s")
