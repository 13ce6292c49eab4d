"""What must hold on a CUDA device: the same answers, gradients and runs as on the CPU."""

import itertools

import pytest
import torch

import pointillist as pt
from pointillist.draws import Draw
from pointillist.layers.attend import attend
from pointillist.models import Network
from pointillist.types import Given

from .contract.test_models import CONFIGS, asked, toy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
CUDA = torch.device("cuda")
SIZE = (16, 16)


def moved(given: Given) -> Given:
    return Given(*(None if value is None else value.to(CUDA) for value in given))


def answer(config: type, dtype: torch.dtype | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The same toy network's answer on the CPU in float32, and on the GPU."""
    x, t, given = asked(SIZE)
    model = toy(config, SIZE)
    with torch.no_grad():
        expected = Network(model)(x, t, given).value
        with torch.autocast("cuda", dtype=dtype or torch.float32, enabled=dtype is not None):
            found = Network(model.to(CUDA))(x.to(CUDA), t.to(CUDA), moved(given)).value
    return expected, found.float().cpu()


@pytest.mark.parametrize("config", CONFIGS)
def test_the_gpu_answers_as_the_cpu_does(config):
    expected, found = answer(config)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_bfloat16_is_close_to_float32(config):
    expected, found = answer(config, torch.bfloat16)
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


@pytest.mark.parametrize("config", CONFIGS)
def test_compiled_equals_eager(config):
    x, t, given = asked(SIZE)
    model = toy(config, SIZE).to(CUDA)
    x, t, given = x.to(CUDA), t.to(CUDA), moved(given)
    with torch.no_grad():
        context = model.condition(given, SIZE)
        expected = model(x, t, given, context).value
        found = torch.compile(model)(x, t, given, context).value
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("tokens", "heads"), list(itertools.product((64, 320), (2,))))
def test_attention_is_the_same_function_on_both(tokens, heads):
    q, k, v = torch.randn(3, 2, heads, tokens, 32, generator=torch.Generator().manual_seed(0))
    found = attend(q.to(CUDA), k.to(CUDA), v.to(CUDA)).cpu()
    torch.testing.assert_close(found, attend(q, k, v), rtol=1e-4, atol=1e-5)


def test_draws_are_those_of_the_cpu_up_to_a_last_bit():
    there = Draw(3, torch.arange(64, device=CUDA)).normal("noise", (3, 32, 32)).cpu()
    here = Draw(3, torch.arange(64)).normal("noise", (3, 32, 32))
    torch.testing.assert_close(there, here, rtol=3e-7, atol=1e-7)
    bits = Draw(3, torch.arange(64, device=CUDA)).bits("noise", (100,)).cpu()
    assert torch.equal(bits, Draw(3, torch.arange(64)).bits("noise", (100,)))


TERMS = {
    "plain": (),
    "all terms": (
        "loss.align={weight: 0.5, block: 1, stop_after: 192}",
        "loss.lpips={weight: 0.1, after: 0.3}", "loss.frequency.weight=0.5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("terms", TERMS)
def test_a_run_on_the_gpu_starts_as_one_on_the_cpu(tmp_path, terms):
    steps = {}
    for device in ("cpu", "cuda"):
        run = pt.Run.load("debug", f"device={device}", "train.images=256", "train.log_every=64",
                          "train.save_every=256", *TERMS[terms])  # fmt: skip
        found = steps.setdefault(device, [])
        pt.train(
            run, tmp_path / device,
            report=lambda e, found=found: found.append(e) if e["event"] == "step" else None,
        )  # fmt: skip
    names = {"loss", "velocity", *(("align", "lpips", "frequency") if TERMS[terms] else ())}
    assert len(steps["cpu"]) == len(steps["cuda"]) == 4 and names <= steps["cuda"][0].keys()
    for here, there in zip(steps["cpu"], steps["cuda"], strict=True):
        for name in names & here.keys():
            assert there[name] == pytest.approx(here[name], rel=1e-2)
