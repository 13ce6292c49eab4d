"""Velocity loss of trained runs on CIFAR-10 test pictures beside the linear known answers.

    python bench/cifar10_table.py RUN... [--data data/cifar10] [--count 2000]

Every run's first EMA, in float32, on the first test pictures with the package's fixed validation
noise; the covariance behind the linear denoisers is that of the 50,000 training pictures. A run on
another path than the straight one is asked there at the same ratio of noise to picture, and its
velocity on the straight path is that of its pair.
"""

import argparse
from pathlib import Path

import torch
from record import record

import pointillist as pt
from pointillist.data import CIFAR10Config
from pointillist.data.loader import to_batch
from pointillist.metrics.linear import LinearDenoisers
from pointillist.models import Network
from pointillist.objective import Interpolant, StraightConfig
from pointillist.types import Given
from pointillist.validation import TIMES, held_out, validation_noise


@torch.no_grad()
def straight_loss(
    network: Network, path: Interpolant, x: torch.Tensor, label: torch.Tensor, eps: torch.Tensor
) -> list[float]:
    """Mean squared error of x - eps at the straight path's times, from the pair the network says.

    The path's time of the same ratio is `at(t)`; there the state is the straight one, scaled.
    """
    squares = torch.zeros(len(TIMES), dtype=torch.float64)
    for part in torch.arange(len(x)).split(250):
        given = Given(label=label[part])
        context = network.condition(given, tuple(x.shape[2:]))
        for i, share in enumerate(TIMES):
            own = path.at(torch.tensor(share, dtype=torch.float64)).float()
            t = own.expand(len(part))
            xt = path.mix(x[part], eps[part], t)
            answer = network(*path.see(xt, t), given, context).value.float()
            pair = path.read(answer, xt, t, clamp=0.0)
            error = (pair.x - pair.eps) - (x[part] - eps[part])
            squares[i] += error.double().square().sum()
    return (squares / x.numel()).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", default="data/cifar10")
    parser.add_argument("--count", type=int, default=2000)
    asked = parser.parse_args()
    train, test = (CIFAR10Config(path=asked.data).open(split) for split in ("train", "test"))
    x, label = held_out(test, asked.count)
    pictures = to_batch(train.rows(range(len(train))), torch.arange(len(train)), train.spec).x
    linear = LinearDenoisers(pictures)
    eps = validation_noise(StraightConfig(), torch.arange(len(x)), tuple(x.shape[1:]))
    table = {
        "t": list(TIMES),
        "per-pixel linear": [linear.velocity_loss(x, eps, t, full=False) for t in TIMES],
        "Wiener": [linear.velocity_loss(x, eps, t) for t in TIMES],
    }
    for folder in asked.runs:
        kept = pt.Run.load(folder).train.ema
        for width in (*kept, 0.0):
            run = pt.load(folder, ema=width)
            name = f"{Path(folder).name}, " + (f"EMA {width:g}" if width else "raw weights")
            table[name] = straight_loss(run.network, run.run.objective, x, label, eps)
    rounded = {name: [round(value, 4) for value in row] for name, row in table.items()}
    record("cifar10-table", {"pictures": len(x), "velocity loss": rounded})


if __name__ == "__main__":
    main()
