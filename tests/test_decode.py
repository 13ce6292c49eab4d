"""ADM's centre crop against answers that are known, and the presets that promise it."""

import numpy as np
import pytest
from PIL import Image

from pointillist.data import FolderConfig
from pointillist.data.decode import adm_crop, decode
from pointillist.run import Run, preset_names


def noise(h: int, w: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)


def adm(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(adm_crop(Image.fromarray(array), size))


@pytest.mark.parametrize("size", [(8, 8), (8, 6)])
def test_a_picture_of_exactly_twice_the_size_is_its_box_mean(size):
    h, w = size
    array = noise(2 * h, 2 * w)
    means = array.reshape(h, 2, w, 2, 3).mean((1, 3))
    # Pillow rounds rows and columns in turn: half a level each.
    assert np.abs(adm(array, size) - means).max() <= 1


def test_a_picture_whose_shorter_side_fits_is_only_cut():
    array = noise(8, 15)
    assert np.array_equal(adm(array, (8, 8)), array[:, 3:11])
    assert np.array_equal(adm(array.transpose(1, 0, 2), (8, 8)), array.transpose(1, 0, 2)[3:11])


def test_between_one_and_two_sizes_there_is_one_bicubic_resize():
    array = noise(15, 21)
    image = Image.fromarray(array).resize((11, 8), Image.Resampling.BICUBIC)
    assert np.array_equal(adm(array, (8, 8)), np.asarray(image)[:, 1:9])


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (12, 7), (1, 9)])
@pytest.mark.parametrize("shape", [(5, 5), (9, 31), (64, 17), (99, 100)])
def test_every_shape_is_filled_without_a_border(shape, size):
    found = adm(np.full((*shape, 3), 99, np.uint8), size)
    assert found.shape == (*size, 3) and (found == 99).all()


def test_decoding_takes_the_crop_that_is_asked_for(tmp_path):
    array = noise(40, 30)
    Image.fromarray(array).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", (8, 8), 3, "adm", False)
    assert np.array_equal(found.x.transpose(1, 2, 0), adm(array, (8, 8)))


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("imagenet")])
def test_every_imagenet_preset_prepares_pictures_as_published(name):
    run = Run.load(name)
    assert isinstance(run.data, FolderConfig)
    assert run.data.fit == "adm" and run.data.enlarge and run.augment.flip
