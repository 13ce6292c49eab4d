"""Networks that are consulted: LPIPS, and teachers of every kind behind one signature."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pointillist.draws import Draw
from pointillist.frozen import alexnet, vision
from pointillist.frozen.alexnet import LPIPS, SHIPPED, AlexNetFeatures, lpips_distance, shipped
from pointillist.frozen.vision import AlexNet, load_teacher, promise, resized
from pointillist.types import InputError

CPU = torch.device("cpu")


def pictures(b: int, h: int, w: int) -> torch.Tensor:
    return Draw(5, torch.arange(b)).normal("pictures", (3, h, w)).clamp(-1, 1)


# LPIPS.


def test_equal_pictures_have_no_distance_and_noise_adds_to_it():
    x = pictures(3, 32, 40)
    assert not lpips_distance(x, x).any()
    far = [lpips_distance(x, x + s * pictures(3, 32, 40).flip(0)).mean() for s in (0.1, 0.3, 1.0)]
    assert 0 < far[0] < far[1] < far[2]


def test_the_distance_of_a_pair_does_not_depend_on_its_order_or_batch():
    a, b = pictures(4, 33, 32), pictures(4, 33, 32).flip(0)
    torch.testing.assert_close(lpips_distance(a, b), lpips_distance(b, a))
    torch.testing.assert_close(lpips_distance(a, b)[1:2], lpips_distance(a[1:2], b[1:2]))


def test_every_pixel_has_a_finite_gradient_even_where_nothing_answers():
    x = torch.zeros(1, 3, 31, 31, requires_grad=True)
    lpips_distance(x, pictures(1, 31, 31)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


def test_a_weight_says_how_much_a_place_counts():
    a, b = pictures(2, 64, 64), pictures(2, 64, 64).flip(0)
    network, ones = shipped(CPU), torch.ones(2, 1, 64, 64)
    torch.testing.assert_close(network(a, b, ones), network(a, b))
    torch.testing.assert_close(network(a, b, 0.5 * ones), 0.5 * network(a, b))
    left = ones.clone()
    left[..., 32:] = 0
    parts = network(a, b, left) + network(a, b, 1 - left)
    torch.testing.assert_close(parts, network(a, b))


def test_a_float32_file_is_read_by_its_path(tmp_path):
    save_file({name: w.float() for name, w in load_file(SHIPPED).items()}, tmp_path / "w")
    x = pictures(1, 32, 32)
    for one, other in zip(AlexNetFeatures(tmp_path / "w")(x), AlexNetFeatures()(x), strict=True):
        assert torch.equal(one, other)


def test_damaged_or_other_weights_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError, match="weights.safetensors cannot be read as LPIPS weights"):
        LPIPS(path)
    path.write_bytes(SHIPPED.read_bytes()[:1000])
    with pytest.raises(InputError, match="weights.safetensors cannot be read as LPIPS weights"):
        LPIPS(path)
    save_file({"AlexNet_0.Conv_0.weight": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="Conv_0.weight has shape .2,., AlexNet's LPIPS has"):
        LPIPS(path)


def test_a_damaged_file_of_the_package_is_told_from_ones_own(tmp_path, monkeypatch):
    damaged = bytearray(SHIPPED.read_bytes())
    damaged[-1] ^= 1  # one bit of one weight: the file still opens
    (tmp_path / "w").write_bytes(damaged)
    LPIPS(tmp_path / "w")
    for path in (tmp_path / "w", tmp_path / "gone"):
        monkeypatch.setattr(alexnet, "SHIPPED", path)
        with pytest.raises(InputError, match="with the package; reinstall pointillist"):
            LPIPS()


def test_two_names_of_one_device_share_a_network():
    assert shipped(torch.device("cpu", 0)) is shipped(CPU)


def test_too_small_pictures_are_refused():
    with pytest.raises(InputError, match="31x31 or more, these have 30x64"):
        lpips_distance(pictures(1, 30, 64), pictures(1, 30, 64))


# Teachers.


def test_alexnet_has_the_grid_that_is_asked_for():
    teacher = AlexNet(CPU)
    for grid in ((1, 1), (2, 5), (8, 8)):
        assert teacher(pictures(2, 24, 40), grid).shape == (2, teacher.width, *grid)
    assert promise("alexnet").width == teacher.width
    assert promise("alexnet").parameters == sum(p.numel() for p in teacher.features.parameters())


def test_tokens_lie_where_their_part_of_a_non_square_picture_lies():
    """What is changed in one corner changes the tokens of that corner most."""
    x = pictures(1, 64, 128)
    changed = x.clone()
    changed[..., :16, -32:] *= -1
    teacher = AlexNet(CPU)
    moved = (teacher(changed, (4, 8)) - teacher(x, (4, 8))).square().sum(1)[0]
    assert divmod(int(moved.argmax()), 8) in ((0, 6), (0, 7))
    # Each token sees 195 pixels of what is enlarged to 79 x 143, the nearer ones more.
    assert moved[:2, 4:].sum() > 0.8 * moved.sum()


def test_a_picture_of_the_right_size_is_not_touched():
    x = pictures(1, 28, 42)
    assert resized(x, (28, 42)) is x
    torch.testing.assert_close(resized(torch.full_like(x, 0.3), (17, 50)).mean(), torch.tensor(0.3))


KINDS = {
    "Dinov2": {}, "Dinov2WithRegisters": {"num_register_tokens": 2},
    "DINOv3ViT": {"num_register_tokens": 3}, "ViT": {}, "DeiT": {}, "IJepa": {}, "CLIPVision": {},
    "SiglipVision": {},
}  # fmt: skip
EXTRA = {"Dinov2WithRegisters": 3, "DINOv3ViT": 4, "DeiT": 2, "IJepa": 0, "SiglipVision": 0}
HALF = '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'


def saved(kind: str, folder, **more):
    """A tiny random model of that class, as save_pretrained leaves it."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=56, patch_size=14, **{**KINDS[kind], **more},
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    if kind in ("ViT", "DeiT", "IJepa"):
        (Path(folder) / "preprocessor_config.json").write_text(HALF)
    return model.eval()


