"""Published checkpoints: what is read off them, and what does not fit."""

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import pointillist as pt
from pointillist import cli
from pointillist.convert import configure, convert
from pointillist.foreign import Foreign
from pointillist.guidance import GuidanceConfig
from pointillist.layers.embed import sincos
from pointillist.models import DiffiTFlatConfig, DiTConfig, JiTConfig, pixelhdm_weights
from pointillist.objective import DDPMConfig, StraightConfig
from pointillist.published import FAMILIES, bare, expand
from pointillist.run import Run, preset_names
from pointillist.types import Given, InputError, Spec, Words, grid_axes

from .test_parity import FOLDER, Case

JIT = JiTConfig(width=32, depth=3, heads=2, patch_size=4, bottleneck=8, mlp_ratio=3.0,
                context_tokens=2, context_start=1)  # fmt: skip
DIT = DiTConfig(width=24, depth=2, heads=2, patch_size=2, time_scale=1.0, learn_sigma=True)
DIFFIT = DiffiTFlatConfig(width=24, depth=2, heads=2, patch_size=2, time_scale=1.0,
                          learn_sigma=True)  # fmt: skip
START = "model.context_start=1"
OF_KIND = {family.kind or name: name for name, family in FAMILIES.items()}


def spec_of(size: int, channels: int = 3, classes: int = 5) -> Spec:
    names = tuple(str(i) for i in range(classes))
    return Spec(channels=channels, axes=grid_axes((size, size)), classes=names)


def make(config, spec, seed=0):
    """A network without a zero in it."""
    torch.manual_seed(seed)
    model = config.build(spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.05)
    return model


def publish(model) -> dict[str, torch.Tensor]:
    """The weights under the published names and in the published shapes."""
    family, p = FAMILIES[OF_KIND[model.config.kind]], model.config.patch_size
    ours, state = dict(model.named_parameters()), {}
    for template in (*family.names, *family.optional):
        for i in range(model.config.depth if "*" in template else 1):
            name = template.replace("*", str(i))
            if name == "pos_embed":
                state[name] = sincos(model.trained, model.trained, model.config.width)[None]
                continue
            ours_name = next(iter(family.rename({name: torch.zeros(1, 1, 1, 1)})))
            if ours_name not in ours:
                continue
            value = ours[ours_name].detach()
            if name in ("x_embedder.proj1.weight", "x_embedder.proj.weight"):
                value = value.unflatten(1, (-1, p, p))
            if name == "x_embedder.proj2.weight":
                value = value[..., None, None]
            state[name] = (value[None] if name == "in_context_posemb" else value).clone()
    return state


