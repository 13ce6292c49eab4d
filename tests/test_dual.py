"""The dual form against the selective scan, whose special case it is."""

import pytest
import torch

from pointillist.layers.dual import dual_scan
from pointillist.layers.scan import scan_plain


def example(length: int = 7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, length, 2, 3), (2, length, 2), *[(2, length, 2, 4)] * 2]
    x, decay, B, C = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [v.requires_grad_() for v in (x, -decay.abs(), B, C)]


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_one_decay_a_head_is_the_selective_scan_with_equal_decays(chunk: int) -> None:
    given = example()
    x, decay, B, C = given
    ours, _ = dual_scan(*given, chunk=chunk)
    # dt = -decay and A = -1 decay alike; dt x has to be the x of here.
    dt = -decay.repeat_interleave(3, 2)
    A = -torch.ones(6, 4, dtype=x.dtype)
    plain = scan_plain(x.flatten(2) / dt, dt, A, B, C).unflatten(2, (2, 3))
    torch.testing.assert_close(ours, plain)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view_as(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), given),
        torch.autograd.grad((plain * weight).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_state_between_two_parts_is_all_that_the_second_needs() -> None:
    given = example(11)
    whole, last = dual_scan(*given, chunk=4)
    first, between = dual_scan(*(v[:, :5] for v in given), chunk=4)
    second, end = dual_scan(*(v[:, 5:] for v in given), start=between, chunk=4)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    torch.testing.assert_close(end, last)


def test_strong_decays_overflow_neither_forward_nor_backward() -> None:
    given = [v.detach().float() for v in example(64)]
    given[1] = (given[1] * 100).requires_grad_()
    out, _ = dual_scan(*given)
    (gradient,) = torch.autograd.grad(out.sum(), given[1])
    assert torch.isfinite(out).all() and torch.isfinite(gradient).all()


def test_bfloat16_keeps_a_float32_state() -> None:
    half = [v.detach().bfloat16() for v in example(300)]
    out, last = dual_scan(*half)
    assert out.dtype == torch.bfloat16 and last.dtype == torch.float32
    exact, _ = dual_scan(*(v.double() for v in half))
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-4)


def test_autocast_does_not_round_the_products() -> None:
    given = [v.detach().float() for v in example(300)]
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = dual_scan(*given)
    assert torch.equal(cast, dual_scan(*given)[0])
