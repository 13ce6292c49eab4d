"""Linear measurements y = A x of a picture, each with its transpose and its pseudo-inverse.

All work on every picture of a batch by itself, on one to three axes of space and in the precision
that they are given; they are not trained, and no random number is drawn. `pseudo_inverse(y, ridge)`
is A^T (A A^T + ridge)^-1 y, with ridge 0 the shortest picture whose measurement is nearest to y. It
is exact where A A^T is known (a mask, boxes, a Gaussian blur), and by conjugate gradients elsewhere
(Hestenes and Stiefel 1952, in the form for least squares, which also holds where no picture has the
measurement y).
"""

from pointillist.measure.filters import Blur, Convolution, gaussian_weights
from pointillist.measure.grids import Area, Box, Mask, area
from pointillist.measure.measure import (
    Chain,
    Linear,
    Measure,
    Measured,
    check_adjoint,
    least_squares,
)
from pointillist.measure.points import Points

__all__ = [
    "Area",
    "Blur",
    "Box",
    "Chain",
    "Convolution",
    "Linear",
    "Mask",
    "Measure",
    "Measured",
    "Points",
    "area",
    "check_adjoint",
    "gaussian_weights",
    "least_squares",
]
