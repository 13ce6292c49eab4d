"""The selective scan against its equation."""

import pytest
import torch

from pointillist.layers.scan import scan_plain, selective_scan
from pointillist.types import InputError


def example(length: int = 7, groups: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, length, 4), (2, length, 4), (4, 3), *[(2, length, groups, 3)] * 2]
    x, dt, A, B, C = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return [v.requires_grad_() for v in (x, dt.abs(), -A.abs(), B, C)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
def test_the_scan_is_its_equation_in_any_chunk(chunk: int, groups: int) -> None:
    given = example(groups=groups)
    ours, plain = selective_scan(*given, chunk=chunk), scan_plain(*given)
    torch.testing.assert_close(ours, plain)
    weight = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view_as(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), given),
        torch.autograd.grad((plain * weight).sum(), given),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_gradients_are_those_of_differences() -> None:
    D = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *v: selective_scan(*v, chunk=2), (*example(5), D))


def test_bfloat16_keeps_a_float32_state() -> None:
    half = [v.detach().bfloat16() for v in example(300)]
    out = selective_scan(*half)
    assert out.dtype == torch.bfloat16
    exact = scan_plain(*[v.double() for v in half])
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="3 groups"):
        selective_scan(*example(groups=3))
    with pytest.raises(InputError, match="chunk = 0"):
        selective_scan(*example(), chunk=0)


def test_autocast_does_not_round_the_state() -> None:
    given = [v.detach().float() for v in example(300)]
    with torch.autocast("cpu", torch.bfloat16):
        cast = selective_scan(*given)
    assert torch.equal(cast, selective_scan(*given))
