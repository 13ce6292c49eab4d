"""A run as a value: read, overridden, checked, saved; every slip of the pen is named."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pointillist.data import EmojiConfig
from pointillist.engine.optim import StepDownConfig
from pointillist.models import DiTConfig, JiTConfig
from pointillist.run import Run, from_dict, preset_names, to_dict
from pointillist.strict_yaml import parse_yaml
from pointillist.tasks import HintsConfig
from pointillist.types import InputError, parse_count
from pointillist.version import FORMAT

PRESETS = preset_names()
SPARSE = ("grid", "perceiver", "sfc", "sfc-unified", "sfc-spatial", "sfc-both", "splat")
# What else is small where width, heads and depth are.
TOY = {"jit": ("model.context_tokens=0", "model.bottleneck=8"), "dit": (),
       "pixeldit": ("model.pixel_width=8", "model.pixel_depth=1"),
       "pixnerd": ("model.decoder_width=8",),
       "perceiver_io": ("model.latents=4", "model.frequencies=4"),
       "mamba": ("model.state=4", "model.frequencies=4"), "local": (),
       "hybrid": ("model.state=4",), "diffit": ("model.time_width=16",),
       "pixelhdm": ("model.kv_heads=1", "model.pixel_depth=1", "model.pixel_width=8"),
       "diffit_flat": ()}  # fmt: skip


@pytest.fixture(scope="session")
def load(tmp_path_factory):
    """A preset by name; one of a field reads a small file in the place of the measured one."""
    path = tmp_path_factory.mktemp("field") / "field.npz"
    axes = {"zaxlevitr": np.linspace(0, 5000, 20), "yaxlevitr": np.linspace(-58, 58, 30),
            "xaxlevitr": 20.5 + 4.0 * np.arange(90)}  # fmt: skip
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    temp = np.cos(mesh[1] / 40) * np.exp(-mesh[0] / 800) + 0.1 * np.sin(mesh[2] / 57.3)
    temp[:, :4, :30] = np.nan
    np.savez(path, temp=temp.astype(np.float32), **{f"temp__{k}": v for k, v in axes.items()})

    def of(name, *more):
        measured = Run.load(name).data.kind == "field"
        return Run.load(name, *((f"data.path={path}",) if measured else ()), *more)

    return of


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_round_trips_and_builds(name, load):
    import torch

    run = load(name)
    assert from_dict(to_dict(run)) == run
    spec = run.promise()
    run.check(spec)
    with torch.device("meta"):
        assert sum(p.numel() for p in run.model.build(spec).parameters()) > 1e5


def test_the_presets_of_the_contract_are_there():
    wanted = {"debug", "emoji-jit", "cifar10-jit", "cifar10-dit"}
    wanted |= {f"imagenet256-{name}" for name in (
        "dit-b", "dit-l", "dit-xl", "jit-b", "jit-l", "jit-h", "jit-g")}  # fmt: skip
    wanted |= {f"imagenet512-jit-{size}" for size in "blh"}
    wanted |= {"emoji-pixeldit", "cifar10-pixeldit", "imagenet512-pixeldit-xl",
               "imagenet256-jit-b-hints"}  # fmt: skip
    wanted |= {f"imagenet256-pixeldit-{size}" for size in ("b", "l", "xl")}
    wanted |= {"imagenet256-pixnerd-l", "imagenet256-pixnerd-xl", "emoji-sfc"}
    wanted |= {"cifar10-diffit", "cifar10-diffit-small", "ffhq64-diffit"}
    wanted |= {"emoji-t2i", "t2i-512", "t2i-1024", "t2i-home"}
    wanted |= {f"cifar10-{name}{size}" for name in SPARSE for size in ("", "-small")}
    assert wanted <= set(PRESETS)
    debug = Run.load("debug").train
    assert debug.images // debug.save_every >= 5


@pytest.mark.parametrize("name", [name for name in PRESETS if name.endswith("-small")])
def test_a_small_preset_has_at_most_two_million_parameters(name):
    from pointillist.describe import describe

    run = Run.load(name)
    facts = describe(run, run.data.promise())
    assert facts["parameters"] <= 2_000_000 and facts["trainable"] == facts["parameters"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sampled_untrained_under_its_own_task(name, load):
    from pointillist.sample import untrained

    model = Run.load(name).model
    heads = ("model.heads=2",) if hasattr(model, "heads") else ()
    run = load(name, "model.width=32", "model.depth=2", *heads, *TOY[model.kind])
    if run.text.encoder != "none":  # which is not at hand; of prompts is tests/test_text_runs.py
        run = from_dict(to_dict(run), ("text.encoder=none", "sample.guidance={}"))
    spec = run.promise()
    where = np.random.default_rng(0).uniform(-1, 1, (9, len(spec.axes))) if spec.placed else None
    latents = spec.code is not None  # whose autoencoder is not at hand
    drawn = untrained(run, spec, "cpu").sample(1, steps=1, where=where, latents=latents)
    size = (9,) if spec.placed else spec.size
    assert drawn.shape == (1, spec.channels, *size) and bool(drawn.isfinite().all())


@pytest.mark.parametrize(
    ("size", "millions"), [("b", 131.1), ("l", 458.8), ("h", 952.4), ("g", 2007.0)]
)
def test_jit_has_its_published_number_of_parameters(size, millions):
    import torch

    run = Run.load(f"imagenet256-jit-{size}")
    with torch.device("meta"):
        model = run.model.build(run.data.promise())
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "giga"), [("b", 25), ("l", 88), ("h", 182), pytest.param("g", 383)]
)
def test_jit_costs_its_published_multiply_accumulates(size, giga):
    from pointillist.describe import describe

    run = Run.load(f"imagenet256-jit-{size}")
    assert describe(run, run.data.promise())["macs"] / 1e9 == pytest.approx(giga, rel=0.02)


@pytest.mark.parametrize(("size", "millions"), [("b", 184.7), ("l", 569.6), ("xl", 797.4)])
def test_pixeldit_has_its_published_number_of_parameters(size, millions):
    import torch

    run = Run.load(f"imagenet256-pixeldit-{size}")
    with torch.device("meta"):
        model = run.model.build(run.data.promise())
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=1e-3)


@pytest.mark.parametrize(("size", "millions", "macs"), [("l", 452.1, None), ("xl", 700.6, 134.05)])
def test_pixnerd_has_its_published_number_of_parameters_and_costs(size, millions, macs):
    from pointillist.describe import describe

    run = Run.load(f"imagenet256-pixnerd-{size}")
    facts = describe(run, run.data.promise())
    assert facts["parameters"] / 1e6 == pytest.approx(millions, rel=1e-3)
    if macs:
        assert facts["macs"] / 1e9 == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize(("attention", "giga"), [("true", 311), ("false", 279)])
def test_pixeldit_xl_costs_its_published_flops(attention, giga):
    from pointillist.describe import describe

    run = Run.load("imagenet256-pixeldit-xl", f"model.pixel_attention={attention}")
    assert describe(run, run.data.promise())["flops"] / 1e9 == pytest.approx(giga, rel=0.02)


def test_overrides_come_last_and_a_kind_empties_its_branch():
    run = Run.load("cifar10-jit", "model.kind=dit", "model.width=64", "model.heads=2",
                   "train.images=10k", "optim.lr=1e-3", "seed=7", "data.kind=emoji")  # fmt: skip
    assert run.model == DiTConfig(width=64, heads=2)
    assert run.train.images == 10_000 and run.optim.lr == 1e-3 and run.seed == 7
    assert run.data == EmojiConfig()
    assert Run.load("cifar10-jit", "model.depth=5").model.depth == 5


def test_a_run_can_be_built_by_hand():
    run = dataclasses.replace(Run.load("debug"), model=JiTConfig(width=32, depth=1, heads=2,
                              context_start=0))  # fmt: skip
    assert from_dict(to_dict(run)) == run


def test_a_saved_run_is_the_run_and_names_what_made_it(tmp_path):
    run = Run.load("emoji-jit")
    run.save(tmp_path / "run.yaml")
    assert Run.load(tmp_path) == Run.load(tmp_path / "run.yaml") == run
    made = yaml.safe_load((tmp_path / "run.yaml").read_text())["made_by"]
    assert made["format"] == FORMAT and "version" in str(made)


@pytest.mark.parametrize(
    ("text", "value"), [("10k", 10_000), ("2M", 2_000_000), ("1e6", 10**6), ("102.4M", 102_400_000),
                        (12, 12), (1e3, 1000)],
)  # fmt: skip
def test_counts_may_be_written_short(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "+1e-3"])
def test_1e_3_in_yaml_is_a_number(text):
    assert parse_yaml(f"a: {text}", "x") == {"a": 1e-3}


BAD = [
    ("model: {kind: jit, dept: 4}", "model.dept is not a field; did you mean depth?"),
    ("modle: {}", "modle is not a field; did you mean model?"),
    ("model: {kind: jit, width: wide}", "model.width is 'wide'"),
    (
        "model: {depth: 4}",
        "model.kind is missing; there are dit, jit, pixeldit, pixeldit_text, pixnerd",
    ),
    (
        "model: {kind: vit}",
        "model.kind is 'vit'; there are dit, jit, pixeldit, pixeldit_text, pixnerd",
    ),
    ("data: {kind: mnist}", "data.kind is 'mnist'; there are emoji, cifar10, folder, zip"),
    ("data: {kind: emoji, size: 48}", "data.size is 48"),
    ("data: {kind: folder, size: big}", "data.size"),
    ("model: {kind: jit, width: 100, heads: 12}", "width 100 is not divisible by model.heads 12"),
    ("model: {kind: dit, depth: 0}", "model.depth is 0"),
    ("model: {kind: dit, depth: true}", "model.depth is true"),
    ("optim: {lr: .nan}", "optim.lr is nan"),
    ("optim: {lr: .inf}", "optim.lr is inf"),
    ("optim: {lr: -1}", "optim.lr is -1"),
    ("optim: {momentum: 1, hidden: muon}", "optim.momentum is 1.*; it lies in"),
    ("optim: {momentum: 0.9}", "optim.momentum is 0.9, but optim.hidden is adamw"),
    ("optim: {step_down: {at: 100, factor: 0}}", "optim.step_down.factor is 0.*; it lies in"),
    ("optim: {step_down: {at: 100, clip: -1}}", "optim.step_down.clip is -1.*; it must be 0 or"),
    ("optim: {step_down: {clip: 0.5}}", "optim.step_down.clip is 0.5, but .*at is 0"),
    ("optim: {step_down: {factor: 0.5}}", "optim.step_down.factor is 0.5, but .*at is 0"),
    ("optim: {step_down: {at: 10k}, warmup: 20k}", "step_down.at is 10000, but optim.warmup lasts"),
    ("optim: {step_down: {at: 9, factor: 1}}", "so nothing changes; .* optim.step_down={}"),
    (
        "{optim: {step_down: {at: 1M}, schedule: cosine}, train: {images: 1M}}",
        "step_down.at is 1000000, but the cosine ends .*, 1000000; .*optim.step_down=",
    ),
    ("train: {images: 0}", "train.images is 0"),
    ("train: {images: .inf}", "train.images is inf"),
    ("train: {images: 1e999}", "train.images is inf"),
    ("sample: {guidance: {interval: [false, 1]}}", "sample.guidance.interval.0 is false"),
    ("objective: {time: {kind: uniform, mean: 1}}", "^objective.time.mean is not a field"),
    ("objective: {time: {kind: logit_normal, std: wide}}", "^objective.time.std is 'wide'"),
    ("sample: {guidance: {scale: .nan}}", "sample.guidance.scale is nan"),
    ("model: {kind: dit, mlp_ratio: -1}", "model.mlp_ratio is -1"),
    ("model: {kind: dit, max_period: 0}", "model.max_period is 0"),
    ("model: {kind: jit, theta: 0}", "model.theta is 0"),
    ("model: {kind: jit, context_tokens: -1}", "model.context_tokens is -1"),
    ("train: {batch: 1.5}", "train.batch is 1.5"),
    ("train: {ema: []}", "train.ema"),
    ("train: {ema: [0.9, 0.9]}", "stands there twice"),
    ("train: {track: [wandb, wandb]}", "train.track is .*; a tracker stands there twice"),
    ("train: {track: [mlflow]}", "train.track.0 is 'mlflow'"),
    ("train: {precision: fp8}", "train.precision is 'fp8'"),
    ("sample: {sampler: dmp}", "sampler dmp is not known; there are euler"),
    ("sample: {steps: 0}", "sample.steps is 0"),
    ("sample: {guidance: {interval: [1, 0]}}", "guidance.interval"),
    ("task: {kind: generate, label_drop: 2}", "task.label_drop is 2"),
    (
        "task: {label_drop: 0.1}",
        "task.kind is missing; there are generate, hints, scatter, inpaint, upscale, mixture",
    ),
    ("task: {kind: hints, share: 2}", "task.share is 2"),
    ("task: {kind: hints, share: [0.5, 0.2]}", "task.share is .* a range rises"),
    ("task: {kind: hints, share: 0}", "use task.kind=generate"),
    ("task: {kind: hints, absent: -1}", "task.absent is -1"),
    ("task: {kind: hints, weight: -1}", "task.weight is -1"),
    ("task: {kind: hints, weight: 0, share: [0, 1]}", "nothing would be learnt"),
    ("model: {kind: pixeldit, compaction: 3}", "model.compaction is 3; it must divide"),
    ("model: {kind: pixeldit, compaction: 4, pixel_attention: false}", "pixel_attention is false"),
    ("model: {kind: pixeldit, pixel_depth: 0}", "model.pixel_depth is 0"),
    ("model: {kind: pixeldit, rope_span: -1}", "model.rope_span is -1"),
    ("model: {kind: pixeldit, context_tokens: 2, context_start: 12}", "model.context_start is 12"),
    ("model: {kind: pixeldit, modulation: row}", "model.modulation is 'row'"),
    ("model: {kind: pixnerd, decoder_ratio: 0}", "model.decoder_ratio is 0"),
    ("model: {kind: pixnerd, bands: 1}", "model.bands is 1"),
    ("model: {kind: pixnerd, scales: []}", r"model.scales is .*; give 1, at which"),
    ("model: {kind: pixnerd, position_span: -1}", "model.position_span is -1"),
    ("model: {kind: pixnerd, mlp_ratio: 0.001}", "leaves no hidden unit of width 1024"),
    ("device: tpu", "device is 'tpu'"),
    ("seed: -1", "seed is -1"),
    ("objective: {predict: y}", "objective.predict is 'y'"),
    ("model: null", "model"),
    ("seed: 1\nseed: 2", "line 2: key seed stands there twice"),
    ("a: &a [1]\nb: *a", "line 2: aliases are not read"),
    ("a: [1", "line [12] is not valid YAML"),
    ("[1, 2]", "holds a list; a configuration is a mapping"),
    ("? [a, b]\n: 1", "not valid YAML|is not a field|mapping"),
    ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
    (f"made_by: {{format: {FORMAT + 1}}}", "update pointillist"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[text[:40] for text, _ in BAD])
def test_a_slip_of_the_pen_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Run.load(path)
    assert "\n" not in str(caught.value)


def test_exploding_aliases_cost_nothing(tmp_path):
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    (tmp_path / "bomb.yaml").write_text("\n".join(levels))
    with pytest.raises(InputError, match="aliases"):
        Run.load(tmp_path / "bomb.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 100_000)
    with pytest.raises(InputError, match="not valid YAML"):
        Run.load(tmp_path / "deep.yaml")
    (tmp_path / "large.yaml").write_text("# " + "x" * (1 << 20))
    with pytest.raises(InputError, match="at most 1 MiB"):
        Run.load(tmp_path / "large.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        Run.load(tmp_path / "binary.yaml")


@given(text=st.text(max_size=60))
def test_no_text_makes_the_reader_fail_otherwise(text):
    try:
        parse_yaml(text, "x")
    except InputError as error:
        assert str(error).startswith("x")


@pytest.mark.parametrize(
    ("override", "message"),
    [("model.dept=4", "model.dept is not a field; did you mean depth?"),
     ("modle.depth=4", "modle is not a field; did you mean model?"),
     ("model.depth", "is not of the form key=value"),
     ("model.depth.x=1", "model.depth.x is not a field"),
     ("model.kind=vit", "model.kind"), ("train.batch=many", "train.batch is 'many'"),
     ("model.depth=", "model.depth is ''"), ("model.depth=[1", "not valid YAML")],
)  # fmt: skip
def test_a_wrong_override_is_one_sentence(override, message):
    with pytest.raises(InputError, match=message):
        Run.load("debug", override)


def test_an_unknown_source_names_the_nearest_preset():
    with pytest.raises(InputError, match="did you mean cifar10-jit"):
        Run.load("cifar10-jti")
    with pytest.raises(InputError, match="pointillist presets"):
        Run.load("qqq")


SIGMA = ("model.kind=dit", "model.learn_sigma=true", "model.time_scale=1", "objective.kind=ddpm",
         "sample.guidance.scale=1")  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("task.label_drop=0", "sample.guidance.scale=2"), "no unlabelled answer is ever learnt"),
     (("model.kind=dit", "model.learn_sigma=true"),
      "objective.kind is straight, on which no step has a variance; set objective.kind=ddpm"),
     ((*SIGMA, "model.time_scale=1000"), "which tells the network the index of a step itself"),
     ((*SIGMA, "loss.vlb=0"), "loss.vlb is 0, so nothing would train the sigma"),
     ((*SIGMA, "objective.noise_length=0.1"), "objective.noise_length is 0.1, but the sigma"),
     ((*SIGMA, "model.learn_sigma=false", "loss.vlb=2"), "loss.vlb is 2, but model dit learns no"),
     (("sample.grid=respaced",), "grid is respaced, but path straight has no whole steps"),
     ((*SIGMA, "sample.grid=respaced", "sample.steps=1001"), "steps is 1001, but grid respaced"),
     (("sample.guidance.scale=2", "sample.guidance.channels=4"), "guidance.channels is 4, but the"),
     (("sample.guidance.scale=1", "sample.guidance.channels=2"), "guidance.channels is set, but")],
)  # fmt: skip
def test_contradictions_are_found_before_anything_is_computed(overrides, message):
    run = Run.load("debug", *overrides)
    with pytest.raises(InputError, match=message):
        run.check(run.data.promise())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(("model.encoder.kind=grid",), "nothing is ever observed"),
     (("task.kind=hints",), "model.encoder.kind is none"),
     (("task.kind=hints", "model={kind: diffit}"), "model diffit has no encoder.*generate"),
     (("task.kind=scatter", "model.encoder.kind=splat", "objective.predict=velocity"),
      "model.encoder.residual is true, but objective.predict is velocity"),
     (("task.kind=hints", "model.encoder.kind=grid", "task.absent=1"), "task.absent is 1"),
     (("task.kind=hints", "model.encoder.kind=grid", "task.share=0"), "task.share is 0")],
)  # fmt: skip
def test_hints_that_contradict_the_model_are_found_while_loading(overrides, message):
    with pytest.raises(InputError, match=message):
        Run.load("debug", *overrides)
    run = Run(task=HintsConfig())
    with pytest.raises(InputError, match="model.encoder.kind is none"):
        run.check(run.data.promise())


def test_guidance_needs_classes(tmp_path):
    run = Run.load("debug", "data.kind=folder", f"data.path={tmp_path}", "sample.guidance.scale=2")
    with pytest.raises(InputError, match="the data have no classes"):
        run.check(run.data._spec((), False))


def test_no_preset_names_a_path_of_one_machine():
    import pointillist

    for path in (Path(pointillist.__file__).parent / "presets").glob("*.yaml"):
        assert "/home" not in path.read_text() and "path: /" not in path.read_text()


@pytest.mark.parametrize("overrides", [("optim.step_down.at=0",), ("optim.warmup=300M",)])
def test_a_presets_step_down_is_taken_away_as_the_message_says(overrides):
    with pytest.raises(InputError, match=r"optim\.step_down={}") as caught:
        Run.load("imagenet256-pixeldit-b", *overrides)
    assert "leave out" not in str(caught.value)  # it stands in the preset
    kept = [one for one in overrides if "step_down" not in one]
    run = Run.load("imagenet256-pixeldit-b", "optim.step_down={}", *kept)
    assert run.optim.step_down == StepDownConfig()


def test_a_preset_made_short_may_be_made_long_again():
    short = Run.load("imagenet256-pixeldit-b", "train.images=10k")  # a resume may go on to its end
    assert short.optim.step_down.at > short.train.images
    with pytest.raises(InputError, match="the cosine ends at train.images, 10000"):
        Run.load("imagenet256-pixeldit-b", "train.images=10k", "optim.schedule=cosine")


def test_a_whole_branch_is_filled_up_before_a_field_in_it_is_set():
    run = Run.load("debug", "loss.frequency={weight: 1}", "loss.frequency.colour=none")
    assert run.loss.frequency.weight == 1 and run.loss.frequency.colour == "none"
