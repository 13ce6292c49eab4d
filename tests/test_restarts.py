"""The course of a rate that restarts."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pointillist as pt
from pointillist.engine.optim import OptimConfig, StepDownConfig, learning_rate
from pointillist.engine.restarts import RestartsConfig
from pointillist.run import Run
from pointillist.types import InputError

PIXELHDM = OptimConfig(
    lr=1e-4, warmup=500, schedule="restarts", restarts=RestartsConfig(cycle=1000)
)
courses = st.builds(
    RestartsConfig, cycle=st.integers(1, 50), valley=st.floats(0, 1), decay=st.floats(0, 1),
    floor=st.floats(0, 1),
)  # fmt: skip


def rate(images: int, optim: OptimConfig = PIXELHDM) -> float:
    return learning_rate(optim, images, 10**9)


def test_the_published_course_has_its_known_values():
    assert rate(250) == pytest.approx(0.5e-4) and rate(500) == pytest.approx(1e-4)
    assert rate(1000) == pytest.approx(0.75e-4)  # half-way between peak and valley
    assert rate(1499) == pytest.approx(0.5e-4, rel=1e-4)
    assert rate(1500) == pytest.approx(0.9e-4) and rate(2000) == pytest.approx(0.675e-4)
    assert rate(3500) == pytest.approx(0.9**3 * 1e-4)
    assert rate(500 + 16_000) == pytest.approx(0.9**16 * 1e-4)  # 1.85e-5, whose half is too low
    assert rate(500 + 16_999) == pytest.approx(1e-5, rel=1e-4)
    assert rate(500 + 40_000) == rate(500 + 40_700) == pytest.approx(1e-5)


@settings(max_examples=200, deadline=None)
@given(courses)
def test_it_falls_within_a_cycle_between_peak_and_valley_without_a_jump(course):
    for number in range(4):
        peak = max(course.decay**number, course.floor)
        valley = max(course.valley * peak, course.floor)
        shares = [course.share(number * course.cycle + i) for i in range(course.cycle)]
        assert shares[0] == pytest.approx(peak) and max(shares) <= peak * (1 + 1e-12)
        assert min(shares) >= valley * (1 - 1e-12) and course.floor * (1 - 1e-12) <= min(shares)
        # The steepest part of half a cosine falls by pi/2 of its height in a cycle.
        steepest = 1.6 * (peak - valley) / course.cycle + 1e-12
        for one, next_one in itertools.pairwise(shares):
            assert one - steepest <= next_one <= one * (1 + 1e-12)
        # The end meets the valley as the cosine does: flat.
        assert shares[-1] - valley <= (peak - valley) * 2.5 / course.cycle**2 + 1e-12 or (
            course.cycle == 1
        )


def test_it_begins_where_the_warm_up_ends_and_a_step_down_lowers_all_of_it():
    assert rate(499) == pytest.approx(rate(500), rel=0.01)
    down = OptimConfig(
        lr=1e-4, warmup=500, schedule="restarts", restarts=RestartsConfig(cycle=1000),
        step_down=StepDownConfig(at=1200, factor=0.5),
    )  # fmt: skip
    assert rate(1200, down) == rate(1200) and rate(1201, down) == rate(1201) / 2


def test_the_length_of_the_run_is_no_part_of_it_so_it_may_be_made_longer(tmp_path):
    toy = ("model.width=16", "model.depth=2", "model.heads=2", "model.patch_size=8",
           "train.batch=8", "train.save_every=16", "train.log_every=8", "train.grid=0",
           "train.validate=0", "optim.warmup=8", "optim.schedule=restarts")  # fmt: skip
    run = Run.load("debug", *toy, "train.images=32", "optim.restarts.cycle=16")
    rates: list[float] = []

    def watch(event):
        if event["event"] == "step":
            rates.append(event["lr"])

    pt.train(run, tmp_path, report=watch)
    longer = Run.load("debug", *toy, "train.images=48", "optim.restarts.cycle=16")
    pt.train(longer, tmp_path, resume=True, report=watch)
    lr = run.optim.lr
    assert rates == pytest.approx([lr * s for s in (1, 0.75, 0.9, 0.675, 0.81, 0.6075)])
    other = Run.load("debug", *toy, "train.images=48", "optim.restarts.cycle=24")
    with pytest.raises(InputError, match="optim.restarts.cycle is 24, but the run in .* has 16"):
        pt.train(other, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"schedule": "restarts"}, "optim.restarts.cycle is 0; set it to a number of images"),
        ({"restarts": RestartsConfig(cycle=9)}, "optim.restarts is set, but optim.schedule is con"),
        (
            {"schedule": "restarts", "restarts": RestartsConfig(cycle=9), "final": 0.1},
            "optim.final is 0.1, but optim.schedule is restarts",
        ),
    ],
)
def test_contradictions_are_refused(fields, told):
    with pytest.raises(InputError, match=told):
        OptimConfig(**fields)


@pytest.mark.parametrize("name", ["valley", "decay", "floor"])
def test_shares_are_shares(name):
    with pytest.raises(InputError, match=rf"optim.restarts.{name} is 1.5; it lies in \[0, 1\]"):
        RestartsConfig(cycle=1, **{name: 1.5})
    with pytest.raises(InputError, match="optim.restarts.cycle is -1"):
        RestartsConfig(cycle=-1)