def without(folder, key: str) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights[key]
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize("kind", KINDS)
def test_a_vit_of_any_kind_teaches_with_its_patches_alone(kind, tmp_path):
    model = saved(kind, tmp_path)
    teacher, x = load_teacher(str(tmp_path), CPU), pictures(2, 42, 70)
    tokens = teacher(x, (3, 5))
    assert tokens.shape == (2, 16, 3, 5) and promise(str(tmp_path)).width == 16
    assert promise(str(tmp_path)).parameters == sum(p.numel() for p in model.parameters())
    # The model's own answer to the picture in its own normalisation, from the last patch backwards.
    assert teacher.extra == EXTRA.get(kind, 1)
    halved = kind in ("ViT", "DeiT", "IJepa", "SiglipVision")
    low, high = (0.5, 0.5) if halved else (None, None)
    mean = torch.tensor(
        (0.48145466, 0.4578275, 0.40821073) if kind == "CLIPVision" else (0.485, 0.456, 0.406)
        if low is None else (low,) * 3
    ).view(3, 1, 1)  # fmt: skip
    deviation = torch.tensor(
        (0.26862954, 0.26130258, 0.27577711) if kind == "CLIPVision" else (0.229, 0.224, 0.225)
        if high is None else (high,) * 3
    ).view(3, 1, 1)  # fmt: skip
    more = {"interpolate_pos_encoding": True} if "interpolate" in str(teacher.options) else {}
    with torch.no_grad():
        own = model(pixel_values=((x + 1) / 2 - mean) / deviation, **more).last_hidden_state
    torch.testing.assert_close(tokens.flatten(2).mT, own[:, -15:], rtol=1e-4, atol=1e-5)
    assert not tokens.requires_grad


def test_a_vit_sees_a_non_square_picture_on_another_grid(tmp_path):
    saved("DINOv3ViT", tmp_path)
    teacher = load_teacher(str(tmp_path), CPU)
    assert teacher(pictures(1, 32, 48), (2, 3)).shape == (1, 16, 2, 3)
    assert teacher(pictures(1, 32, 48), (4, 6)).shape == (1, 16, 4, 6)


def test_a_file_beside_the_model_says_how_it_normalises(tmp_path):
    saved("Dinov2", tmp_path)
    text = '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 2.0]}'
    (tmp_path / "preprocessor_config.json").write_text(text)
    teacher = load_teacher(str(tmp_path), CPU)
    assert teacher.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert teacher.deviation.flatten().tolist() == [1, 1, 2]
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        promise(str(tmp_path))


