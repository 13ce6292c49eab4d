"""Words to verbs: the command line."""

import json
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from pointillist.cli_data import data_app
from pointillist.cli_judge import judge_app
from pointillist.cli_reconstruct import reconstruct_app
from pointillist.cli_words import (
    SAMPLERS,
    AsJson,
    Overrides,
    check_sample_words,
    check_sheet,
    parse_interval,
    set_words,
    tell_cut,
)
from pointillist.types import InputError, parse_size

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    help="Diffusion transformers on pixels themselves, with no autoencoder in between.",
)  # fmt: skip
app.add_typer(data_app, name="data")
app.add_typer(reconstruct_app)
app.add_typer(judge_app)  # without a name: evaluate and compare are commands of their own

Source = Annotated[
    str, typer.Argument(metavar="PRESET|FILE", help="A preset, a YAML file or a run.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("out/demo"),
    images: Annotated[str, typer.Option(help="Pictures to train on, as 10k.")] = "",
    device: Device = None,
) -> None:
    """A tour of a few minutes: train, sample, judge against known answers, write a page."""
    from pointillist.demo import run_demo

    overrides = ([f"train.images={images}"] if images else []) + _device(device)
    raise typer.Exit(0 if run_demo(out, overrides) else 1)


@app.command()
def train(
    source: Source,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run folder (default runs/NAME).")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint.")
    ] = False,
    device: Device = None,
) -> None:
    """Train a preset or a configuration file into a run folder."""
    from pointillist.console import Watch
    from pointillist.engine.ranks import joined
    from pointillist.run import Run, run_folder
    from pointillist.train import train as train_run

    with joined() as ranks:  # a mistake is told once, however many processes torchrun has started
        run = Run.load(source, *(overrides or []), *_device(device))
        folder = out or run_folder(source) or Path("runs") / Path(source).stem
        with Watch(run.train.images) if ranks.leads else nullcontext() as watch:
            train_run(run, folder, resume, watch)


