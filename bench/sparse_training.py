"""How fast PixNerd trains on sparse pixels, against the published form and the machine's peak.

    python bench/sparse_training.py [--published DIR] [--rounds 10] [--threads 2] [--kinds curve]

Pictures a second of whole training steps (forward, backward, AdamW) at the size of the published
ablation: 32 x 32 pixels, a fifth of them observed, patches of 8, width 512, 4 heads, 8 blocks, a
field of 2 blocks, width 64 and ratio 2, batch 32; the curve encoder (Hilbert, groups of 8, 2 + 2
blocks) and the grid. All forms take turns, and the figure is the median of their steps; the
optimizer's part of it is told as well. By `processor` it is pictures a second that the process had
its cores: with one thread this is what an idle machine would show, whatever else runs. `peak`: the
share of floating point operations of the step's matrices in those that a large product of that
precision does in the same time in the same turns; by processor time with one thread.

DIR is a checkout of github.com/colpark/kevinhelp1, with its own AdamW (torch's default); without
it the published form is left out.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from record import record
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pointillist.encoders import CurveConfig, GridConfig
from pointillist.engine.device import autocast
from pointillist.engine.optim import OptimConfig, adamw
from pointillist.losses import mean_square
from pointillist.models import Network
from pointillist.models.pixnerd import PixNerdConfig
from pointillist.types import Given, Spec, grid_axes

BATCH, SIZE, SHARE, CLASSES = 32, (32, 32), 0.2, 10
WIDTH, HEADS, DEPTH, FIELD_DEPTH, PATCH, FIELD_WIDTH = 512, 4, 8, 2, 8, 64
PRECISIONS = ("float32", "bfloat16")
EDGE = 2048  # of the product that measures the peak
BARS = {"float32": 1.35, "bfloat16": 2.7}  # times the published form in float32

Forward = Callable[[], Tensor]


class Example:
    """One batch: state, time, target, labels, and what is observed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.x, self.target = torch.randn(BATCH, 3, *SIZE), torch.randn(BATCH, 3, *SIZE)
        self.t, self.label = torch.rand(BATCH), torch.arange(BATCH) % CLASSES
        cells = SIZE[0] * SIZE[1]
        order = torch.rand(BATCH, cells).argsort(1)
        self.mask = (order < round(SHARE * cells)).view(BATCH, 1, *SIZE)
        self.seen = torch.where(self.mask, torch.rand(BATCH, 3, *SIZE) * 2 - 1, 0)


def ours(kind: str, batch: Example) -> tuple[nn.Module, Forward, torch.optim.Optimizer]:
    encoder = CurveConfig(group_size=8) if kind == "curve" else GridConfig()
    config = PixNerdConfig(
        width=WIDTH, depth=DEPTH, heads=HEADS, patch_size=PATCH, decoder_width=FIELD_WIDTH,
        decoder_depth=FIELD_DEPTH, decoder_ratio=2, encoder=encoder,
    )  # fmt: skip
    classes = tuple(map(str, range(CLASSES)))
    model = config.build(Spec(channels=3, axes=grid_axes(SIZE), classes=classes)).train()
    given = Given(label=batch.label, seen=batch.seen, mask=batch.mask)
    network = Network(model)
    return (
        model,
        lambda: network(batch.x, batch.t, given).value,
        adamw([*model.parameters()], OptimConfig(lr=1e-4)),
    )


def published(
    kind: str, batch: Example, folder: Path
) -> tuple[nn.Module, Forward, torch.optim.Optimizer]:
    sys.path.insert(0, str(folder))
    from src.models.transformer.pixnerd_c2i_heavydecoder import PixNerDiT

    model = PixNerDiT(
        in_channels=3, num_groups=HEADS, hidden_size=WIDTH, decoder_hidden_size=FIELD_WIDTH,
        num_encoder_blocks=DEPTH, num_decoder_blocks=FIELD_DEPTH, patch_size=PATCH,
        num_classes=CLASSES, encoder_type={"curve": "sfc", "grid": "grid"}[kind],
        sfc_curve="hilbert", sfc_group_size=8, sfc_self_depth=2, sfc_cross_depth=2,
    ).train()  # fmt: skip
    state, mask = torch.where(batch.mask, batch.seen, batch.x), batch.mask.float()
    return (
        model,
        lambda: model(state, batch.t, batch.label, cond_mask=mask),
        torch.optim.AdamW(model.parameters(), lr=1e-4),
    )


