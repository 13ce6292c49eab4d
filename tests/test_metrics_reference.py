"""Statistics that are kept: used again for the same question alone, and never when damaged."""

import json

import pytest
import torch

from pointillist.metrics import frechet_distance, open_extractor, reference
from pointillist.metrics.features import Extractor, box_means
from pointillist.types import InputError

EXTRACTOR = open_extractor("pixels")
X = torch.randint(0, 256, (300, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
ASKED = {"fingerprint": "f1", "split": "test", "count": 300}


def never():
    raise AssertionError("pictures were read although statistics are kept")


@pytest.fixture
def folder(tmp_path):
    reference(tmp_path / "kept", EXTRACTOR, lambda: X.split(50), **ASKED)
    return tmp_path / "kept"


def test_kept_statistics_are_used_again_without_a_picture(folder):
    again = reference(folder, EXTRACTOR, never, **ASKED)
    fresh = reference(folder.with_name("fresh"), EXTRACTOR, lambda: X.split(300), **ASKED)
    assert again.rows is None and again.moments.n == 300
    torch.testing.assert_close(again.moments.cov, fresh.moments.cov)
    other = EXTRACTOR(X[:250].flip(3))
    assert frechet_distance(other, again.moments) == pytest.approx(
        frechet_distance(other, EXTRACTOR(X)), rel=1e-9
    )


def test_features_are_kept_where_they_are_asked_for(folder):
    kept = reference(folder, EXTRACTOR, lambda: X.split(64), keep=True, **ASKED)
    assert torch.equal(kept.rows, EXTRACTOR(X))
    again = reference(folder, EXTRACTOR, never, keep=True, **ASKED)
    assert torch.equal(again.rows, kept.rows)
    # Asking for less finds more, and leaves it.
    assert torch.equal(reference(folder, EXTRACTOR, never, **ASKED).rows, kept.rows)


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"fingerprint": "f2"}, "fingerprint 'f1', and 'f2' is asked for"),
     ({"split": "train"}, "split 'test', and 'train' is asked for"),
     ({"count": 299}, "count 300, and 299 is asked for"),
     ({"extractor": Extractor("own", "", 192, EXTRACTOR.resize, box_means)},
      "extractor 'pixels', and 'own' is asked for"),
     ({"extractor": Extractor("pixels", "ab", 192, EXTRACTOR.resize, box_means)},
      "digest '', and 'ab' is asked for"),
     ({"extractor": Extractor("pixels", "", 192, "bicubic", box_means)},
      "resize 'mean over 8 x 8 boxes of the picture', and 'bicubic' is asked for")],
)  # fmt: skip
def test_statistics_of_anything_else_are_refused(changed, message, folder):
    extractor = changed.pop("extractor", EXTRACTOR)
    with pytest.raises(InputError, match=f"{message}; delete it, or name another folder") as caught:
        reference(folder, extractor, never, **(ASKED | changed))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def spoil(folder, how):
    tensors, state = next(folder.glob("*.safetensors")), folder / "state.json"
    facts = json.loads(state.read_text())
    if how == "byte":
        data = bytearray(tensors.read_bytes())
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif how == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif how == "gone":
        tensors.unlink()
    elif how == "state":
        state.write_text(state.read_text()[:-5])
    elif how == "facts":
        state.write_text(json.dumps({"files": facts["files"]}))
    elif how == "other":
        state.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [("byte", "the statistics in .* are damaged, or not whole; delete it, and they are made"),
     ("cut", "the statistics in .* are damaged, or not whole"),
     ("gone", "the statistics in .* are damaged, or not whole"),
     ("state", "state.json is damaged; delete .*, and the statistics are made again"),
     ("facts", "state.json is damaged; delete .*, and the statistics are made again"),
     ("other", "holds no reference statistics; delete it, or name another")],
)  # fmt: skip
def test_damaged_statistics_are_refused_by_name(how, message, folder):
    spoil(folder, how)
    with pytest.raises(InputError, match=message) as caught:
        reference(folder, EXTRACTOR, never, **ASKED)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_fewer_pictures_than_asked_for_leave_nothing_behind(tmp_path):
    with pytest.raises(InputError, match="400 pictures of test were asked for and 300 came"):
        reference(tmp_path / "kept", EXTRACTOR, lambda: X.split(50), **(ASKED | {"count": 400}))
    assert not list(tmp_path.iterdir())


def test_an_interrupted_making_leaves_nothing_behind(tmp_path):
    def breaking():
        yield X[:100]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reference(tmp_path / "kept", EXTRACTOR, breaking, **ASKED)
    assert not list(tmp_path.iterdir())
