"""Distances of sets against torchmetrics: on features at hand, and through the published Inception.

torchmetrics is given our feature module, so nothing but the features is shared.
"""

import warnings

import pytest
import torch

from pointillist.metrics import (
    Extractor,
    frechet_distance,
    kernel_distance,
    open_extractor,
    subset_distances,
)
from pointillist.types import InputError

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (extra dev)")


class Module(torch.nn.Module):
    """An extractor as torchmetrics takes it; `seen` keeps what it answered."""

    def __init__(self, extractor: Extractor) -> None:
        super().__init__()
        self.extractor, self.num_features, self.seen = extractor, extractor.dim, []

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        self.seen.append(self.extractor(pictures))
        return self.seen[-1]


def frechet_of_theirs(module, real, fake, batch):
    from torchmetrics.image.fid import FrechetInceptionDistance

    theirs = FrechetInceptionDistance(feature=module)
    for pictures, is_real in ((real, True), (fake, False)):
        for part in pictures.split(batch):
            theirs.update(part, real=is_real)
    return float(theirs.compute())


def kernel_of_theirs(real, fake, size):
    """Their mean and deviation over 100 subsets, and the rows they drew, from one seed."""
    from torchmetrics.image.kid import KernelInceptionDistance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features in memory
        theirs = KernelInceptionDistance(feature=torch.nn.Identity(), subset_size=size)
    theirs.update(real, real=True)
    theirs.update(fake, real=False)
    torch.manual_seed(0)
    mean, deviation = (float(value) for value in theirs.compute())
    torch.manual_seed(0)
    picks = [(torch.randperm(len(real))[:size], torch.randperm(len(fake))[:size])
             for _ in range(100)]  # fmt: skip
    return mean, deviation, picks


def random_pictures(n, size, seed):
    """Their documented example: two intensities that overlap by half."""
    torch.manual_seed(seed)
    return (torch.randint(0, 200, (n, 3, size, size), dtype=torch.uint8),
            torch.randint(100, 255, (n, 3, size, size), dtype=torch.uint8))  # fmt: skip


def test_both_agree_on_features_of_full_rank():
    real, fake = random_pictures(300, 8, seed=0)
    module = Module(open_extractor("pixels"))
    theirs = frechet_of_theirs(module, real, fake, batch=100)
    a, b = torch.cat(module.seen[:3]), torch.cat(module.seen[3:])
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-4)
    mean, deviation, picks = kernel_of_theirs(a, b, 50)
    found = subset_distances(a, b, picks=picks)
    assert float(found.mean()) == pytest.approx(mean, rel=1e-4)
    assert float(found.std(correction=0)) == pytest.approx(deviation, rel=1e-3)


@pytest.fixture(scope="module")
def documented():
    """Their figure of the documented pictures through Inception, and the features it saw."""
    try:
        module = Module(open_extractor("inception"))
    except InputError as error:
        pytest.skip(f"the published Inception: {error}")
    real, fake = random_pictures(100, 299, seed=42)
    figure = frechet_of_theirs(module, real, fake, batch=20)
    return figure, torch.cat(module.seen[:5]), torch.cat(module.seen[5:])


@pytest.mark.network
@pytest.mark.slow
def test_the_documented_kernel_distance_is_found(documented):
    """0.0312 with a deviation of 0.0025 over subsets, say their docs."""
    _, real, fake = documented
    assert kernel_distance(real, fake, subset_size=50) == pytest.approx(0.0312, abs=0.0025)
    mean, deviation, picks = kernel_of_theirs(real, fake, 50)
    found = subset_distances(real, fake, picks=picks)
    assert float(found.mean()) == pytest.approx(mean, abs=1e-6)
    assert float(found.std(correction=0)) == pytest.approx(deviation, abs=1e-6)
    assert mean == pytest.approx(0.0312, abs=0.0025)


@pytest.mark.network
@pytest.mark.slow
def test_the_frechet_distance_is_theirs(documented):
    theirs, real, fake = documented
    ours = frechet_distance(real, fake, rank_deficient=True)  # 100 pictures, 2,048 features
    assert ours == pytest.approx(theirs, abs=1e-4)
    with pytest.raises(InputError, match="2048 features needs 2049 or more"):
        frechet_distance(real, fake)
