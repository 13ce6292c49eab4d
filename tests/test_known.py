"""Known pixels at the door of sampling: a table or tensors, checked, and given back unchanged."""

import pytest
import torch

from pointillist.data.known_pixels import read_pixels
from pointillist.known import on_grid, rows_of
from pointillist.run import Run
from pointillist.sample import untrained
from pointillist.types import Given, InputError
from tests.awake import awake


@pytest.fixture(scope="module")
def trained():
    return awake("model.encoder.kind=grid", "task.kind=hints")


def table(tmp_path, text):
    path = tmp_path / "hints.csv"
    path.write_text(text)
    return path


def test_a_table_of_pixels_is_read_from_the_top_left(tmp_path):
    path = table(tmp_path, "x,y,r,g,b\n3,1,255,0,127.5\n0,0,0,0,0\n")
    known = read_pixels(path, 3, (4, 8)).given
    assert known.mask.nonzero()[:, 2:].tolist() == [[0, 0], [1, 3]]
    assert known.seen[0, :, 1, 3].tolist() == [1, -1, 0]
    unit = table(tmp_path, "y_unit,x_unit,r_unit,g_unit,b_unit\n1,0.4,1,0,0.5\n")
    known = read_pixels(unit, 3, (4, 8)).given
    assert known.mask.nonzero()[:, 2:].tolist() == [[3, 3]]
    assert known.seen[0, :, 3, 3].tolist() == [1, -1, 0]
    grey = read_pixels(table(tmp_path, "x,y,v\n0,0,255\n"), 1, (2, 2)).given
    assert grey.seen[0, 0].tolist() == [[1, 0], [0, 0]]