def publish_shapes(run, channels=3) -> dict[str, torch.Tensor]:
    """PixelDiT's published names and shapes; its rows lie in another order than ours."""
    c = run.model
    d, e, p = c.width, c.pixel_width, c.patch_size**2
    hidden, parts = int(int(d * c.mlp_ratio) * 2 / 3), 4 if c.post_modulation else 6
    shapes = {"s_embedder.proj": (d, channels * p), "t_embedder.mlp.0": (d, 256),
              "t_embedder.mlp.2": (d, d), "pixel_embedder.proj": (e, channels),
              "y_embedder.embedding_table": (run.data.classes + 1, d),
              "final_layer.norm": (e,), "final_layer.linear": (channels, e)}  # fmt: skip
    for stem, blocks, w, rows in (("patch_blocks", c.depth, d, 6 * d),
                                  ("pixel_blocks", c.pixel_depth, e, parts * p * e)):  # fmt: skip
        for i in range(blocks):
            of = {"norm1": (w,), "norm2": (w,), "attn.qkv": (3 * d, d), "attn.proj": (d, d),
                  "attn.q_norm": (d // c.heads,), "attn.k_norm": (d // c.heads,),
                  "adaLN_modulation.0": (rows, d)}  # fmt: skip
            of |= {"mlp.w1": (hidden, d), "mlp.w3": (hidden, d), "mlp.w2": (d, hidden)} \
                if stem == "patch_blocks" else \
                {"mlp.fc1": (4 * e, e), "mlp.fc2": (e, 4 * e), "compress_to_attn": (d, p * e),
                 "expand_from_attn": (p * e, d)}  # fmt: skip
            shapes |= {f"{stem}.{i}.{name}": size for name, size in of.items()}
    known = set(
        expand(FAMILIES["pixeldit"].names, {f"{name}.weight": torch.zeros(1) for name in shapes})
    )
    state = {f"{name}.weight": torch.randn(size) * 0.05 for name, size in shapes.items()}
    biases = {f"{name}.bias": torch.randn(size[:1]) * 0.05 for name, size in shapes.items()}
    return state | {name: value for name, value in biases.items() if name in known}


def publish_fields(run, channels=3) -> dict[str, torch.Tensor]:
    """PixNerd's published names and shapes, its two kinds of blocks numbered in one row."""
    c = run.model
    d, e, p = c.width, c.decoder_width, c.patch_size**2
    shapes = {"s_embedder.proj": (d, channels * p), "t_embedder.mlp.0": (d, 256),
              "t_embedder.mlp.2": (d, d), "x_embedder.embedder.0": (e, channels + c.bands**2),
              "y_embedder.embedding_table": (run.data.classes + 1, d),
              "final_layer.norm": (e,), "final_layer.linear": (channels, e)}  # fmt: skip
    for i in range(c.depth):
        of = {"norm1": (d,), "norm2": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d),
              "attn.q_norm": (d // c.heads,), "attn.k_norm": (d // c.heads,),
              "adaLN_modulation.0": (6 * d, d), "mlp.w1": (c.hidden, d), "mlp.w3": (c.hidden, d),
              "mlp.w2": (d, c.hidden)}  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": size for name, size in of.items()}
    for i in range(c.depth, c.depth + c.decoder_depth):
        shapes |= {f"blocks.{i}.norm": (e,),
                   f"blocks.{i}.param_generator1.0": (2 * c.decoder_ratio * e**2, d)}  # fmt: skip
    biased = ("_embedder.proj", "mlp.0", "mlp.2", "embedder.0", "attn.proj", "adaLN_modulation.0",
              "param_generator1.0", "layer.linear")  # fmt: skip
    state = {f"{name}.weight": torch.randn(size) * 0.05 for name, size in shapes.items()}
    return state | {f"{name}.bias": torch.randn(size[:1]) * 0.05
                    for name, size in shapes.items() if name.endswith(biased)}  # fmt: skip


def answer(model, spec):
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(2, spec.channels, *spec.size, generator=draw)
    with torch.no_grad():
        return model(x, torch.tensor([0.2, 0.9]), Given(label=torch.tensor([1, -1]))).value


@pytest.fixture
def jit():
    return make(JIT, spec_of(16))


FORMS = {
    "plain": lambda state: state,
    "denoiser": lambda state: {f"net.{name}": value for name, value in state.items()},
    "parallel": lambda state: {"model": {f"module.{n}": value for n, value in state.items()}},
    "compiled": lambda state: {"model": {f"_orig_mod.net.{n}": v for n, v in state.items()}},
    "lightning": lambda state: {
        "state_dict": {**{f"denoiser.{n}": v for n, v in state.items()}, "vae.weight": state},
        "epoch": 3,
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_converted_is_the_network(jit, tmp_path, form):
    torch.save(FORMS[form](publish(jit)), tmp_path / "a.pth")
    made = convert("jit", tmp_path / "a.pth", tmp_path / "run", (START,))
    assert made.parameters == sum(p.numel() for p in jit.parameters()) and made.ema == (0.0,)
    trained = pt.load(tmp_path / "run")
    assert trained.run.model == JIT and trained.spec.size == (16, 16)
    assert torch.equal(answer(trained.model, jit.spec), answer(jit, jit.spec))
    assert trained.sample(2, label=0, steps=1).isfinite().all()


def test_safetensors_and_half_precision_become_float32(jit, tmp_path):
    halved = {name: value.bfloat16() for name, value in publish(jit).items()}
    save_file(halved, tmp_path / "a.safetensors")
    convert("jit", tmp_path / "a.safetensors", tmp_path / "run", (START,))
    for name, value in pt.load(tmp_path / "run").model.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, dict(jit.named_parameters())[name].bfloat16().float()), name


def test_a_training_checkpoint_brings_its_averages_and_its_noise(jit, tmp_path):
    other, third = make(JIT, spec_of(16), 1), make(JIT, spec_of(16), 2)
    averages = {name: torch.nn.Parameter(value) for name, value in publish(other).items()}
    arguments = argparse.Namespace(ema_decay1=0.999, ema_decay2=0.99, noise_scale=2.0, t_eps=0.1,
                                   P_mean=-0.5, P_std=1, lr=None, model="JiT")  # fmt: skip
    torch.save({"model": publish(jit), "model_ema1": averages, "model_ema2": publish(third),
                "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}, "epoch": 7,
                "args": arguments}, tmp_path / "checkpoint-last.pth")  # fmt: skip
    convert("jit", tmp_path / "checkpoint-last.pth", tmp_path / "run", (START,))
    for ema, model in ((None, other), (0.999, other), (0.99, third), (0.0, jit)):
        found = pt.load(tmp_path / "run", ema=ema)
        assert torch.equal(answer(found.model, jit.spec), answer(model, jit.spec))
    objective = found.run.objective
    assert found.run.train.ema == (0.999, 0.99) and objective.noise_strength((16, 16)) == 2.0
    assert objective.sampling_clamp == 0.1 and objective.time.mean == -0.5


def test_dit_with_a_sigma_is_sampled_as_it_was_trained(tmp_path, monkeypatch, capsys):
    spec = spec_of(8, channels=4)
    model = make(DIT, spec)
    state = publish(model)
    torch.save({"ema": state, "opt": {}, "args": argparse.Namespace()}, tmp_path / "a.pt")
    made = convert("dit", tmp_path / "a.pt", tmp_path / "run", ("model.heads=2",))
    trained = pt.load(tmp_path / "run")
    assert made.ema == (0.9999,) and trained.spec.channels == 4 and trained.run.model == DIT
    assert torch.equal(answer(trained.model, spec), answer(model, spec))
    run = trained.run
    assert run.objective == DDPMConfig() and run.sample.guidance == GuidanceConfig()
    assert (run.loss.velocity, run.loss.eps, run.loss.vlb) == (0, 1, 1)
    assert (run.sample.sampler, run.sample.steps, run.sample.grid) == ("ddpm", 250, "respaced")
    run.check(trained.spec)
    found = trained.sample(2, label=0, steps=3)
    assert found.shape == (2, 4, 8, 8) and found.isfinite().all()
    # What the network says of the variance is in the samples: without it they are others.
    with torch.no_grad():
        trained.model.head.weight.unflatten(0, (2, 2, 8))[..., 4:, :] = 0
        trained.model.head.bias.unflatten(0, (2, 2, 8))[..., 4:] = 0
    assert (trained.sample(2, label=0, steps=3) - found).abs().max() > 1e-3
    told = []
    trained.sample(1, label=0, steps=3, watch=lambda i, t, x, pair: told.append((t, pair.fraction)))
    assert [t for t, _ in told] == pytest.approx([0, 0.499, 0.999])
    assert all((v == 0.5).all() for _, v in told)
    drawn = ["sample", str(tmp_path / "run"), "--count", "1", "--steps", "2", "--guidance", "2"]
    monkeypatch.setattr(
        sys, "argv", ["pointillist", *drawn, "sample.guidance.channels=3", "--out",
                      str(tmp_path / "a.png"), "--json"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and (tmp_path / "a.png").exists()
    assert json.loads(capsys.readouterr().out)["nfe"] == 4
    monkeypatch.setattr(sys, "argv", ["pointillist", "show", str(tmp_path / "run"), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["parameters"] == made.parameters


def test_heads_that_no_weight_shows_are_those_of_the_published_widths(tmp_path):
    model = make(DiTConfig(width=384, depth=1, heads=6, patch_size=4, time_scale=1.0), spec_of(8))
    torch.save(publish(model), tmp_path / "a.pt")
    convert("dit", tmp_path / "a.pt", tmp_path / "run")
    assert pt.load(tmp_path / "run").run.model == model.config


def test_diffit_comes_with_what_is_no_weight(tmp_path):
    """The flat network: heads and size are read off the table of biases, whose index is dropped."""
    spec = spec_of(8, channels=4)
    model = make(DIFFIT, spec)
    state, path = publish(model), tmp_path / "a.pt"
    assert state["blocks.1.attn.relative_position_bias_table"].shape == (49, 2)
    index = {f"blocks.{i}.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.long)
             for i in range(2)}  # fmt: skip
    torch.save(state | index, path)
    made = convert("diffit", path, tmp_path / "run")
    trained = pt.load(tmp_path / "run")
    assert made.preset is None and trained.run.model == DIFFIT and trained.spec.size == (8, 8)
    assert made.parameters == sum(p.numel() for p in model.parameters())
    assert torch.equal(answer(trained.model, spec), answer(model, spec))
    bare_state = {name: value for name, value in state.items() if name != "pos_embed"}
    torch.save(bare_state, path)
    convert("diffit", path, tmp_path / "placeless")
    assert pt.load(tmp_path / "placeless").spec.size == (8, 8)
    torch.save(state | {"blocks.0.attn.relative_position_bias_table": torch.ones(48, 2)}, path)
    other = tmp_path / "other"
    with pytest.raises(InputError, match="bias_table has 48 offsets, which are not those of a"):
        convert("diffit", path, other)
    torch.save(state | {"blocks.0.attn.relative_position_bias_table": torch.ones(25, 2)}, path)
    with pytest.raises(InputError, match="bias_table has 25 offsets, which are not those of a"):
        convert("diffit", path, other)
    assert not other.exists()


SHAPES = {"pixeldit": publish_shapes, "pixnerd": publish_fields}
# Weights do not tell which latents they are of, so a preset of those is not found by its size.
PUBLISHED = [name for name in preset_names()
             if "imagenet" in name and not {"hints", "diffit"} & set(name.split("-"))]  # fmt: skip


@pytest.mark.parametrize("preset", PUBLISHED)
def test_a_known_size_takes_its_presets_settings(preset):
    run = Run.load(preset)
    with torch.device("meta"):
        state = (
            SHAPES[run.model.kind](run)
            if run.model.kind in SHAPES
            else publish(run.model.build(run.data.promise()))
        )
    state.pop("pos_embed", None)  # holds no number here
    family = FAMILIES[OF_KIND[run.model.kind]]
    seen = family.read(bare(family, state), Path("a.pth"))
    found, name = configure(
        OF_KIND[run.model.kind],
        family,
        seen,
        Foreign([], {}),
        run.train.ema,
        (f"data.size={run.data.size}",),
        Path("a.pth"),
    )
    assert name == preset and found.sample == run.sample and found.objective == run.objective
    assert found.data == run.data and found.train == run.train
    timed = {"model.time_scale=1"} if run.model.kind in ("dit", "diffit_flat") else set()
    assert found.model == Run.load(preset, *timed).model


def test_a_command_writes_a_run_that_a_command_samples(jit, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(publish(jit), "a.pth")
    for words in (("convert", "jit", "a.pth", "--out", "runs/a", START, "--json"),
                  ("sample", "runs/a", "--count", "2", "--steps", "1", "--out", "a.png"),
                  ("show", "runs/a")):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["pointillist", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    assert json.loads(capsys.readouterr().out.splitlines()[0])["ema"] == [0.0]
    monkeypatch.setattr(sys, "argv", ["pointillist", "convert", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"Of models: {', '.join(FAMILIES)}." in told
    event = json.loads(Path("runs/a/log.jsonl").read_text())
    assert event["event"] == "converted" and event["file"] == "a.pth"
    assert Path("a.png").exists() and Path("runs/a/checkpoints/000000000/state.json").exists()


def test_a_lightning_file_of_pixeldit_brings_its_average(tmp_path):
    size = ("model.width=32", "model.heads=2", "model.depth=2", "model.patch_size=4",
            "model.pixel_width=8", "data.size=16", "data.classes=5")  # fmt: skip
    run = Run.load("imagenet256-pixeldit-b", *size)
    state, path = publish_shapes(run), tmp_path / "a.ckpt"
    torch.save({"state_dict": {**{f"denoiser.{n}": v for n, v in state.items()},
                               **{f"ema_denoiser.{n}": v + 0 for n, v in state.items()}},
                "global_step": 5}, path)  # fmt: skip
    refused(path, "give it as data.size=", family="pixeldit")
    assert convert("pixeldit", path, tmp_path / "run", ("data.size=16",)).ema == (0.9999,)
    trained = pt.load(tmp_path / "run")
    assert trained.run.model == run.model and trained.run.sample.guidance.scale == 1
    assert trained.sample(2, label=0, steps=1).isfinite().all()
    state["pixel_blocks.1.adaLN_modulation.0.weight"] = torch.ones(9, 32)
    torch.save(state, path)
    out = tmp_path / "other"
    with pytest.raises(InputError, match="its weights do not fit together"):
        convert("pixeldit", path, out, ("data.size=16",))
    assert not out.exists()


def test_one_network_at_two_sizes_is_asked_for_its_size():
    run = Run.load("imagenet512-pixeldit-xl")
    with torch.device("meta"):
        state = publish_shapes(run)
    family = FAMILIES["pixeldit"]
    seen = family.read(state, Path("a.ckpt"))
    with pytest.raises(InputError, match="imagenet256-pixeldit-xl and imagenet512-pixeldit-xl"):
        configure("pixeldit", family, seen, Foreign([], {}), (0.0,), (), Path("a.ckpt"))


# Refusals.


def refused(path: Path, message: str, *overrides: str, family: str = "jit") -> None:
    """One sentence, and nothing left behind."""
    out = path.parent / "run"
    with pytest.raises(InputError, match=message) as caught:
        convert(family, path, out, overrides)
    assert "\n" not in str(caught.value) and str(path.name) in str(caught.value) + path.name
    assert not out.exists() and not list(path.parent.glob(".run*"))


def test_what_weights_do_not_say_is_asked_for(jit, tmp_path):
    path, state = tmp_path / "a.pth", publish(jit)
    torch.save(state, path)
    refused(path, r"give it as model.context_start= \(the block .* JiT-B 4, L 8, H and G 10\)")
    torch.save({name: value for name, value in state.items() if name != "pos_embed"}, path)
    refused(path, "does not tell the size of its pictures; give it as data.size=256", START)
    convert("jit", path, tmp_path / "sized", (START, "data.size=24"))
    assert pt.load(tmp_path / "sized").spec.size == (24, 24)
    torch.save(publish(make(DIT, spec_of(8, 4))), path)
    refused(path, r"give it as model.heads= \(the number of attention heads", family="dit")


@pytest.mark.parametrize(
    ("override", "message"),
    [("model.width=64", r"weight blocks.0.attention.k_norm.weight has shape \(16,\), .* \(32,\)"),
     ("model.depth=4", r"weight blocks.3.attention.k_norm.weight is missing, .* for \(16,\)"),
     ("model.context_tokens=0", r"weight token_place has shape \(2, 32\), .* nothing of that name"),
     ("data.size=32", r"weight pos_embed has shape \(1, 16, 32\), .* \(1, 64, 32\)"),
     ("data.classes=9", r"weight label.table.weight has shape \(6, 32\), .* \(10, 32\)"),
     ("train.ema=[0.5]", r"train.ema is \(0.5,\), but .* holds 0"),
     ("model.dept=4", "model.dept is not a field"), ("data.size=30", "no multiple of the patch")],
)  # fmt: skip
def test_an_override_that_the_weights_belie_is_refused(jit, tmp_path, override, message):
    torch.save(publish(jit), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message, START, override)


def test_a_kind_that_is_not_the_familys_is_refused(tmp_path):
    torch.save(publish(make(JiTConfig(**_fields(JIT) | {"context_tokens": 0}), spec_of(16))),
               tmp_path / "a.pth")  # fmt: skip
    refused(tmp_path / "a.pth", "model.kind is dit, but a jit checkpoint", "model.kind=dit")


def test_learnt_places_and_unequal_sets_are_refused(jit, tmp_path):
    path, state = tmp_path / "a.pth", publish(jit)
    torch.save(state | {"pos_embed": torch.randn(1, 16, 32)}, path)
    refused(path, "pos_embed differs by .* learnt places are not built", START)
    torch.save(state | {"pos_embed": torch.zeros(1, 15, 32)}, path)
    refused(path, "15 places, which are no square", START)
    torch.save(state | {"in_context_posemb": torch.zeros(2, 32)}, path)
    refused(path, r"in_context_posemb has shape \(2, 32\), published ones have 3 axes", START)
    wider = publish(make(JiTConfig(**_fields(JIT) | {"width": 64}), spec_of(16)))
    torch.save({"model": state, "model_ema1": wider}, path)
    refused(path, "the first set of weights has", START)
    fewer = {name: value for name, value in state.items() if name != "in_context_posemb"}
    torch.save({"model": state, "model_ema1": fewer}, path)
    refused(path, "weight in_context_posemb is missing, the first set", START)
    torch.save({"model": fewer, "model_ema1": state}, path)
    refused(path, r"in_context_posemb has shape \(1, 2, 32\), .* nothing of that name", START)
    torch.save(state | {"two\nlines": torch.ones(1)}, path)
    refused(path, r"two\\nlines is not one of its names", START)


def _fields(config) -> dict:
    return {name: getattr(config, name) for name in type(config).__dataclass_fields__}


def test_a_converted_run_is_not_resumed(jit, tmp_path, monkeypatch):
    torch.save(publish(jit), tmp_path / "a.pth")
    convert("jit", tmp_path / "a.pth", tmp_path / "run", (START,))
    (tmp_path / "run" / "run.yaml").unlink()
    run = Run.load("debug", "train.workers=0")
    run.save(tmp_path / "run" / "run.yaml")
    with pytest.raises(InputError, match="was converted from published weights"):
        pt.train(run, out=tmp_path / "run", resume=True)


# The published code's own numbers.


def case(name: str) -> Case:
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no parity case {name} in {FOLDER}; POINTILLIST_PARITY names their folder")
    return Case(FOLDER / name)


@pytest.mark.parametrize(
    ("family", "name", "override"),
    [("jit", "jit_forward", "model.context_start=1"),
     ("jit", "jit_forward_ctx0", "model.context_start=0"),
     ("jit", "jit_forward_noctx", "seed=0"), ("dit", "dit_forward", "model.heads=2"),
     ("diffit", "diffit_latent", "seed=0"), ("diffit", "diffit_latent_nosigma", "seed=0"),
     ("pixeldit", "pixeldit_c2i", "data.size=16"),
     ("pixeldit", "pixeldit_c2i_post_modulation", "data.size=16 model.pixel_place=false"),
     ("pixnerd", "pixnerd_c2i_square", "data.size=16"),
     ("pixeldit_text", "pixeldit_t2i", "data.size=16"),
     ("pixnerd_text", "pixnerd_t2i", "data.size=16 model.code_span=4"),
     ("pixnerd_text", "pixnerd_t2i_heavydecoder", "data.size=16 model.code_span=16")],
)  # fmt: skip
def test_published_weights_answer_as_published(family, name, override, tmp_path):
    stored = case(name)
    convert(
        family, FOLDER / name / "weights.safetensors", tmp_path / "run", tuple(override.split())
    )
    told = stored.io["in.y"]
    given = Given(text=told) if told.dim() == 3 else Given(label=told)
    with torch.no_grad():
        found = pt.load(tmp_path / "run").network(stored.io["in.x"], stored.io["in.t"], given)
    stored.match("out", found.value)


def test_pixeldits_wrapper_is_taken_off(tmp_path):
    """Published with captions it is the core of something that also holds an alignment's layers."""
    stored, out = case("pixeldit_t2i"), tmp_path / "run"
    wrapped = {f"core.{name}": value for name, value in stored.weights.items()}
    wrapped["_repa_projector.0.weight"] = torch.ones(4, 4)
    save_file(wrapped, tmp_path / "a.safetensors")
    convert("pixeldit_text", tmp_path / "a.safetensors", out, ("data.size=16",))
    trained = pt.load(out)
    assert trained.run.model.attend_padding and trained.run.model.depth == 2
    assert trained.spec.words == Words(width=16, length=8) and not trained.spec.classes
    with torch.no_grad():
        given = Given(text=stored.io["in.y"])
        stored.match("out", trained.network(stored.io["in.x"], stored.io["in.t"], given).value)


def test_what_pixnerds_decoder_is_has_to_be_said_at_other_patches_than_16():
    stored = case("pixnerd_t2i")
    path = stored.folder / "weights.safetensors"
    with pytest.raises(InputError, match="give it as model.code_span= .*the heavy decoder 16"):
        convert("pixnerd_text", path, Path("nowhere"), ("data.size=16",))
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("form", ["safetensors", "aliased", "one name each"])
def test_published_weights_of_captions_answer_as_published(form, tmp_path):
    """Each weight stands under two names there; a file may have either, or one storage for both."""
    stored, path = case("pixelhdm_text"), tmp_path / "a.pth"
    state = pixelhdm_weights.without_aliases(stored.weights)
    if form == "safetensors":
        path = FOLDER / "pixelhdm_text" / "weights.safetensors"
    elif form == "aliased":
        kept = {name: value for name, value in state.items() if ".qkv_proj." in name}
        torch.save(state | {n.replace("qkv_proj.", ""): v for n, v in kept.items()}, path)
    else:
        short = (("qkv_proj.", ""), ("gate.proj", "gate_proj"), ("out_proj_layer.", ""))
        for kept, alias in short:
            state = {name.replace(kept, alias): value for name, value in state.items()}
        torch.save(state, path)
    convert("pixelhdm", path, tmp_path / "run", ("data.size=16",))
    trained, io = pt.load(tmp_path / "run"), stored.io
    assert trained.spec.words.width == trained.run.model.width == 32
    assert trained.run.model.gate == "elementwise" and trained.run.model.kv_heads == 2
    given = Given(text=io["in.text_embed"], text_mask=io["in.text_mask"],
                  pooled=io["in.pooled_text_embed"])  # fmt: skip
    with torch.no_grad():
        found = trained.network(io["in.x_t"].movedim(-1, 1), io["in.t"], given)
    # 1000 t is rounded otherwise there (tests/parity_pixelhdm.py).
    stored.match("out", found.value.movedim(1, -1), 1e-4 * float(io["out"].abs().max()))


@pytest.mark.parametrize("name", ["jit_sampler_heun", "jit_sampler_euler"])
def test_a_published_training_checkpoint_draws_as_published(name, tmp_path, monkeypatch):
    stored = case(name)
    arguments = argparse.Namespace(**stored.constructor["args"])
    weights = {f"net.{name.removeprefix('net.')}": value for name, value in stored.weights.items()}
    torch.save({"model": weights, "model_ema1": weights, "args": arguments}, tmp_path / "a.pth")
    convert("jit", tmp_path / "a.pth", tmp_path / "run", (START,))
    trained = pt.load(tmp_path / "run")
    assert trained.run.train.ema == (arguments.ema_decay1,)
    noise = stored.io["in.noise_unit"]
    monkeypatch.setattr(StraightConfig, "noise", lambda self, draw, shape, *rest:
                        noise * self.noise_strength(shape[1:]))  # fmt: skip
    found = trained.sample(
        3, label=stored.io["in.labels"].tolist(), sampler=arguments.sampling_method,
        steps=arguments.num_sampling_steps, guidance=arguments.cfg,
        interval=(arguments.interval_min, arguments.interval_max),
    )  # fmt: skip
    stored.match("out", found, 2e-5 * float(stored.io["out"].abs().max()))


def test_weights_of_a_case_are_read_without_its_folder_being_written(tmp_path):
    stored = case("jit_forward")
    before = load_file(FOLDER / "jit_forward" / "weights.safetensors")
    convert("jit", stored.folder / "weights.safetensors", tmp_path / "run", (START,))
    after = load_file(FOLDER / "jit_forward" / "weights.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
