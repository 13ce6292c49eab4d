"""Linear measurements: each with its exact transpose, and a pseudo-inverse that is one."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.draws import Draw
from pointillist.measure import (
    Blur,
    Box,
    Chain,
    Convolution,
    Linear,
    Mask,
    Measure,
    Points,
    check_adjoint,
    gaussian_weights,
    least_squares,
)
from pointillist.types import InputError

KINDS = ("mask", "box", "blur", "convolution", "points", "linear", "chain", "masked chain")


def drawn(name: str, seed: int, shape: tuple[int, ...], count: int = 2) -> torch.Tensor:
    return Draw(seed, torch.arange(count)).normal(name, shape).double()


def measure_of(kind: str, axes: int, seed: int, periodic: bool = False) -> tuple[Measure, tuple]:
    """A measurement and the shape of the pictures that it is of: even sizes, small."""
    size = (8, 6, 4)[:axes]
    numbers = Draw(seed, torch.arange(2))
    mask = numbers.uniform("mask", (1, *size)) < 0.5
    # Far enough from one that takes a wave away: there conjugate gradients would be slow.
    kernel = numbers.normal("kernel", (3,) * axes)[0].double() / 2 / 3**axes
    kernel[(1,) * axes] += 1
    # Apart along the first axis: A A^T of points that nearly meet is nearly singular.
    at = 2 * numbers.uniform("at", (5, axes)) - 1
    at[..., 0] = (torch.arange(5) + 0.5 + at[..., 0] / 4) * 2 / 5 - 1
    weights = numbers.normal("weights", (4, 3))[0].double()
    row = weights[:1, :2].view(1, 2, *[1] * axes)
    # Channels to one, and every second cell of the last axis.
    grey = Linear(lambda x: (x * row).sum(1, keepdim=True)[..., ::2], (2, *size))
    made: dict[str, Measure] = {
        "mask": Mask(mask),
        "box": Box((2, 3, 1)[:axes]),
        "blur": Blur((0.6, 0.8, 0.5)[:axes], periodic),
        "convolution": Convolution(kernel, periodic),
        "points": Points(at, size),
        "linear": grey,
        "chain": Chain(Blur(0.7, periodic), Box((2,) * axes)),
        "masked chain": Chain(Convolution(kernel, periodic), Mask(mask[:1])),
    }
    return made[kind], (2, *size)


every = pytest.mark.parametrize(("kind", "axes"), list(itertools.product(KINDS, (1, 2, 3))))
seeds = st.integers(0, 2**20)
few = settings(deadline=None, max_examples=8)


@every
@few
@given(seed=seeds, periodic=st.booleans())
def test_the_transpose_is_the_adjoint(kind, axes, seed, periodic):
    measure, shape = measure_of(kind, axes, seed, periodic)
    x = drawn("x", seed, shape)
    y = drawn("y", seed, tuple(measure(x).shape[1:]))
    left, right = (measure(x) * y).flatten(1).sum(1), (x * measure.transpose(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right, rtol=0, atol=1e-10)
    check_adjoint(measure, shape, seed)


@every
@few
@given(seed=seeds, periodic=st.booleans())
def test_a_picture_of_the_pseudo_inverse_is_measured_as_it_was(kind, axes, seed, periodic):
    measure, shape = measure_of(kind, axes, seed, periodic)
    y = measure(drawn("x", seed, shape))
    found = measure(measure.pseudo_inverse(y))
    torch.testing.assert_close(found, y, rtol=0, atol=3e-4 if "blur" in kind else 1e-5)


@every
@few
@given(seed=seeds)
def test_the_nearest_picture_differs_only_in_what_is_measured(kind, axes, seed):
    """x - z is a row of A: no picture that is measured as 0 has a part of it."""
    measure, shape = measure_of(kind, axes, seed)
    x, y = drawn("x", seed, shape), measure(drawn("other", seed, shape))
    by = measure.project(x, y) - x
    hidden = drawn("hidden", seed, shape)
    hidden = hidden - measure.pseudo_inverse(measure(hidden))
    scale = by.flatten(1).norm(dim=1) * drawn("hidden", seed, shape).flatten(1).norm(dim=1)
    assert ((by * hidden).flatten(1).sum(1).abs() <= 1e-3 * scale).all()


def matrix(measure: Measure, shape: tuple[int, ...]) -> torch.Tensor:
    """A, its columns the measurements of single cells."""
    cells = torch.eye(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.cat([measure(cell.view(1, *shape)).flatten()[:, None] for cell in cells], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_the_pseudo_inverse_is_that_of_the_matrix(kind, ridge):
    """Also where y is what no picture has."""
    measure, shape = measure_of(kind, 2, 3)
    if kind in ("mask", "points"):  # one row for both pictures: a batch has one matrix here
        measure = measure.rows(slice(0, 1))
    a = matrix(measure, shape)
    y = drawn("y", 5, tuple(measure(torch.zeros(1, *shape).double()).shape[1:]), 1)
    if ridge:
        exact = a.T @ torch.linalg.solve(a @ a.T + ridge * torch.eye(len(a)), y.flatten())
    else:
        exact = torch.linalg.pinv(a, rtol=1e-8) @ y.flatten()
    found = measure.pseudo_inverse(y, ridge).flatten()
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_boxes_are_measured_with_even_noise():
    a = matrix(Box((2, 3)), (1, 4, 6))
    torch.testing.assert_close(a @ a.T, torch.eye(4).double() / 6)
    x = drawn("x", 0, (2, 4, 6))
    assert torch.equal(Box((1, 1))(x), x)
    torch.testing.assert_close(Box((4, 6))(x), x.mean((2, 3), keepdim=True))


@pytest.mark.parametrize("periodic", [False, True])
def test_a_blur_keeps_what_is_level_and_spreads_a_cell_by_its_std(periodic):
    level = torch.ones(1, 1, 40, 30, dtype=torch.float64)
    torch.testing.assert_close(Blur(2.0, periodic)(level), level)
    cell = torch.zeros(1, 1, 41, dtype=torch.float64)
    cell[..., 20] = 1
    spread = Blur(2.5, periodic)(cell)
    cells = torch.arange(41.0).double() - 20
    assert float((spread * cells.square()).sum()) == pytest.approx(2.5**2, rel=1e-3)
    # Wider than the axis it is still a mean, around the ring.
    torch.testing.assert_close(
        gaussian_weights(5, 20.0, True), torch.ones(5, 5).double() / 5, rtol=0, atol=1e-9
    )


def test_a_convolution_carries_a_cell_to_the_kernel():
    kernel = torch.arange(1.0, 10).view(3, 3).double()
    cell = torch.zeros(1, 2, 5, 7, dtype=torch.float64)
    cell[0, 1, 2, 3] = 1
    found = Convolution(kernel)(cell)
    assert torch.equal(found[0, 1, 1:4, 2:5], kernel) and float(found.sum()) == 45
    cell = cell.roll((2, 3), (2, 3))  # over the rim
    assert float(Convolution(kernel, periodic=True)(cell).sum()) == 45
    assert float(Convolution(kernel)(cell).sum()) == 45 - (7 + 8 + 9 + 3 + 6)


@few
@given(seed=seeds)
def test_points_read_what_is_linear_exactly_and_centres_as_cells(seed):
    size = (5, 4)
    rows, columns = ((2 * torch.arange(n).double() + 1) / n - 1 for n in size)
    x = (0.3 + 2 * rows[:, None] - columns[None])[None, None]
    inside = torch.tensor([4 / 5, 3 / 4])  # between the centres of the outermost cells
    at = inside * (2 * Draw(seed, torch.arange(1)).uniform("at", (9, 2)) - 1)
    found = Points(at, size)(x)[0, 0]
    torch.testing.assert_close(
        found, 0.3 + 2 * at[0, :, 0].double() - at[0, :, 1].double(), rtol=0, atol=1e-6
    )
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).view(1, -1, 2)
    torch.testing.assert_close(Points(centres, size)(x), x.flatten(2))
    corner = Points(torch.tensor([[[-1.0, 1.0]]]), size)(x)
    torch.testing.assert_close(corner.flatten(), x[0, 0, 0, -1:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_pictures_one_by_one(kind):
    measure, shape = measure_of(kind, 2, 4)
    x = drawn("x", 1, shape)
    y = measure(x) * torch.tensor([1.0, 1e-3]).view(2, *[1] * (measure(x).dim() - 1))
    whole = measure.pseudo_inverse(y), measure.count(y)
    for i in range(2):
        one = measure.rows(slice(i, i + 1))
        torch.testing.assert_close(one(x[i : i + 1]), measure(x)[i : i + 1])
        found = one.pseudo_inverse(y[i : i + 1])
        torch.testing.assert_close(found, whole[0][i : i + 1], rtol=1e-9, atol=1e-12)
        assert torch.equal(one.count(y[i : i + 1]), whole[1][i : i + 1])


def test_a_mask_counts_what_it_shows():
    mask = torch.tensor([[[True, False, True]], [[False, False, True]]])
    y = Mask(mask)(torch.ones(2, 4, 3))
    assert Mask(mask).count(y).tolist() == [8, 4]
    assert Chain(Blur(1.0), Mask(mask)).count(y).tolist() == [8, 4]
    assert Box((3,)).count(Box((3,))(torch.ones(2, 4, 3))).tolist() == [4, 4]


def test_conjugate_gradients_stop_at_zero_and_after_as_many_steps_as_are_allowed():
    measure, shape = measure_of("convolution", 2, 0)
    y = measure(drawn("x", 0, shape))
    assert not least_squares(measure, torch.zeros_like(y), 0.0, 1e-9, 9).any()
    left = [
        float((y - measure(least_squares(measure, y, 0.0, 1e-9, n))).norm()) for n in (0, 3, 30)
    ]
    assert left[0] > left[1] > left[2]


def test_float32_is_kept():
    for kind in KINDS:
        measure, shape = measure_of(kind, 2, 1)
        if kind == "linear":
            continue  # its own weights are in float64
        y = measure(torch.ones(2, *shape))
        assert y.dtype == measure.transpose(y).dtype == measure.pseudo_inverse(y).dtype
        assert y.dtype == torch.float32


def test_a_wrong_transpose_and_what_is_not_linear_are_found():
    shape = (1, 4, 4)
    right = Linear(lambda x: x.roll(1, 2), shape, lambda y: y.roll(-1, 2))
    check_adjoint(right, shape)
    with pytest.raises(InputError, match="the transpose is not that of the function"):
        check_adjoint(Linear(lambda x: x.roll(1, 2), shape, lambda y: y.roll(1, 2)), shape)
    with pytest.raises(InputError, match="A is not linear"):
        check_adjoint(Linear(lambda x: x + 1, shape), shape)
    with pytest.raises(InputError, match="gives a picture of 1x2x2, the measurement takes 1x4x4"):
        check_adjoint(Linear(Box((2, 2)), shape, lambda y: y), shape)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: Box((3, 2))(x), r"factors is \[3, 2\], the picture has 4x4 cells"),
        (lambda x: Box((2,))(x), r"give one factor an axis, that divides it"),
        (lambda x: Box((0, 2)), r"factors is \[0, 2\]; give 1 or more"),
        (lambda x: Blur(0.0), "std is 0.0; it must be above 0"),
        (lambda x: Blur((1.0, 1.0, 1.0))(x), "std has 3 numbers, the picture 2 axes"),
        (lambda x: Convolution(torch.ones(2, 3)), "kernel has 2x3 cells; give an odd number"),
        (lambda x: Convolution(torch.ones(5, 5))(x), "kernel has 5x5 cells, the picture 4x4"),
        (lambda x: Points(torch.zeros(1, 2, 3), (4, 4)), "at has 3 coordinates a point"),
        (lambda x: Points(torch.full((1, 2, 2), 1.5), (4, 4)), "outside of -1 to 1"),
        (lambda x: Points(torch.zeros(1, 2, 2), (4, 5))(x), "a grid of 4x5 cells"),
        (lambda x: Mask(torch.ones(1, 1, 4, 5) > 0)(x), "mask has 4x5 cells, the picture 4x4"),
        (lambda x: Linear(lambda x: x, (1, 5, 4))(x), "the measurement is of 1x5x4"),
        (lambda x: Chain(), "a chain has no measurement"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(make, message):
    with pytest.raises(InputError, match=message):
        make(torch.zeros(1, 1, 4, 4))
