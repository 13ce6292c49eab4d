"""An ablation: runs that differ in some fields, trained and judged in turn, in one table.

All cells are checked before the first is trained. What is finished is not made again, and what was
begun goes on, so the same call again continues an ablation that was interrupted.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pointillist.ablate.grid import Trial, cells_of, parse_factors
from pointillist.ablate.report import Ablation, Measured, Result, Row, result_of, write
from pointillist.data.words import worded
from pointillist.describe import describe, refuse_too_large
from pointillist.engine.checkpoint import check_writable, complete
from pointillist.engine.device import free_memory, pick_device
from pointillist.engine.session import Interrupted, locked
from pointillist.engine.track import Tracks
from pointillist.evaluation import Plan, check_run, enough, evaluate, open_split, plan_of
from pointillist.evaluation.generated import Progress
from pointillist.evaluation.judge import quiet
from pointillist.metrics.features import open_extractor
from pointillist.metrics.names import GENERATED
from pointillist.monitor import Judging
from pointillist.run import Run, read_source, run_folder, to_dict
from pointillist.runfolder import check_same, newest, taught_by
from pointillist.train import Report, train
from pointillist.types import InputError, Spec
from pointillist.version import made_by

__all__ = ["Ablation", "ablate", "default_out"]

Watching = Callable[[str, Run], AbstractContextManager[Report | None]]


def ablate(
    source: str | Path,
    *overrides: str,
    over: Sequence[str],
    seeds: Sequence[int] = (),
    one_at_a_time: bool = False,
    metrics: Sequence[str] | None = None,
    count: int | None = None,
    out: str | Path | None = None,
    watch: Watching = lambda title, run: nullcontext(),
    progress: Progress = quiet,
    found: Callable[[Result], None] = lambda result: None,
) -> Ablation:
    """Train and judge every combination of `over` (as "model.depth=2,4"), each with every seed.

    `one_at_a_time` varies one field while the others have the first of their values: of three
    fields of three values 7 cells, not 27, which tell nothing of what fields do together.
    Runs lie in OUT (default runs/NAME-ablation), the table in OUT/ablation.json and .html. Judged
    are the metrics given here, in `overrides` or in the file of `source`; where none is, runs are
    compared by the validation losses of their last checkpoint. `watch` is entered for every
    training with its title, and gets the events of its log. Raises InputError before anything is
    trained where any cell could not be, Interrupted after SIGINT or SIGTERM in training.
    """
    factors = parse_factors(over, overrides, seeds)
    cells = cells_of(source, overrides, factors, seeds, one_at_a_time)
    out = Path(out or default_out(source))
    judged = metrics is not None or asks_for_metrics(source, overrides)
    if count is not None and not judged:
        raise InputError(f"count is {count}, but no metric is asked for; add --metrics")
    trials = [trial for cell in cells for trial in cell.trials]
    plans = {
        trial.name: plan_of(trial.run.evaluate, metrics=metrics and tuple(metrics), count=count)
        for trial in trials
        if judged
    }
    facts = check_all(out, trials, plans)
    check_writable(out / "ablation.json")
    rows = []
    with locked(out):
        for cell in cells:
            made = []
            for trial in cell.trials:
                title = f"run {trials.index(trial) + 1} of {len(trials)}: {trial.name}"
                one = attend(out, trial, plans.get(trial.name), title, watch, progress)
                found(one)
                made.append(one)
            costs = facts[cell.trials[0].name]
            rows.append(Row(cell.name, cell.setting, costs["parameters"], costs["macs"],
                            tuple(made)))  # fmt: skip
        recipe = {"source": str(source), "overrides": list(overrides), "over": list(over),
                  "seeds": list(seeds), "one_at_a_time": one_at_a_time,
                  "metrics": list(next(iter(plans.values())).metrics) if plans else None,
                  "made_by": made_by()}  # fmt: skip
        found_all = Ablation(out.resolve().name, tuple(factors), tuple(seeds), tuple(rows), recipe)
        write(out, found_all)
    return found_all


def default_out(source: str | Path) -> Path:
    """Where an ablation lies if nobody says."""
    return Path("runs") / f"{Path(source).name.removesuffix('.yaml')}-ablation"


def asks_for_metrics(source: str | Path, overrides: Sequence[str]) -> bool:
    """Whether metrics are named anywhere; a run folder names them always, and is not asked."""
    if any(text.partition("=")[0].strip() in ("evaluate", "evaluate.metrics")
           for text in overrides):  # fmt: skip
        return True
    return run_folder(source) is None and "metrics" in (read_source(source).get("evaluate") or {})


# Before anything is trained.


def check_all(
    out: Path, trials: Sequence[Trial], plans: dict[str, Plan]
) -> dict[str, dict[str, Any]]:
    """What every run costs, from `describe`; InputError names the run that cannot be made."""
    if (out / "run.yaml").exists():
        raise InputError(f"{out} is a run folder; choose another --out for the ablation")
    found: dict[str, dict[str, Any]] = {}
    opened: dict[str, tuple[Spec, int]] = {}
    for trial in trials:
        try:
            found[trial.name] = check(out / trial.name, trial.run, plans.get(trial.name), opened)
        except InputError as error:
            raise InputError(f"{trial.name}: {error}") from error
    return found


def check(
    folder: Path, run: Run, plan: Plan | None, opened: dict[str, tuple[Spec, int]]
) -> dict[str, Any]:
    """InputError where `run` could not be trained and judged in `folder`.

    `opened` remembers what data were looked at.
    """
    split = plan or plan_of(run.evaluate)
    key = str((to_dict(run)["data"], split.split))
    if key not in opened:
        if run.data.kind == "latent":
            run.check(run.promise())  # before every picture is encoded
        opened[key] = run.data.open("train").spec, len(open_split(run, split))
    data, available = opened[key]
    spec = worded(run.text, data)
    run.check(spec)
    if plan is None and not run.train.validate:
        raise InputError("train.validate is 0 and no metric is asked for, so there is nothing to "
                         "compare by; set train.validate or give --metrics")  # fmt: skip
    device = pick_device(run.device)
    Tracks(run.train.track, folder)
    Judging(run, spec, folder, device)
    if plan is not None:
        check_run(run, spec, plan)
        if plan.of(GENERATED):
            enough(plan, open_extractor(plan.extractor, device), available)
    saved = complete(folder / "checkpoints")
    if (folder / "run.yaml").is_file():
        teacher = {"loss.align.teacher"} if taught_by(newest(folder)).digest else set()
        check_same(run, spec, folder, frozenset(teacher))
        if saved and int(saved[-1].name) >= run.train.images + run.train.batch:
            raise InputError(
                f"train.images is {run.train.images}, but {folder} was trained on "
                f"{int(saved[-1].name)}; set as many or choose another --out"
            )
    elif saved:
        raise InputError(f"{folder} holds checkpoints, but its run.yaml is missing; bring it back "
                         f"or choose another --out")  # fmt: skip
    facts = describe(run, spec)
    if not is_trained(folder, run):
        refuse_too_large(run, facts, free_memory(device), str(device))
    return facts


def is_trained(folder: Path, run: Run) -> bool:
    """Whether its last checkpoint is there."""
    saved = complete(folder / "checkpoints")
    return bool(saved) and int(saved[-1].name) >= run.train.images


# One run.


def attend(
    out: Path, trial: Trial, plan: Plan | None, title: str, watch: Watching, progress: Progress
) -> Result:
    """Train what is not trained yet, judge it, and read what its log tells."""
    folder, run = out / trial.name, trial.run
    if not is_trained(folder, run):
        with watch(title, run) as report:
            try:
                train(run, folder, (folder / "run.yaml").is_file(), report)
            except InputError as error:
                raise InputError(f"{trial.name}: {error}") from error
            except Interrupted as stop:
                raise Interrupted(f"stopped in {title}; saved, the same command goes on") from stop
    scores: dict[str, Measured] = {}
    about: dict[str, dict[str, Any]] = {}
    if plan is not None:
        asked = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
        del asked["every"]
        report_of = evaluate(folder, device=run.device, progress=progress, **asked)
        about = report_of["recipe"]["about"]
        scores = {name: Measured(**report_of[name]) for name in about}
    return result_of(folder, run, scores, about)
