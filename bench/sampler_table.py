"""Samplers of a trained run at equal numbers of network evaluations: how far from the exact flow.

    python bench/sampler_table.py RUN [--count 8] [--guidance 1] [--reference 192]

Pictures of the same noise (and, of a run that reads captions, of the first held-out captions) by
every sampler at each budget of evaluations, against those of Heun's method with `--reference`
steps: root mean square, in units of [-1, 1]. The order is the slope of log error over log steps
between the last two budgets. Guidance other than 1 breaks the field at the ends of its interval.
"""

import argparse
import math
from pathlib import Path

from record import record

import pointillist as pt
from pointillist.data.prompts import prompts_of, said_of
from pointillist.request import Ask, Samples

BUDGETS = (8, 16, 32, 64)
# Steps that cost a budget of evaluations, or as near below it as they come.
STEPS = {
    "euler": lambda n: n, "heun": lambda n: (n + 1) // 2, "dpmpp_2m": lambda n: n,
    "dpmpp_2s": lambda n: n // 2 + 1, "unipc": lambda n: n,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--reference", type=int, default=192)
    asked = parser.parse_args()
    run = pt.load(asked.run)
    prompt = None
    if run.spec.words is not None:
        prompt = prompts_of(said_of(run.run.data.open("test")), range(asked.count))

    def draw(sampler: str, steps: int) -> Samples:
        return run.answer(Ask(count=asked.count, prompt=prompt, sampler=sampler, steps=steps,
                              guidance=asked.guidance))  # fmt: skip

    exact = draw("heun", asked.reference).x
    rows = {}
    for sampler, steps_of in STEPS.items():
        errors, spent = [], []
        for budget in BUDGETS:
            found = draw(sampler, steps_of(budget))
            errors.append(float((found.x - exact).square().mean().sqrt()))
            spent.append(found.nfe)
        steps = [steps_of(budget) for budget in BUDGETS]
        order = math.log(errors[-2] / errors[-1]) / math.log(steps[-1] / steps[-2])
        rows[sampler] = {
            "steps": steps, "evaluations": spent, "error": [round(e, 5) for e in errors],
            "order": round(order, 2),
        }  # fmt: skip
        print(sampler, rows[sampler], flush=True)
    record("sampler-table", {
        "run": Path(asked.run).name, "pictures": asked.count, "guidance": asked.guidance,
        "reference": f"heun, {asked.reference} steps", "rows": rows,
    })  # fmt: skip


if __name__ == "__main__":
    main()
