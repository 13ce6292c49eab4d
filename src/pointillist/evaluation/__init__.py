"""Judging finished runs: one at a time, over a grid of settings, or side by side."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pointillist.data.collection import nominal
from pointillist.data.latent import pictures_of
from pointillist.evaluation.check import check_run, enough, open_split
from pointillist.evaluation.compare import compare
from pointillist.evaluation.generated import Progress
from pointillist.evaluation.judge import Verdict, judge, quiet
from pointillist.evaluation.plan import Plan, parse_sweeps, plan_of
from pointillist.evaluation.report import write_report
from pointillist.evaluation.sweep import Cell, sweep, write_sweep
from pointillist.run import Run
from pointillist.sample import Trained, load
from pointillist.types import InputError

__all__ = [
    "Cell",
    "Plan",
    "Verdict",
    "check_run",
    "compare",
    "enough",
    "evaluate",
    "judge",
    "open_split",
    "plan_of",
]


def evaluate(
    run: str | Path,
    out: str | Path | None = None,
    *,
    sweeps: Sequence[str] = (),
    device: str | None = None,
    progress: Progress = quiet,
    found: Callable[[Cell], None] = lambda cell: None,
    **settings: Any,
) -> dict[str, Any]:
    """Judge a run folder and write its report; fields of `Plan` by name say how.

    Returns what `out` (default RUN/report.json) holds: metric -> {value, low, high, n} with the
    recipe beside it (and `reliability`, of reconstructions), or with `sweeps` (as
    "guidance=1,1.5,2") a list of them. Pictures and features stay in RUN/evaluations, so the same
    call again, or one that was interrupted, goes on from them; statistics of real pictures stay
    beside the run, in `references`, for other runs too.
    """
    folder = Path(run).resolve()
    if not (folder / "run.yaml").is_file():
        raise InputError(f"{run} is not a run folder; `pointillist train` makes one")
    wanted = parse_sweeps(sweeps)
    for key in wanted:
        if settings.get(key) is not None:
            raise InputError(f"{key} is given both as an option and in --sweep; leave out one")
    plan = plan_of(Run.load(folder).evaluate, **settings)
    out = Path(out or folder / ("sweep.json" if wanted else "report.json"))
    work, shared = folder / "evaluations", folder.parent / "references"

    def open_run(one: Plan) -> Trained:
        return load(folder, one.ema, device, one.at)

    if wanted:
        made = sweep(open_run, plan, wanted, work, shared, progress, found)
        write_sweep(out, f"Sweep of {folder.name}", made)
        return {"sweep": [cell.as_json() for cell in made]}
    trained = open_run(plan)
    verdict = judge(trained, plan, work, shared, progress)
    found(Cell({}, verdict))
    drawn = verdict.generated is not None and plan.size in (None, trained.spec.shown[1])
    pictures = nominal(pictures_of(trained.run.data))
    write_report(out, verdict, pictures.open("train") if drawn else None)
    return verdict.as_json()
