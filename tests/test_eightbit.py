"""Moments of a byte each: who may have them, what they take, and how they are saved and resumed."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import pointillist as pt
from pointillist.describe import describe
from pointillist.engine import checkpoint, eightbit, optim
from pointillist.engine.log import read
from pointillist.engine.optim import (
    OptimConfig,
    build_optimizer,
    load_optimizer_state,
    moments,
    optimizer_state,
)
from pointillist.run import Run
from pointillist.types import InputError

EIGHT = OptimConfig(moments="8bit", weight_decay=0.1)
TOY = (
    "model.width=64", "model.depth=2", "model.heads=2", "model.patch_size=8", "train.images=80",
    "train.batch=16", "train.save_every=32", "train.log_every=16", "train.grid=0",
    "train.validate=0", "train.keep=0", "optim.moments=8bit",
)  # fmt: skip

CUDA = ("device=cuda", "optim.schedule=constant")


class StandIn(torch.optim.Optimizer):
    """AdamW with the state that bitsandbytes keeps, by a table of its own.

    Of tensors of `min_8bit_size` or more, for each moment: numbers of table entries as uint8 of the
    parameter's shape, the largest value of each 256, and the table, which all share. Of smaller
    ones two float32 tensors. `step` is a number.
    """

    def __init__(self, groups, lr, betas, min_8bit_size):
        super().__init__(groups, {"lr": lr, "betas": betas})
        self.smallest = min_8bit_size
        self.tables = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, self.state[p], group)

    def update(self, p, state, group):
        large = p.numel() >= self.smallest
        if not state:
            state["step"] = 0
            for i, table in enumerate(self.tables, 1):
                state[f"state{i}"] = torch.zeros_like(p, dtype=torch.uint8 if large else p.dtype)
                if large:
                    state[f"qmap{i}"] = table
                    state[f"absmax{i}"] = torch.zeros(-(-p.numel() // 256))
        state["step"] += 1
        values = []
        for i, (beta, g) in enumerate(zip(group["betas"], (p.grad, p.grad**2), strict=True), 1):
            value = (self.read(state, i) if large else state[f"state{i}"]).lerp(g, 1 - beta)
            values.append(value / (1 - beta ** state["step"]))
            if large:
                self.write(state, i, value)
            else:
                state[f"state{i}"] = value
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(values[0] / (values[1].sqrt() + 1e-8), alpha=-group["lr"])

    @staticmethod
    def read(state, i):
        codes = state[f"state{i}"]
        value = state[f"qmap{i}"][codes.flatten().long()]
        scale = state[f"absmax{i}"].repeat_interleave(256)[: value.numel()]
        return (value * scale).view(codes.shape)

    @staticmethod
    def write(state, i, value):
        flat = nn.functional.pad(value.flatten(), (0, -value.numel() % 256)).view(-1, 256)
        largest = flat.abs().amax(1)
        share = (flat / largest.clamp(min=1e-30)[:, None]).flatten()[: value.numel()]
        table = state[f"qmap{i}"]
        codes = ((share - table[0]) / (table[-1] - table[0]) * 255).round()
        state[f"state{i}"] = codes.to(torch.uint8).view(value.shape)
        state[f"absmax{i}"] = largest


def real():
    """The package itself, which computes on a CPU too, if slowly."""
    return importlib.util.find_spec("bitsandbytes") is not None


@pytest.fixture(params=["stand-in", "bitsandbytes"])
def eight(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """8-bit moments on the CPU."""
    if request.param == "stand-in":
        module = types.SimpleNamespace(AdamW8bit=StandIn)
        monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    elif not real():
        pytest.skip("bitsandbytes is not installed")
    monkeypatch.setattr(optim, "check_eight_bit", lambda device: None)
    return request.param


def test_elsewhere_than_on_cuda_it_is_refused_before_a_folder_is_made(tmp_path):
    run = Run.load("debug", *TOY, "device=cpu")
    with pytest.raises(InputError, match="optim.moments is 8bit, .* the device is cpu; set optim"):
        pt.train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_the_package_the_command_that_installs_it_is_told(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        eightbit.importlib.util, "find_spec",
        lambda name: None if name == "bitsandbytes" else find(name),
    )  # fmt: skip
    sentence = r"not installed; pip install 'pointillist\[bits\]', or set optim.moments=float32"
    with pytest.raises(InputError, match=sentence):
        eightbit.check_eight_bit(torch.device("cuda"))


def test_what_it_costs_is_told_on_any_machine():
    """`show` needs neither CUDA nor the package."""
    plain, small = (Run.load("cifar10-jit", f"optim.moments={m}") for m in ("float32", "8bit"))
    with torch.device("meta"):
        model = plain.model.build(plain.data.promise())
    large = sum(p.numel() for p in model.parameters() if p.numel() >= 4096)
    a, b = (describe(run, run.data.promise()) for run in (plain, small))
    assert a["training_bytes"] - b["training_bytes"] == 6 * large
    assert large > 0.99 * a["parameters"]


def toy_model() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"wide": nn.Linear(70, 70), "narrow": nn.Linear(70, 3)})


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("hidden", [{}, {"muon": True}])
def test_the_state_goes_through_a_checkpoint_exactly(eight, tmp_path, hidden):
    def begun() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = toy_model()
        if not hidden:
            return model, build_optimizer(model, EIGHT, {})
        mixed = OptimConfig(moments="8bit", hidden="muon", weight_decay=0.1)
        return model, build_optimizer(model, mixed, {model["narrow"].weight: 1})

    model, optimizer = begun()
    for seed in range(3):
        stepped(model, optimizer, seed)
    state = optimizer_state(model, optimizer)
    checkpoint.save(
        tmp_path / "c", {"optimizer": state, "model": dict(model.named_parameters())}, {}
    )
    other, another = begun()
    other.load_state_dict(checkpoint.load(tmp_path / "c", "model"))
    load_optimizer_state(other, another, checkpoint.load(tmp_path / "c", "optimizer"))
    kept = {(n, e): v for n, p in model.named_parameters() for e, v in optimizer.state[p].items()}
    back = {(n, e): v for n, p in other.named_parameters() for e, v in another.state[p].items()}
    assert kept.keys() == back.keys()
    for key, value in kept.items():
        assert type(value) is type(back[key])
        if isinstance(value, torch.Tensor):
            assert value.dtype == back[key].dtype and torch.equal(value, back[key])
        else:
            assert value == back[key] == 3
    assert kept["wide.weight", "state1"].dtype == torch.uint8
    assert kept["wide.bias", "state1"].dtype == torch.float32
    for seed in (7, 8):
        stepped(model, optimizer, seed)
        stepped(other, another, seed)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_state_is_as_large_as_was_counted_but_for_a_number_a_block(eight):
    model = toy_model()
    optimizer = build_optimizer(model, EIGHT, {})
    counted = sum(p.numel() * dtype.itemsize for p, dtype in moments(optimizer))
    stepped(model, optimizer, 0)
    made = sum(
        value.nbytes
        for state in optimizer.state.values()
        for entry, value in state.items()
        if entry.startswith("state")
    )
    assert made == counted == 2 * (70 * 70 + 4 * (70 + 70 * 3 + 3))


def test_weights_decay_as_in_float32_and_vectors_do_not(eight):
    optimizer = build_optimizer(toy_model(), EIGHT, {})
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def test_it_stays_near_the_moments_of_float32(eight):
    near, exact = toy_model(), toy_model()
    both = [(near, build_optimizer(near, EIGHT, {})),
            (exact, build_optimizer(exact, OptimConfig(weight_decay=0.1), {}))]  # fmt: skip
    for seed in range(5):
        for model, optimizer in both:
            stepped(model, optimizer, seed)
    moved = (exact["wide"].weight - toy_model()["wide"].weight).abs().mean()
    off = (exact["wide"].weight - near["wide"].weight).abs().mean()
    assert 0 < off < 0.3 * moved
    torch.testing.assert_close(near["narrow"].weight, exact["narrow"].weight, rtol=1e-4, atol=1e-6)


def test_a_run_is_resumed_bit_for_bit_and_with_the_same_moments_only(eight, tmp_path):
    def halt(event: dict) -> None:
        if event["event"] == "step" and event["images"] == 64:
            raise KeyboardInterrupt

    run = Run.load("debug", *TOY, "device=cpu")
    module = sys.modules["pointillist.train"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_moments", lambda optim, device: None)
        pt.train(run, tmp_path / "a")
        with pytest.raises(KeyboardInterrupt):
            pt.train(run, tmp_path / "b", report=halt)
        pt.train(run, tmp_path / "b", resume=True)
    plain = Run.load("debug", *TOY, "device=cpu", "optim.moments=float32")
    with pytest.raises(InputError, match="optim.moments is float32, but the run in .* has 8bit"):
        pt.train(plain, tmp_path / "b", resume=True)
    assert of(tmp_path / "a") == of(tmp_path / "b")
    for group in ("model", "optimizer"):
        ours, theirs = (checkpoint.load(last(tmp_path / name), group) for name in "ab")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert group == "model" or any(v.dtype == torch.uint8 for v in ours.values())


def last(folder: Path) -> Path:
    return checkpoint.complete(folder / "checkpoints")[-1]


def of(folder: Path) -> list[dict]:
    return [{k: v for k, v in e.items() if k != "images_per_second"}
            for e in read(folder / "log.jsonl")]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_three_steps_on_a_gpu(tmp_path):
    pytest.importorskip("bitsandbytes")
    steps: dict[str, list[dict]] = {}
    for kind in ("8bit", "float32"):
        run = Run.load("debug", *TOY, *CUDA, f"optim.moments={kind}", "train.images=48")
        found = steps.setdefault(kind, [])
        pt.train(run, tmp_path / kind, report=found.append)
    state = checkpoint.load(last(tmp_path / "8bit"), "optimizer")
    assert {v.dtype for n, v in state.items() if n.endswith("state1")} == {
        torch.uint8, torch.float32
    }  # fmt: skip
    losses = [[e["loss"] for e in found if e["event"] == "step"] for found in steps.values()]
    assert losses[0] == pytest.approx(losses[1], rel=0.05) and len(losses[0]) == 3
    pt.train(Run.load("debug", *TOY, *CUDA), tmp_path / "8bit", resume=True)
    assert of(tmp_path / "8bit")[-1]["images"] == 80
