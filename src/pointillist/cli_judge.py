"""Words to verbs, for judging runs: evaluate, compare and ablate."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from pointillist.cli_words import METRICS, SAMPLERS, SWEPT, AsJson, Overrides, parse_interval
from pointillist.types import InputError, parse_count, parse_size

judge_app = typer.Typer()


@judge_app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    metrics: Annotated[
        str | None, typer.Option(help=f"Some of {METRICS}; or as fid10k_full.", show_default=False)
    ] = None,
    count: Annotated[str | None, typer.Option(help="Pictures behind each metric, as 5k.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Real pictures to compare with; 0: all.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Where the real ones are from: train or test.")
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(help="What makes features: inception, its file, or pixels."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help=f"KEY=A,B judges every combination; KEY one of {SWEPT}."),
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="Reconstructions of each held-out picture.")
    ] = None,
    share: Annotated[float | None, typer.Option(help="Share of its pixels that is known.")] = None,
    at: Annotated[
        str | None, typer.Option(help="Which checkpoint, by its images (default: newest).")
    ] = None,
    ema: Annotated[
        str | None, typer.Option(help="Which average: a decay, power:WIDTH, or 0 for the weights.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    interval: Annotated[str | None, typer.Option(help="LO,HI: times that are guided.")] = None,
    sampler: Annotated[str | None, typer.Option(help=f"One of {SAMPLERS}.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="HxW of the generated; several as 32,64 are swept.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="One seed for all pictures.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    batch: Annotated[int | None, typer.Option(help="Pictures at once.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The .json (default RUN/report.json, RUN/sweep.json).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    as_json: AsJson = False,
) -> None:
    """Metrics of a run with intervals, as report.json and a page; --sweep tries combinations."""
    from pointillist.console import Counting
    from pointillist.evaluation import evaluate as evaluate_run

    if sizes and "," in sizes:
        sweep, sizes = [*(sweep or []), f"size={sizes}"], None
    out = out or run / ("sweep.json" if sweep else "report.json")
    if out.suffix != ".json":
        raise InputError(f"--out is {out}; name a .json file, the page is written beside it")
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    with Counting(quiet=as_json) as counting:
        found = evaluate_run(
            run, out, sweeps=sweep or [], device=device, progress=counting, found=counting.tell,
            metrics=names, count=_count("count", count), reference=_count("reference", reference),
            split=split, extractor=extractor, draws=draws, share=share, at=_count("at", at),
            ema=ema, guidance=guidance, interval=parse_interval(interval), sampler=sampler,
            steps=steps, size=parse_size(sizes, "--sizes") if sizes else None, seed=seed,
            dtype=dtype, batch=batch,
        )  # fmt: skip
    if as_json:
        print(json.dumps(found, default=str))
    else:
        print(f"{out} and {out.with_suffix('.html')}")


@judge_app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Evaluated runs.")],
    out: Annotated[Path, typer.Option(help="Folder for table and page.")] = Path("out/compare"),
    as_json: AsJson = False,
) -> None:
    """Evaluated runs side by side: quality, pictures a second, memory, parameters."""
    from pointillist.evaluation import compare as compare_runs

    rows = compare_runs(runs, out)
    if as_json:
        print(json.dumps([row.as_json() for row in rows]))
        return
    for row in rows:
        figures = "  ".join(f"{name} {score.value:.4g}" for name, score in row.metrics.items())
        speed = f"{row.drawn_per_second:.1f} pictures/s  " if row.drawn_per_second else ""
        print(f"{row.name:<24} {figures}  {speed}{row.parameters / 1e6:.2f} M parameters")
    print(f"{out / 'compare.json'} and {out / 'compare.html'}")


@judge_app.command()
def ablate(
    source: Annotated[
        str, typer.Argument(metavar="PRESET|FILE", help="A preset, a YAML file or a run.")
    ],
    overrides: Overrides = None,
    over: Annotated[
        list[str] | None,
        typer.Option(help="KEY=A,B trains every combination; any field but evaluate.*."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Repetitions of every cell, as 0,1; none: one of seed.")
    ] = None,
    one_at_a_time: Annotated[
        bool,
        typer.Option("--one-at-a-time", help="Vary one KEY, the others at their first value."),
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(help=f"Some of {METRICS}; none: validation losses.", show_default=False),
    ] = None,
    count: Annotated[str | None, typer.Option(help="Pictures behind each metric, as 5k.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and table (default runs/NAME-ablation).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    as_json: AsJson = False,
) -> None:
    """A grid of runs, trained and judged, in one table; the same command again goes on with it."""
    from pointillist.ablate import ablate as ablate_runs
    from pointillist.ablate import default_out
    from pointillist.ablate.report import Result, lines, spelled_scores
    from pointillist.console import Counting, Watch
    from pointillist.run import Run

    @contextmanager
    def watch(title: str, run: Run) -> Iterator[Any]:
        if as_json:
            yield None
            return
        print(title, flush=True)
        with Watch(run.train.images) as watching:
            yield watching

    def tell(result: Result) -> None:
        counting.rest()
        if not as_json:
            print(f"{result.name}  {spelled_scores(result)}", flush=True)

    out = out or default_out(source)
    repeats = tuple(_whole("seeds", part) for part in seeds.split(",")) if seeds else ()
    names = None if metrics is None else tuple(name.strip() for name in metrics.split(","))
    with Counting(quiet=as_json) as counting:
        found = ablate_runs(
            source, *(overrides or []), *([f"device={device}"] if device else []),
            over=over or [], seeds=repeats, one_at_a_time=one_at_a_time, metrics=names,
            count=_count("count", count), out=out, watch=watch, progress=counting, found=tell,
        )  # fmt: skip
    if as_json:
        print(json.dumps(found.as_json(), default=str))
        return
    print("\n".join(lines(found)))
    print(f"{out / 'ablation.json'} and {out / 'ablation.html'}")


def _whole(name: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise InputError(f"--{name} is {text}; it is whole numbers, as 0,1")
    return int(text)


def _count(name: str, text: str | None) -> int | None:
    """A count such as 5k."""
    if text is None:
        return None
    value: Any = parse_count(text)
    if not isinstance(value, int):
        raise InputError(f"--{name} is {text}; it is a number such as 5k")
    return value