@app.command()
def sample(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a preset.")],
    overrides: Overrides = None,
    count: Annotated[
        int | None, typer.Option(help="How many pictures (default 16, or one for each prompt).")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Class by number or name; a,b,... each.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; given again, one for each picture.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="HxW in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"One of {SAMPLERS}.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Classifier-free guidance scale.")] = None,
    interval: Annotated[str | None, typer.Option(help="LO,HI: times that are guided.")] = None,
    rescale: Annotated[
        float | None, typer.Option(help="0 to 1: keep the contrast that guidance adds to.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option(help="A prompt, or a class, to lead away from.")
    ] = None,
    ema: Annotated[
        str | None, typer.Option(help="Which average: a decay, power:WIDTH, or 0 for the weights.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    hints: Annotated[
        Path | None, typer.Option(help="CSV of known pixels: x,y,r,g,b, from the top left.")
    ] = None,
    seed: Annotated[int, typer.Option(help="One seed; picture i is (seed, i).")] = 0,
    batch: Annotated[int, typer.Option(help="Pictures at once.")] = 64,
    out: Annotated[Path, typer.Option(help="A .png sheet, or a folder.")] = Path("out/samples.png"),
    random_init: Annotated[bool, typer.Option("--random-init", help="A preset untrained.")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw pictures from a run folder, or from a preset's random weights."""
    import time

    from pointillist.console import Drawing
    from pointillist.data.known_pixels import read_pixels
    from pointillist.engine.checkpoint import check_writable
    from pointillist.engine.device import DTYPES
    from pointillist.pictures import contact_sheet, flat, save_png
    from pointillist.request import Ask, check_pixels
    from pointillist.run import Run
    from pointillist.sample import load, untrained

    if dtype not in DTYPES:
        raise InputError(f"--dtype is {dtype}; it is one of {', '.join(DTYPES)}")
    check_sheet(out)
    if random_init and ema is not None:
        raise InputError(f"--ema is {ema}, but random weights have no averages; leave it out")
    if random_init:
        wanted = Run.load(run, *(overrides or []), *_device(device))
        trained = untrained(wanted, wanted.promise())
    else:
        check_sample_words(overrides or [], ", all else with --random-init")
        trained = load(run, ema, device)
        set_words(trained, overrides or [])
    check_writable(out if out.suffix == ".png" else out / "000000.png")
    prompts: Any = prompt[0] if prompt and len(prompt) == 1 else tuple(prompt or []) or None
    if count is None:
        count = len(prompts) if isinstance(prompts, tuple) else 16
    labels: Any = label
    if label is not None and "," in label and label not in trained.spec.classes:
        labels = tuple(part.strip() for part in label.split(","))
    ask = Ask(
        count=count, label=labels, prompt=prompts, steps=steps, sampler=sampler,
        size=parse_size(size) if size else None,
        guidance=guidance, interval=parse_interval(interval), rescale=rescale, negative=negative,
        seed=seed, batch=batch, dtype=dtype,
    )  # fmt: skip
    known, again = None, 0
    if hints is not None:
        check_pixels(trained.spec)
        known, again = read_pixels(hints, trained.spec.channels, ask.size or trained.spec.size)
    begun = time.perf_counter()
    with Drawing(count) as drawing:
        found = trained.answer(ask, progress=drawing, known=known)
    seconds = time.perf_counter() - begun
    cut = tell_cut(trained, prompts)
    pictures = flat(found.x)
    if out.suffix == ".png":
        save_png(contact_sheet(pictures), out)
    else:
        for i in range(count):
            save_png(contact_sheet(pictures[i : i + 1]), out / f"{i:06d}.png")
    facts = {
        "out": str(out),
        "count": count,
        "nfe": found.nfe,
        "seed": seed,
        "repeated": again,
        "cut": cut,
        "seconds": round(seconds, 2),
        "images_per_second": round(count / seconds, 2),
    }
    if as_json:
        print(json.dumps(facts))
    else:
        if again:
            print(f"{again:,} lines of {hints} told of a pixel again; means are taken")
        print(f"{count} pictures, {found.nfe} network evaluations each, {seconds:.1f} s, in {out}")


@app.command()
def show(
    source: Source, overrides: Overrides = None, as_json: AsJson = False, device: Device = None
) -> None:
    """The resolved configuration, parameters, FLOPs and memory; trains nothing."""
    import yaml

    from pointillist.describe import describe
    from pointillist.run import Run, run_folder, to_dict
    from pointillist.runfolder import read_spec

    run = Run.load(source, *(overrides or []), *_device(device))
    # A run folder knows its data; they need not be at hand.
    others = any(key.startswith(("data", "text")) for key in overrides or [])
    folder = None if others else run_folder(source)
    spec = run.promise() if folder is None else read_spec(folder)
    if folder is None or overrides:  # what a run folder says was checked, or came from elsewhere
        run.check(spec)
    facts = describe(run, spec)
    if as_json:
        print(json.dumps({**facts, "run": to_dict(run)}))
        return
    print(yaml.safe_dump(to_dict(run), sort_keys=False), end="")
    print(f"# parameters        {facts['parameters']:,} ({facts['trainable']:,} trained)")
    if run.loss.align.weight:
        print(
            f"# projector         {facts['projector_parameters']:,}, trained, no part of the model"
        )
        print(f"# teacher           {facts['teacher_parameters']:,}, frozen")
    print(f"# one forward       {facts['macs'] / 1e9:.3f} GMAC = {facts['flops'] / 1e9:.3f} GFLOP")
    print(f"# tokens            {facts['tokens']} a picture")
    print(f"# activations       {facts['activation_bytes'] / 1e6:.1f} MB a picture in training")
    print(f"# training memory   {facts['training_bytes'] / 1e9:.2f} GB, estimated")


@app.command()
def convert(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            help="Of models: jit, dit, pixeldit, pixeldit_text, pixnerd, pixnerd_text, diffit, "
            "pixelhdm.",
        ),
    ],
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="The published file.")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The run folder to write.")] = ...,  # type: ignore[assignment]
    as_json: AsJson = False,
) -> None:
    """Published weights in: a whole run folder, which `sample` and `show` take."""
    from pointillist.convert import convert as convert_file

    made = convert_file(family, checkpoint, out, tuple(overrides or []))
    if as_json:
        print(json.dumps({**made._asdict(), "out": str(made.out)}))
        return
    recipe = made.preset or "no preset's: see `pointillist show`, and set what differs"
    kept = ", ".join(f"{decay:g}" for decay in made.ema if decay) or "none, the weights alone"
    print(f"{made.parameters:,} parameters, averages {kept}, recipe {recipe}, in {made.out}")


@app.command()
def presets(as_json: AsJson = False) -> None:
    """What there is, one line each."""
    from pointillist.run import preset_names, preset_text

    lines = {n: preset_text(n).splitlines()[0].removeprefix("# ") for n in preset_names()}
    if as_json:
        print(json.dumps(lines))
        return
    for name, text in lines.items():
        print(f"{name:<22} {text}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, and which optional parts work and why not."""
    from pointillist.doctor import facts, lines

    found = facts()
    print(json.dumps(found) if as_json else "\n".join(lines(found)))


def _device(name: str | None) -> list[str]:
    return [f"device={name}"] if name else []


def main() -> None:
    """The command: one sentence and exit 2 for the user's mistakes, 130 when interrupted."""
    from pointillist.engine.device import is_out_of_memory, keep_freed_memory
    from pointillist.engine.session import Interrupted

    # A command that is terminated cleans up as one that is interrupted (training saves first).
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    keep_freed_memory()
    try:
        code = app(standalone_mode=False)
    except Interrupted as stop:
        _end(str(stop), 130)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except typer.TyperException as error:
        if not error.format_message():  # a bare `pointillist` has printed its help
            sys.exit(2)
        _end(f"{error.format_message()}{_given(error)}; `pointillist --help` tells more", 2)
    except InputError as error:
        _end(str(error), 2)
    except OSError as error:
        _end(f"{error.filename or 'writing'}: {error.strerror or error}", 2)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        _end("not enough memory; make train.batch, train.micro_batch or --batch smaller", 2)
    if code == 130:  # typer's answer to SIGINT
        _end("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _given(error: typer.TyperException) -> str:
    """The value of the option that is wrong, which typer leaves out."""
    names = getattr(getattr(error, "param", None), "opts", [])
    for word, value in zip(sys.argv, sys.argv[1:], strict=False):
        if word in names:
            return f" (given: {value})"
    return ""


def _end(sentence: str, code: int) -> None:
    from pointillist.engine.ranks import speaks

    if speaks():
        print(f"pointillist: {sentence}", file=sys.stderr)
    sys.exit(code)