def test_a_pixel_that_is_told_of_twice_is_their_mean_and_counted(tmp_path):
    path = table(tmp_path, "x,y,r,g,b\n0,0,0,0,10\n1,1,4,4,4\n0,0,255,0,20\n0,0,255,0,30\n")
    found = read_pixels(path, 3, (4, 8))
    assert found.repeated == 2 and int(found.given.mask.sum()) == 2
    levels = (found.given.seen[0, :, 0, 0] + 1) * 127.5
    torch.testing.assert_close(levels, torch.tensor([170.0, 0.0, 20.0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [("x,y,r,g,b\n8,0,1,1,1\n", "line 2: x is 8, outside of the picture; it lies in 0 to 7"),
     ("x,y,r,g,b\n0,-1,1,1,1\n", "line 2: y is -1, outside of the picture"),
     ("x,y,r,g,b\n0,0,0.5,1,0.2\n", "colours between 0 and 1 .*; name them r_unit"),
     ("x,y,r,g,b\n0,0,1,0,1\n1,0,0,0,0\n", "between 0 and 1 in columns r, g, b, which run"),
     ("x,y,r_unit,g,b\n0,0,1,0,0.5\n", "0 and 1 in columns g, b, .*; name them g_unit, b_unit"),
     ("x,y,r,g,b,a\n0,0,9,9,9,9\n", "has a column 'a' that is not known; leave it out, there"),
     ("x,y,r,g,b,\n0,0,9,9,9,\n", "has a column '' that is not known"),
     ("x,y,r,g,b\n0.5,0,1,1,1\n", "x is 0.5; it is the whole number"),
     ("x,y,r,g,b\n0,0,256,1,1\n", "r is 256; it lies in 0 to 255"),
     ("x,y,r,g,b\n0,0,red,1,1\n", "r is 'red'; it must be a number"),
     ("x,y,r,g,b\n0,0,127,5,0,0\n", "line 2 has more cells than the first line"),
     ("x,y,r,g,b\n0,0,1\n", "g is None; it must be a number"),
     ("x,y,r,g,b\n0,0,nan,1,1\n", "r is 'nan'; it must be a number"),
     ("x_unit,y,r,g,b\n1.5,0,1,1,1\n", "x_unit is 1.5, outside of the picture"),
     ("x,y,r,g\n0,0,1,1\n", "has columns x, y, r, g; it needs x, y, r, g, b"),
     ("x,y,r,g,b,r\n0,0,1,1,1,1\n", "each once"), ("x" * 140_000, "line 1 is not CSV"),
     ("x,x_unit,y,r,g,b\n0,0,0,1,1,1\n", "each once"), ("", "has columns none"),
     ("x,y,r,g,b\n", "holds no pixel")],
)  # fmt: skip
def test_a_wrong_table_is_one_sentence(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        read_pixels(table(tmp_path, text), 3, (4, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [("x,y,r,g,b\n0,0,0,0,0\n", (0, 0, 0)), ("x,y,r,g,b\n0,0,1,200,0\n", (1, 200, 0)),
     ("x,y,r_unit,g_unit,b\n0,0,1,0,2\n", (255, 0, 2)), ("x,y,r,g,b\n0,0,2,1,0\n", (2, 1, 0)),
     ("x,y,r_unit,g_unit,b_unit\n0,0,1,0,1\n", (255, 0, 255))],
)  # fmt: skip
def test_dark_and_black_pixels_are_taken_where_the_scale_is_no_question(tmp_path, text, found):
    seen = read_pixels(table(tmp_path, text), 3, (4, 8)).given.seen
    torch.testing.assert_close((seen[0, :, 0, 0] + 1) * 127.5, torch.tensor(found).float())


def test_a_table_that_is_not_there_or_not_text_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_pixels(tmp_path / "none.csv", 3, (4, 8))
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="not UTF-8"):
        read_pixels(tmp_path / "bytes.csv", 3, (4, 8))
    with pytest.raises(InputError, match="grey or colour pictures only"):
        read_pixels(tmp_path / "none.csv", 3, (4, 4, 4))


def test_points_and_grid_say_the_same():
    seen = torch.tensor([[[[0.5, 0.0], [0.0, -0.25]]]])
    mask = seen != 0
    at = torch.tensor([[[-0.5, -0.5], [0.5, 0.5]]])
    from_grid = on_grid(Given(seen=seen, mask=mask), 3, 1, (2, 2))
    from_points = on_grid(Given(at=at, value=torch.tensor([[[0.5, -0.25]]])), 3, 1, (2, 2))
    for a, b in zip(from_grid, from_points, strict=True):
        assert torch.equal(a, b) and a.shape[0] == 3


def test_nan_is_not_known():
    seen = torch.tensor([[[[0.5, torch.nan]]]])
    values, mask = on_grid(Given(seen=seen, mask=torch.ones(1, 1, 1, 2).bool()), 1, 1, (1, 2))
    assert mask.tolist() == [[[[True, False]]]] and values.tolist() == [[[[0.5, 0.0]]]]


X = torch.zeros(1, 3, 4, 4)
M = torch.ones(1, 1, 4, 4, dtype=torch.bool)
AT, VALUE = torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)


@pytest.mark.parametrize(
    ("known", "message"),
    [(Given(seen=X, mask=M[..., :2]), "mask lies on 4x2 cells, the pictures have 4x4; give it on"),
     (Given(seen=X[..., 1:], mask=M), "seen lies on 4x3 cells"),
     (Given(seen=X[:, :1], mask=M), "hints have 1 channels, the pictures 3"),
     (Given(seen=X[0], mask=M), "seen has shape 3x4x4; it needs 4 dimensions"),
     (Given(seen=X, mask=M.float()), "mask holds torch.float32; it holds true and false"),
     (Given(seen=X > 0, mask=M), "seen holds torch.bool; it holds real numbers"),
     (Given(seen=X, mask=M[:, :1].expand(1, 2, 4, 4)), "mask has 2 channels, the values 3"),
     (Given(seen=X, mask=M.expand(2, -1, -1, -1)), "mask has 2 rows, the values 1"),
     (Given(seen=X + 255, mask=M), "seen holds 255; known values run from -1 to 1"),
     (Given(seen=X + torch.inf, mask=M), "seen holds inf; known values run"),
     (Given(seen=X.expand(3, -1, -1, -1), mask=M.expand(3, -1, -1, -1)), "for 3 pictures, 2 are"),
     (Given(seen=X, mask=torch.cat((M, M, ~M), 1)), "some channels of a pixel only"),
     (Given(mask=M), "mask is given without seen"),
     (Given(at=AT), "points need both at and value"), (Given(value=VALUE), "points need both"),
     (Given(at=AT[..., :1], value=VALUE), "at has 1 coordinates a point, the pictures 2 axes"),
     (Given(at=AT[:, :1], value=VALUE), "at has 1 points, value 2; give one for each"),
     (Given(at=AT, value=VALUE[:, :2]), "hints have 2 channels, the pictures 3"),
     (Given(at=AT.expand(2, -1, -1), value=VALUE), "at has 2 rows, value 1"),
     (Given(at=AT, value=VALUE, valid=torch.ones(1, 1, 2)), "valid holds torch.float32"),
     (Given(at=AT, value=VALUE, valid=torch.ones(1, 1, 3) > 0), "valid has shape 1x1x3"),
     (Given(at=AT, value=VALUE - 2), "value holds -2; known values run"),
     (Given(at=torch.tensor([[[0.0, 0.0], [0.0, 1.5]]]), value=VALUE),
      r"hint 1 of row 0 lies at \(0, 1.5\), outside of the picture"),
     (Given(seen=X, mask=M, label=torch.zeros(1).long()), "known holds label; it takes seen, mask"),
     (Given(seen=X[0], mask=M[0, 0]), "seen has shape 3x4x4"),
     (Given(seen=X, mask=M[0, 0]), "mask has shape 4x4; it needs 4 dimensions"),
     (Given(seen=X * torch.nan, mask=M), "nothing is known: no value is finite"),
     (Given(at=AT[:, :0], value=VALUE[..., :0]), "nothing is known: no value"),
     (Given(seen="red", mask=M), "seen is a str; give a tensor or an array"),
     ({"seen": X}, "known is a dict; give"), ((X, M), "known is a tuple; give"),
     (Given(), "nothing is known; give seen")],
)  # fmt: skip
def test_hints_that_do_not_fit_are_one_sentence(known, message):
    with pytest.raises(InputError, match=message):
        on_grid(known, 2, 3, (4, 4))


def test_without_a_mask_all_that_is_finite_is_known():
    seen = X.clone()
    seen[..., 0, 1:] = torch.nan
    values, mask = on_grid(Given(seen=seen), 2, 3, (4, 4))
    assert values.isfinite().all() and mask.shape == (2, 1, 4, 4)
    assert (~mask[0]).nonzero()[:, 1:].tolist() == [[0, 1], [0, 2], [0, 3]]


def test_arrays_are_taken_as_tensors_are():
    values, mask = on_grid(Given(seen=X.numpy() + 0.5, mask=M.numpy()), 2, 3, (4, 4))
    assert mask.all() and (values == 0.5).all()


def test_grid_and_points_at_once_are_both_known_and_the_grid_wins():
    mask = torch.zeros_like(M)
    mask[..., 0, 0] = True
    at = torch.tensor([[[-0.75, -0.75], [0.75, 0.75]]])
    known = Given(seen=X + 0.5, mask=mask, at=at.expand(2, -1, -1),
                  value=torch.tensor([[[-1.0, 0.25]]]).expand(2, 3, 2))  # fmt: skip
    values, found = on_grid(known, 2, 3, (4, 4))
    assert found[1, 0].nonzero().tolist() == [[0, 0], [3, 3]]
    assert values[1, :, 0, 0].tolist() == [0.5] * 3 and values[1, :, 3, 3].tolist() == [0.25] * 3


def test_a_point_that_does_not_count_may_lie_anywhere():
    at = torch.tensor([[[0.0, torch.nan], [0.1, 0.1]]])
    valid = torch.tensor([[[False, True]]])
    _, mask = on_grid(Given(at=at, value=VALUE + 0.5, valid=valid), 1, 3, (4, 4))
    assert mask.nonzero()[:, 2:].tolist() == [[2, 2]]


def test_guidance_leaves_the_hints_in_both_passes(trained, monkeypatch):
    shown = []
    plain = type(trained.network).condition

    def condition(network, given, size, *more):
        shown.append(given)
        return plain(network, given, size, *more)

    monkeypatch.setattr(type(trained.network), "condition", condition)
    known = Given(seen=torch.full((1, 3, 32, 32), 0.5), mask=torch.rand(1, 1, 32, 32) < 0.5)
    trained.sample(2, label=1, steps=1, guidance=2.0, known=known)
    (toward, away) = shown
    assert toward.label.tolist() == [1, 1] and away.label.tolist() == [-1, -1]
    assert torch.equal(toward.seen, away.seen) and torch.equal(toward.mask, away.mask)
    assert torch.equal(toward.mask[0], known.mask[0])


def test_known_pixels_come_back_unchanged_and_the_rest_follows_them(trained):
    mask = torch.rand(1, 1, 32, 32, generator=torch.manual_seed(0)) < 0.3
    first, second = (torch.full((1, 3, 32, 32), level) for level in (-0.9, 0.9))
    found = [trained.sample(2, steps=2, known=Given(seen=s, mask=mask)) for s in (first, second)]
    for x, seen in zip(found, (first, second), strict=True):
        assert torch.equal(torch.where(mask, x, 0), torch.where(mask, seen, 0).expand_as(x))
    hidden = ~mask.expand_as(found[0])
    assert (found[0] - found[1])[hidden].abs().max() > 1e-3


def test_pictures_with_hints_of_their_own_are_the_same_in_any_batch(trained):
    seen = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 32, 32)
    known = Given(seen=seen, mask=torch.ones(4, 1, 32, 32).bool())
    whole = trained.sample(4, steps=1, known=known, batch=4)
    torch.testing.assert_close(trained.sample(4, steps=1, known=known, batch=3), whole)
    assert torch.equal(whole, seen)


def test_a_run_that_was_not_taught_hints_says_how(trained):
    plain = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2")
    model = untrained(plain, plain.data.promise(), "cpu")
    known = Given(seen=torch.zeros(1, 3, 32, 32), mask=torch.ones(1, 1, 32, 32).bool())
    with pytest.raises(InputError, match="takes no hints; train one with model.encoder.kind=grid"):
        model.sample(1, steps=1, known=known)


def test_a_run_that_always_saw_hints_is_not_asked_without(trained):
    run = Run.load("debug", "model.width=32", "model.depth=2", "model.heads=2",
                   "model.encoder.kind=grid", "task.kind=hints", "task.absent=0")  # fmt: skip
    with pytest.raises(
        InputError, match="never learnt to answer without hints; give some, or train with task.abs"
    ):
        untrained(run, run.data.promise(), "cpu").sample(1, steps=1)
    known = Given(seen=torch.zeros(2, 3, 32, 32), mask=torch.zeros(2, 1, 32, 32) > 0)
    known.mask[0] = True
    with pytest.raises(InputError, match="a picture has no hint, but the run"):
        untrained(run, run.data.promise(), "cpu").sample(2, steps=1, known=known)


@pytest.mark.parametrize(
    ("known", "message"),
    [(Given(seen="red"), "seen is a str; give a tensor or an array"),
     (Given(seen=[[0.5, 0.5]]), "seen has shape 1x2; it needs 4 dimensions")],
)  # fmt: skip
def test_a_posterior_of_what_is_no_hint_is_one_sentence(trained, known, message):
    with pytest.raises(InputError, match=message):
        trained.posterior(known, draws=2, steps=1)
    assert rows_of({"seen": 1}) == 1  # so that on_grid can say what it is


def test_a_posterior_takes_nested_lists_and_arrays_of_labels(trained):
    seen = torch.full((2, 3, *trained.spec.size), 0.5)
    of = [Given(seen=part) for part in (seen, seen.tolist(), seen.numpy())]
    labels = ([1, 2], torch.tensor([1, 2]), (1, 2))
    found = [
        trained.posterior(known, 2, label, steps=1).draws
        for known, label in zip(of, labels, strict=True)
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