def test_what_is_no_teacher_is_refused_in_one_sentence(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    for name in ("", "resnet", str(tmp_path / "nowhere"), "a/b/c"):
        with pytest.raises(InputError, match="neither alexnet, a folder, nor a hub id"):
            promise(name)
    with pytest.raises(InputError, match="cannot be loaded"):
        promise(str(tmp_path))
    saved("Dinov2", tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").rename(tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(InputError, match="holds no .safetensors"):
        promise(str(tmp_path / "vit"))
    saved("Dinov2", tmp_path / "grey", num_channels=1)
    with pytest.raises(InputError, match="looks at 1 channels; choose one of 3"):
        promise(str(tmp_path / "grey"))


def test_weights_that_a_file_lacks_are_refused_and_not_made_up(tmp_path):
    saved("Dinov2", tmp_path / "a")
    without(tmp_path / "a", "embeddings.mask_token")
    assert load_teacher(str(tmp_path / "a"), CPU).extra == 1
    without(tmp_path / "a", "layernorm.bias")
    with pytest.raises(InputError, match="lacks the weight layernorm.bias, which would be filled"):
        load_teacher(str(tmp_path / "a"), CPU)
    saved("ViT", tmp_path / "b")
    without(tmp_path / "b", "pooler.dense.bias")
    assert load_teacher(str(tmp_path / "b"), CPU).extra == 1


@pytest.mark.parametrize(
    "values",
    [
        '"image_mean": null, "image_std": [1, 1, 1]', '"image_mean": 0.5, "image_std": 0.5',
        '"image_mean": ["a", "b", "c"], "image_std": [1, 1, 1]',
        '"image_mean": [0, 0], "image_std": [1, 1]',
        '"image_mean": [0, 0, 0], "image_std": [1, 1, 0]',
        '"image_mean": [0, 0, NaN], "image_std": [1, 1, 1]',
    ],
)  # fmt: skip
def test_a_normalisation_that_is_none_is_refused_in_one_sentence(values, tmp_path):
    saved("Dinov2", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(f"{{{values}}}")
    with pytest.raises(InputError, match="image_(mean|std) is .*takes three finite numbers"):
        promise(str(tmp_path))


def test_how_a_vit_was_normalised_is_not_guessed(tmp_path):
    saved("ViT", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match="no preprocessor_config.json, and how a vit normalises"):
        promise(str(tmp_path))


def test_whatever_is_raised_about_a_teacher_is_one_sentence(tmp_path):
    transformers = pytest.importorskip("transformers")
    saved("Dinov2", tmp_path / "torn")
    whole = (tmp_path / "torn" / "model.safetensors").read_bytes()
    (tmp_path / "torn" / "model.safetensors").write_bytes(whole[:300])
    told = [("torn", "cannot be loaded")]
    # It asks for more than pictures.
    config = transformers.Siglip2VisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.Siglip2VisionModel(config).save_pretrained(tmp_path / "siglip2")
    (tmp_path / "siglip2" / "preprocessor_config.json").write_text(HALF)
    told += [("siglip2", "cannot be loaded .*pixel_attention_mask")]
    # It hides three patches of four.
    config = transformers.ViTMAEConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=56, patch_size=14,
    )  # fmt: skip
    transformers.ViTMAEModel(config).save_pretrained(tmp_path / "mae")
    (tmp_path / "mae" / "preprocessor_config.json").write_text(HALF)
    told += [("mae", "answers 6 and 12 patches with 2 and 4 tokens")]
    for name, sentence in told:
        with pytest.raises(InputError, match=sentence) as caught:
            load_teacher(str(tmp_path / name), CPU)
        assert "\n" not in str(caught.value)
    # AutoModel knows no class for the vision part alone.
    transformers.BlipConfig().save_pretrained(tmp_path / "blip")
    (tmp_path / "blip" / "preprocessor_config.json").write_text(HALF)
    (tmp_path / "blip" / "model.safetensors").write_bytes(whole)
    with pytest.raises(InputError, match="cannot be loaded"):
        promise(str(tmp_path / "blip"))


def test_a_digest_tells_weights_and_normalisation_and_not_the_place(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved("Dinov2", tmp_path / "a")
    saved("Dinov2", tmp_path / "b")
    one, other = (load_teacher(name, CPU).digest for name in (str(tmp_path / "a"), "~/b"))
    assert one == other and promise("~/b") == promise(str(tmp_path / "a"))
    (tmp_path / "b" / "preprocessor_config.json").write_text(HALF)
    assert load_teacher("~/b", CPU).digest != one
    path = tmp_path / "a" / "model.safetensors"
    weights = load_file(path)
    weights["layernorm.bias"][0] += 1
    save_file(weights, path, {"format": "pt"})
    assert load_teacher(str(tmp_path / "a"), CPU).digest not in (one, AlexNet(CPU).digest)


def test_a_model_of_the_hub_without_a_preprocessor_is_told_from_one_that_cannot_be_asked(
    tmp_path, monkeypatch
):
    pytest.importorskip("transformers")
    hub = pytest.importorskip("huggingface_hub")
    errors = pytest.importorskip("huggingface_hub.errors")

    def answer(error):
        def raised(*_):
            raise error

        return raised

    (tmp_path / "file").write_text(HALF)
    monkeypatch.setattr(hub, "hf_hub_download", lambda *_: str(tmp_path / "file"))
    assert vision._preprocessor("some/model") == tmp_path / "file"
    monkeypatch.setattr(hub, "hf_hub_download", answer(errors.EntryNotFoundError("none")))
    assert vision._preprocessor("some/model") is None
    monkeypatch.setattr(hub, "hf_hub_download", answer(errors.LocalEntryNotFoundError("offline")))
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(errors.LocalEntryNotFoundError):
        vision._preprocessor("some/model")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: object())
    assert vision._preprocessor("some/model") is None


def test_a_missing_extra_is_one_sentence_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'pointillist\[teachers\]'"):
        promise("facebook/dinov2-base")
