"""The selective scan against mambapy's parallel scan in torch, forward and backward.

python bench/scan.py
"""

import resource
import subprocess
import sys
from collections.abc import Callable

import torch
from mambapy.pscan import pscan
from record import alternate, record

from pointillist.layers.scan import selective_scan

B, STEPS, CHANNELS, STATE = 2, 4096, 512, 16


def inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(B, STEPS, CHANNELS), (B, STEPS, CHANNELS), *[(B, STEPS, 1, STATE)] * 2]
    x, dt, b, c = (torch.randn(shape) for shape in shapes)
    A = -torch.arange(1.0, STATE + 1).repeat(CHANNELS, 1)
    return [v.requires_grad_() for v in (x, dt.abs() / 10, A, b, c)]


def parallel(
    x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, b: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    states = pscan((dt[..., None] * A).exp(), (dt * x)[..., None] * b)
    return (states @ c.mT).squeeze(-1)


FORMS = {"ours": selective_scan, "mambapy": parallel}


def both(form: Callable[..., torch.Tensor], given: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.autograd.grad(form(*given).square().sum(), given))


def peak(name: str) -> float:
    """MiB that a process of its own takes at most beyond what it has before the scan."""
    out = subprocess.run([sys.executable, __file__, name], check=True, capture_output=True)
    return round(float(out.stdout), 1)


def main() -> None:
    if len(sys.argv) > 1:
        given = inputs()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        both(FORMS[sys.argv[1]], given)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
    memory = {name: peak(name) for name in FORMS}  # first: a process inherits its parent's peak
    given = inputs()
    for ours, theirs in zip(*(both(form, given) for form in FORMS.values()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
    calls = {name: lambda form=form: both(form, given) for name, form in FORMS.items()}
    seconds = alternate(calls, 5)
    record(
        "scan",
        {
            "shape": {"batch": B, "steps": STEPS, "channels": CHANNELS, "state": STATE},
            "seconds, forward and backward": seconds,
            "peak MiB beyond the inputs": memory,
            "times as fast": round(seconds["mambapy"] / seconds["ours"], 1),
            "share of the memory": round(memory["ours"] / memory["mambapy"], 3),
        },
    )


if __name__ == "__main__":
    main()
