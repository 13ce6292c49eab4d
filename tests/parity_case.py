"""What every parity test needs: a stored case, how it is matched, a network with its weights."""

import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pointillist.draws import Draw
from pointillist.models import Network
from pointillist.types import Given, InputError, Spec

BESIDE = Path(__file__).parents[2] / "shared" / "parity"
FOLDER = Path(os.environ.get("POINTILLIST_PARITY") or BESIDE)
CASES = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
NONE = pytest.mark.skip(
    reason=f"no parity cases in {FOLDER}; POINTILLIST_PARITY names their folder"
)


class NotBuilt(Exception):
    """The family, or an option of it, is not part of this version."""


class Case:
    """What is stored of one case."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.constructor: dict[str, Any] = self.config.get("constructor", {})
        self.folder = folder

    @functools.cached_property
    def io(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "io.safetensors")

    @functools.cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        path = self.folder / "weights.safetensors"
        return load_file(path) if path.exists() else {}

    def match(self, name: str, ours: torch.Tensor, tolerance: float | None = None) -> None:
        """Fail unless `ours` is the stored tensor within 20 probes + 1e-6 of its largest entry."""
        theirs = self.io[name]
        assert ours.shape == theirs.shape, f"{name} has shape {tuple(ours.shape)}"
        if tolerance is None:
            # Where no probe was stored, 5e-7 is what the cases of this size have.
            probe = self.config.get("probe", {}).get("perturbation_max_abs", 5e-7)
            tolerance = 20 * probe + 1e-6 * float(theirs.abs().max())
        off = float((ours.detach().double() - theirs.double()).abs().max())
        assert off <= tolerance, f"{name} is off by {off:.2e}, allowed {tolerance:.2e}"


def known(options: dict[str, Any], *names: str) -> None:
    """NotBuilt where an option is set that is not among `names`."""
    for name in options:
        if name not in names:
            raise NotBuilt(f"{name} = {options[name]}")


def plain(options: dict[str, Any], **only: Any) -> None:
    """NotBuilt where an option is set to anything but its one value that is built."""
    for name, value in only.items():
        if options.get(name, value) != value:
            raise NotBuilt(f"{name} = {options[name]}")


# Heads that align hidden features with another network's.
ASIDE = ("proj", "repa_projector")


def make(config: Any, spec: Spec, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A network with published weights, already under our names; every one must find its place."""
    try:
        model = config.build(spec)
    except InputError as error:
        raise NotBuilt(str(error)) from None
    table = weights.get("label.table.weight")
    # Published without "no label".
    if table is not None and table.shape[0] == len(spec.classes):
        weights["label.table.weight"] = torch.cat((table, torch.zeros(1, table.shape[1])))
    model.load_state_dict(weights)
    return model.eval()


def match_gradients(case: Case, model: torch.nn.Module, rename: Any) -> None:
    """Norms of all published parameters' gradients, and their products with the parameters.

    Renaming is linear (parts are stacked, split, put into another order), so the gradient of the
    published weights is that of ours carried back through it.
    """
    ours = dict(model.named_parameters())
    theirs = {n: w.clone().requires_grad_() for n, w in case.weights.items()}
    total = torch.zeros(())
    for name, value in rename(theirs).items():
        if name in ours and ours[name].grad is not None:
            total = total + (value[: ours[name].shape[0]] * ours[name].grad).sum()
    carried = torch.autograd.grad(total, list(theirs.values()), allow_unused=True)
    found = dict(zip(theirs, carried, strict=True))
    for row, name in enumerate(case.config["param_order"]):
        if name.startswith(ASIDE):
            continue
        p = case.weights[name]
        gradient = torch.zeros_like(p) if found[name] is None else found[name]
        if name == "pos_embed":
            continue  # a fixed table
        norm = float(gradient.norm())
        # Gains are all near 1, so their product is the sum of a gradient of both signs: what is
        # left of it is as exact as both norms are, not as itself.
        both = norm * (max(1.0, float(p.norm())) if p.dim() == 1 else 1.0)
        for what, value, most in (
            ("grad.param_norms", gradient.norm(), norm),
            ("grad.param_dot", (p * gradient).sum(), both),
        ):  # fmt: skip
            if what in case.io:
                stored = float(case.io[what][row])
                scale = 1e-4 * abs(stored) + 1e-5 * (1 + most)
                off = abs(float(value.detach()) - stored)
                assert off <= scale, f"{what} of {name} is off by {off:.2e}"


def forward(
    case: Case, model: torch.nn.Module, rename: Any, out: str = "out", given: Given | None = None
) -> None:
    x = case.io["in.x"].requires_grad_()
    label = unlabel(case.io["in.y"], model)
    given = (given or Given())._replace(label=label)
    match_answer(case, model, rename, Network(model)(x, case.io["in.t"], given).value, out)


def match_answer(
    case: Case, model: torch.nn.Module, rename: Any, value: torch.Tensor, out: str = "out"
) -> None:
    """An answer to `in.x`, the gradient of that, and the gradients of the parameters."""
    case.match(out, value)
    (value * case.io["cotangent"]).sum().backward()
    found = case.io["in.x"].grad
    assert found is not None
    case.match("grad.in.x", found)
    match_gradients(case, model, rename)


def unlabel(label: torch.Tensor, model: Any) -> torch.Tensor:
    """Published code numbers "no label" after the last class; here it is -1."""
    return torch.where(label == len(model.spec.classes), -1, label)


class Fixed(Draw):
    """Stored draws in the place of ours."""

    draws: dict[str, torch.Tensor]

    def normal(self, purpose: str, shape: Any = (), tile: Any = None) -> torch.Tensor:
        return self.draws[purpose]

    def uniform(self, purpose: str, shape: Any = ()) -> torch.Tensor:
        return self.draws[purpose]
