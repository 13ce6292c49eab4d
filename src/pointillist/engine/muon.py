"""Muon: momentum whose update is made orthogonal, for the matrices inside a network.

K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale that
lets it use AdamW's rate and decay is that of Liu et al., arXiv 2502.16982.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEPS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: steepest at 0, at the price of ending near 1 only


# Weights that Muon may have, and of how many matrices, one below the other, each is made.
Hidden = Mapping[nn.Parameter, int]


class Muon(torch.optim.Optimizer):
    """Muon for the `hidden` weights, AdamW (`rest`) for all others, as one optimizer.

    `torch.optim.Muon` takes a weight as one matrix. Here a fused projection is first split into
    its parts (q, k and v; gate and up; the six modulations): taken as one matrix, a part with
    small gradients would hardly move beside the others. Unsplit weights get torch's own update
    (`adjust_lr_fn="match_rms_adamw"`), up to the rounding of the products.

    Each weight is orthogonalised by itself, its parts in one batch of products.
    """

    def __init__(
        self, hidden: Hidden, rest: torch.optim.Optimizer, lr: float, momentum: float, decay: float
    ) -> None:
        own = {"lr": lr, "momentum": momentum, "weight_decay": decay}
        super().__init__([{"params": list(hidden), **own}], {})
        self.hidden, self.rest = dict(hidden), rest
        # One list of groups and one state: rates are set, and checkpoints made, without asking who
        # keeps what.
        self.own = tuple(self.param_groups)
        self.param_groups.extend(rest.param_groups)
        self.state = rest.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.own:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for p in weights:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in weights]
            torch._foreach_lerp_(momenta, [p.grad for p in weights], 1 - group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for p, momentum in zip(weights, momenta, strict=True):
                ahead = p.grad.lerp(momentum, group["momentum"])  # Nesterov's
                update = orthogonal(ahead.unflatten(0, (self.hidden[p], -1)))
                # Entries of root mean square 0.2, which is about AdamW's (2502.16982).
                scale = 0.2 * max(update.shape[1:]) ** 0.5
                p.add_(update.flatten(0, 1).to(p.dtype), alpha=-group["lr"] * scale)
        self.rest.step()


def orthogonal(x: Float[Tensor, "k m n"]) -> Float[Tensor, "k m n"]:
    """Matrices with the singular vectors of `x` and singular values of about 0.7 to 1.2.

    Five steps of a quintic Newton-Schulz iteration: matrix products alone. On CUDA in bfloat16,
    which its tolerance was made for and tensor cores are fastest at; elsewhere in float32, since a
    CPU without bfloat16 products would emulate them, and would train another network.
    """
    x = x.to(torch.bfloat16 if x.device.type == "cuda" else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT  # the square matrices are then the smaller ones
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(STEPS):
        gram = x @ x.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, poly, x, beta=a)
    return x.mT if tall else x