class Clock(NamedTuple):
    """Seconds by the wall, and of processor time by all threads."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        return cls(time.perf_counter(), time.process_time())

    def since(self, begun: "Clock") -> "Clock":
        return Clock(self.wall - begun.wall, self.processor - begun.processor)


def median(clocks: list[Clock]) -> Clock:
    return Clock(*(statistics.median(values) for values in zip(*clocks, strict=True)))


class Form:
    """A model in a precision, whose steps are timed."""

    def __init__(
        self, model: nn.Module, forward: Forward, optimizer: torch.optim.Optimizer, precision: str,
        target: Tensor,
    ) -> None:  # fmt: skip
        self.forward, self.optimizer, self.target = forward, optimizer, target
        self.precision = precision
        self.parameters = sum(p.numel() for p in model.parameters())
        self.seconds: list[Clock] = []
        self.updating: list[Clock] = []
        self.operations = 0

    def backward(self) -> None:
        with autocast(self.target.device, self.precision):
            answer = self.forward()
        mean_square(answer.float() - self.target, None).mean().backward()

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def warm(self) -> None:
        """A step that counts the operations of its matrices."""
        with FlopCounterMode(display=False) as counter:
            self.backward()
        self.operations = counter.get_total_flops()
        self.update()

    def step(self) -> None:
        begun = Clock.now()
        self.backward()
        between = Clock.now()
        self.update()
        self.seconds.append(Clock.now().since(begun))
        self.updating.append(Clock.now().since(between))


def multiply(precision: str) -> Clock:
    """A large product."""
    a, b = torch.randn(2, EDGE, EDGE).to(getattr(torch, precision)).unbind(0)
    begun = Clock.now()
    torch.mm(a, b)
    return Clock.now().since(begun)


def measure(forms: dict[str, Form], rounds: int) -> dict[str, Clock]:
    """Let all take turns; seconds of the product in each precision."""
    products: dict[str, list[Clock]] = {precision: [] for precision in PRECISIONS}
    for form in forms.values():
        form.warm()
    for precision in PRECISIONS:
        multiply(precision)
    for _ in range(rounds):
        for name, form in forms.items():
            form.step()
            shown = form.seconds[-1]
            print(f"{name:32} {shown.wall:7.2f} s, {shown.processor:7.2f} s of processor",
                  file=sys.stderr, flush=True)  # fmt: skip
        for precision, found in products.items():
            found.append(multiply(precision))
    return {precision: median(found) for precision, found in products.items()}


def row_of(form: Form, product: Clock) -> dict[str, float]:
    seconds, updating = median(form.seconds), median(form.updating)
    threads = torch.get_num_threads()
    own, whole = seconds.processor / threads, product.processor / threads
    # What an idle machine would show, where that can be told.
    spent, peak = (own, whole) if threads == 1 else (seconds.wall, product.wall)
    return {
        "pictures_a_second": round(BATCH / seconds.wall, 2),
        "fastest": round(BATCH / min(one.wall for one in form.seconds), 2),
        "by_processor": round(BATCH / own, 2),
        "optimizer_share": round(updating.processor / seconds.processor, 3),
        "gigaflop_a_picture": round(form.operations / BATCH / 1e9, 2),
        "peak_share": round(form.operations / spent / (2 * EDGE**3 / peak), 3),
        "million_parameters": round(form.parameters / 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", nargs="+", choices=("curve", "grid"), default=["curve", "grid"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    batch = Example()
    there = asked.published is not None and asked.published.is_dir()
    if not there:
        print("the published form is left out: --published names no folder")
    forms: dict[str, Form] = {}
    for kind in asked.kinds:
        made = {f"ours, {kind}": ours(kind, batch)}
        if there:
            made[f"published, {kind}"] = published(kind, batch, asked.published)
        for name, parts in made.items():
            for precision in PRECISIONS:
                forms[f"{name}, {precision}"] = Form(*parts, precision, batch.target)
    products = measure(forms, asked.rounds)
    rows = {name: row_of(form, products[form.precision]) for name, form in forms.items()}
    measured = "by_processor" if asked.threads == 1 else "pictures_a_second"
    against = {
        f"{kind}, {precision}": {
            "times_published_float32": round(
                rows[f"ours, {kind}, {precision}"][measured]
                / rows[f"published, {kind}, float32"][measured],
                2,
            ),
            "bar": BARS[precision],
        }
        for kind in asked.kinds for precision in PRECISIONS if there
    }  # fmt: skip
    print(f"{'':32} pictures/s  fastest  by processor  of peak  optimizer  GFLOP/picture")
    for name, row in rows.items():
        print(f"{name:32} {row['pictures_a_second']:10.2f} {row['fastest']:8.2f} "
              f"{row['by_processor']:13.2f} {row['peak_share']:8.0%} "
              f"{row['optimizer_share']:10.0%} {row['gigaflop_a_picture']:14.2f}")  # fmt: skip
    peaks = {
        name: {
            "by_wall": round(2e-9 * EDGE**3 / one.wall, 1),
            "by_processor": round(2e-9 * EDGE**3 / one.processor * asked.threads, 1),
        }
        for name, one in products.items()
    }
    record(
        "sparse-training",
        {
            "batch": BATCH, "size": SIZE, "share": SHARE, "rounds": asked.rounds,
            "gigaflops_of_a_product": peaks, "forms": rows, "against_published": against,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
