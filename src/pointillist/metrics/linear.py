"""Known answers: the best linear denoisers of a data set, from its mean and covariance alone.

For x_t = t x + s e (s = (1 - t) times the noise's strength) with Var x = C, the linear estimate of
least squared error is Wiener's,

    x_hat = m + t C (t^2 C + s^2 I)^-1 (x_t - t m)

and with the diagonal of C in place of C the best that looks at each pixel alone. A network that has
learnt more than second-order statistics has a lower velocity loss than either.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class LinearDenoisers:
    """Mean and covariance of training pictures; losses of both denoisers on others."""

    def __init__(self, train: Float[Tensor, " n *shape"], chunk: int = 4096) -> None:
        flat = train.flatten(1)
        n = flat.shape[0]
        self.mean = torch.cat([flat[i : i + chunk].double().sum(0, keepdim=True)
                               for i in range(0, n, chunk)]).sum(0) / n  # fmt: skip
        cov = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64)
        for i in range(0, n, chunk):
            part = flat[i : i + chunk].float() - self.mean.float()
            cov += (part.T @ part).double()
        self.cov = cov / n

    def picture(
        self, xt: Float[Tensor, " b *shape"], t: float, noise: float = 1.0, full: bool = True
    ) -> Float[Tensor, " b *shape"]:
        """Wiener's estimate of x, or with `full=False` the per-pixel one."""
        centred = xt.flatten(1).double() - t * self.mean
        s2 = ((1 - t) * noise) ** 2
        if full:
            system = t * t * self.cov + s2 * torch.eye(self.cov.shape[0], dtype=torch.float64)
            solved = torch.cholesky_solve(centred.T, torch.linalg.cholesky(system)).T
            guess = self.mean + t * solved @ self.cov
        else:
            variance = self.cov.diagonal()
            guess = self.mean + t * variance / (t * t * variance + s2) * centred
        return guess.to(xt.dtype).view_as(xt)

    def velocity_loss(
        self,
        x: Float[Tensor, " b *shape"],
        eps: Float[Tensor, " b *shape"],
        t: float,
        noise: float = 1.0,
        full: bool = True,
    ) -> float:
        """Mean of |v_hat - v|^2 = |x_hat - x|^2 / (1 - t)^2 at one time."""
        guess = self.picture(t * x + (1 - t) * eps, t, noise, full)
        return float((guess - x).double().square().mean() / (1 - t) ** 2)
