"""What the pixel pathway of PixelDiT-B costs at 256 pixels: time, peak memory, activations.

    python bench/pixel_path.py [ROUNDS]

One training step (forward, backward, AdamW) at batch 2 of `imagenet256-pixeldit-b`, of the same
with its modulation stored instead of made again, and of the same patches alone: `jit` of that width
and depth, without bottleneck and class tokens, whose head is one linear layer. Every form runs in a
process of its own, so that its peak is its own.
"""

import resource
import statistics
import subprocess
import sys
import time

import torch
from record import record

import pointillist as pt
from pointillist.engine.device import autocast
from pointillist.engine.optim import build_optimizer
from pointillist.layers.fused import hidden_weights
from pointillist.losses import mean_square
from pointillist.models import Network
from pointillist.types import Given

FORMS = {
    "pixeldit": [],
    "pixeldit, modulation stored": ["model.recompute=false"],
    "patches alone (jit)": ["model.kind=jit", "model.bottleneck=768", "model.context_tokens=0"],
}
PRECISIONS = ("float32", "bfloat16")
BATCH = 2


def kept(network: Network, x: torch.Tensor, given: Given, precision: str) -> int:
    """Bytes that a forward keeps for backward: each storage once, weights and their casts too."""
    held: dict[int, int] = {}
    alive = []

    def pack(value: torch.Tensor) -> torch.Tensor:
        held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        alive.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        with autocast(x.device, precision):
            network(x, torch.full((x.shape[0],), 0.5), given)
    return sum(held.values())


def one(form: str, precision: str, rounds: int) -> str:
    """Median seconds a step, peak and per-picture megabytes, as a line."""
    run = pt.Run.load("imagenet256-pixeldit-b", *FORMS[form])
    torch.manual_seed(0)
    model = run.model.build(run.data.promise()).train()
    network = Network(model)
    optimizer = build_optimizer(model, run.optim, hidden_weights(model))
    x, target = torch.randn(BATCH, 3, 256, 256), torch.randn(BATCH, 3, 256, 256)
    given = Given(label=torch.arange(BATCH))
    seconds = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        with autocast(x.device, precision):
            answer = network(x, torch.full((BATCH,), 0.5), given).value
        mean_square(answer.float() - target, None).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # What does not grow with the batch (weights, in bfloat16 their casts) falls out.
    two = kept(network, x, given, precision)
    each = two - kept(network, x[:1], Given(label=torch.arange(1)), precision)
    return f"{statistics.median(seconds[1:])} {peak / 1e6} {each / 1e6}"


def main(rounds: int) -> None:
    rows = {}
    for precision in PRECISIONS:
        for form in FORMS:
            call = [sys.executable, __file__, "--one", form, precision, str(rounds)]
            line = subprocess.run(call, check=True, capture_output=True, text=True).stdout
            seconds, peak, each = (float(word) for word in line.split())
            rows[f"{form}, {precision}"] = {
                "seconds_a_step": round(seconds, 3),
                "peak_megabytes": round(peak),
                "activation_megabytes_a_picture": round(each, 1),
            }
    ratios = {}
    for precision in PRECISIONS:
        ours, stored, alone = (rows[f"{form}, {precision}"] for form in FORMS)
        ratios[precision] = {
            "time against patches alone": ours["seconds_a_step"] / alone["seconds_a_step"],
            "time against stored": ours["seconds_a_step"] / stored["seconds_a_step"],
            "activations against stored": ours["activation_megabytes_a_picture"]
            / stored["activation_megabytes_a_picture"],
        }
        ratios[precision] = {name: round(value, 3) for name, value in ratios[precision].items()}
    record("pixel-path", {"batch": BATCH, "rounds": rounds, "forms": rows, "ratios": ratios})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(one(sys.argv[2], sys.argv[3], int(sys.argv[4])))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
