"""Captions that are read: chosen and dropped, kept on the disk, looked up."""

import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pointillist.data.prompts import captions_of, first_of, prompts_of, said_of
from pointillist.data.words import Reader, TextConfig, check_same_words, read_all
from pointillist.draws import Draw
from pointillist.frozen.text import TextEncoder
from pointillist.run import Run
from pointillist.tasks import GenerateConfig, said
from pointillist.types import InputError, Words
from tests import text_case

pytest.importorskip("transformers", reason="text encoders need transformers: pip install "
                    "'pointillist[text]'")  # fmt: skip
CPU = torch.device("cpu")
CAPTIONS = ("a cat", "", "two dogs run", "🦊🏽", "مرحبا", "x" * 50)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    text_case.encoder(folder / "bert", "bert")
    text_case.encoder(folder / "qwen3", "qwen3")
    return folder


def config(root, cache="", **more):
    name = more.pop("kind", "bert")
    return TextConfig(encoder=str(root / name), length=20, cache=str(cache or "unused"),
                      device="cpu", **more)  # fmt: skip


def opened(root, cache, **more) -> Reader:
    return config(root, cache, **more).open(CPU, keep=True)


@pytest.fixture
def never(monkeypatch):
    """From its call on, nothing may be encoded any more."""

    def forbid():
        def refuse(*asked):
            raise AssertionError("encoded again")

        monkeypatch.setattr(TextEncoder, "__call__", refuse)

    return forbid


# One caption of several, or none.

DRAW = Draw(3, torch.arange(4000))


def test_captions_are_dropped_in_the_share_that_is_asked_for():
    for share in (0.0, 0.1, 1.0):
        told = said((("a",),) * 4000, share, DRAW)
        assert set(told) <= {"a", ""}
        assert told.count("") / 4000 == pytest.approx(share, abs=0.015)


def test_one_of_several_captions_is_drawn_evenly_and_none_is_empty():
    told = said((("a", "b", "c"),) * 4000, 0.0, DRAW)
    assert all(told.count(one) / 4000 == pytest.approx(1 / 3, abs=0.03) for one in "abc")
    assert said(((),) * 4000, 0.0, DRAW) == said(None, 0.0, DRAW) == ("",) * 4000


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**63 - 1), cut=st.integers(1, 7), counts=st.lists(
    st.integers(0, 4), min_size=8, max_size=8))  # fmt: skip
def test_what_is_said_belongs_to_the_sample(seed, cut, counts):
    captions = tuple(tuple(f"{i} {j}" for j in range(n)) for i, n in enumerate(counts))
    index = torch.arange(100, 108)
    whole = said(captions, 0.3, Draw(seed, index))
    parts = said(captions[:cut], 0.3, Draw(seed, index[:cut])) + said(
        captions[cut:], 0.3, Draw(seed, index[cut:])
    )
    assert whole == parts == said(captions, 0.3, Draw(seed, index))
    assert all(one == "" or one in some for one, some in zip(whole, captions, strict=True))


def test_drop_choice_and_label_drop_are_draws_of_their_own():
    told = said((("a", "b"),) * 4000, 0.5, DRAW)
    dropped = torch.tensor([one == "" for one in told])
    label = GenerateConfig(label_drop=0.5)
    from pointillist.tasks.task import dropped as drop_label

    gone = drop_label(torch.zeros(4000, dtype=torch.long), label.label_drop, DRAW) < 0
    assert (dropped & gone).float().mean() == pytest.approx(0.25, abs=0.03)


def test_a_share_lies_in_its_range_and_a_mixture_has_one():
    with pytest.raises(InputError, match="task.caption_drop is 1.5; it lies in"):
        Run.load("debug", "task.caption_drop=1.5")
    with pytest.raises(InputError, match="task.tasks.0.caption_drop is 0.4; in a mixture set"):
        Run.load("debug", "task={kind: mixture, tasks: [{kind: generate, caption_drop: 0.4}, "
                          "{kind: upscale}]}")  # fmt: skip


# Looked up.


@pytest.mark.parametrize("keep", [True, False])
def test_features_are_the_encoders_own_rounded_once(root, tmp_path, keep):
    reader = config(root, tmp_path).open(CPU, keep=keep)
    found = reader.take(CAPTIONS, CPU)(CAPTIONS)
    theirs = reader.opened()(CAPTIONS)
    n = theirs.text.shape[1]
    assert torch.equal(found.mask[:, :n], theirs.mask) and not found.mask[:, n:].any()
    for ours, exact in ((found.text[:, :n], theirs.text), (found.pooled, theirs.pooled)):
        error = (ours - exact).abs()
        assert 0 < error.max() and (error <= 2**-11 * exact.abs() + 2**-24).all()
        assert ours.dtype == torch.float32
    exact = config(root, tmp_path, precision="float32").open(CPU, keep=keep)
    torch.testing.assert_close(exact.take(CAPTIONS, CPU)(CAPTIONS).pooled, theirs.pooled)


def test_texts_are_as_long_as_the_longest_up_to_a_multiple_of_eight(root, tmp_path):
    shelf = opened(root, tmp_path).take(CAPTIONS, CPU)
    assert shelf([""]).text.shape == (1, 8, text_case.WIDTH)
    assert shelf(["", "a cat"]).text.shape == (2, 8, text_case.WIDTH)
    assert shelf(["two dogs run"]).text.shape == (1, 16, text_case.WIDTH)
    assert shelf(["x" * 50]).text.shape == (1, 20, text_case.WIDTH)  # `length` itself
    many = shelf(["a cat"] * 3 + [""])
    assert torch.equal(many.text[0], many.text[2]) and not many.text[~many.mask].any()


@settings(max_examples=8, deadline=None)
@given(some=st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=6), cut=st.integers(0, 5))
def test_a_caption_is_the_same_in_any_portion(root, tmp_path_factory, some, cut):
    shelf = config(root, "unused").open(CPU).take(CAPTIONS, CPU)
    cut = min(cut, len(some) - 1)
    whole, part = shelf(some), shelf(some[cut:])
    n = part.text.shape[1]
    assert torch.equal(whole.text[cut:, :n], part.text)
    assert torch.equal(whole.pooled[cut:], part.pooled)


# Kept.


def test_what_is_kept_is_encoded_once_and_mapped(root, tmp_path, never):
    heard = []
    reader = opened(root, tmp_path)
    reader.keep(CAPTIONS, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (len(CAPTIONS),) * 2
    before = reader.take(CAPTIONS, CPU)(CAPTIONS)
    never()
    again = opened(root, tmp_path)
    after = again.take(CAPTIONS, CPU)(CAPTIONS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert isinstance(again.parts[0].tokens, np.memmap)
    assert again.parts[0].tokens.dtype == np.float16
    with pytest.raises(AssertionError, match="encoded again"):
        again.keep(["another"])


def test_what_is_new_is_added_and_nothing_else(root, tmp_path):
    opened(root, tmp_path).keep(CAPTIONS[:2])
    reader, heard = opened(root, tmp_path), []
    reader.keep(CAPTIONS, lambda done, total: heard.append((done, total)))
    assert heard[-1] == (len(CAPTIONS) - 2,) * 2
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert len(list(folder.glob("part-*"))) == 2


def test_other_encoders_lengths_and_precisions_lie_beside(root, tmp_path):
    for more in ({}, {"kind": "qwen3"}, {"precision": "float32"}):
        opened(root, tmp_path, **more).keep(["a"])
    TextConfig(encoder=str(root / "bert"), length=9, cache=str(tmp_path)).open(CPU, True).keep("a")
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 4


def test_an_interruption_leaves_complete_parts_alone(root, tmp_path, monkeypatch):
    monkeypatch.setattr("pointillist.data.words.PORTION", 2)

    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(root, tmp_path).keep(CAPTIONS, stop)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    left = [path.name for path in folder.iterdir() if path.name != ".lock"]
    assert len(left) == 1 and left[0].startswith("part-")  # and no draft of the second
    heard = []
    opened(root, tmp_path).keep(CAPTIONS, lambda done, total: heard.append(total))
    assert heard[0] == len(CAPTIONS) - 2


def _keep(encoder, cache, captions):
    torch.set_num_threads(1)
    reader = TextConfig(encoder=encoder, length=20, cache=cache, device="cpu").open(CPU, True)
    reader.keep(captions)
    reader.take(captions, CPU)(captions)


def test_several_processes_may_keep_the_same(root, tmp_path):
    way = multiprocessing.get_context("fork")
    lots = [[f"{i} of {start}" for i in range(start, start + 30)] + ["both"] for start in (0, 0, 9)]
    each = [way.Process(target=_keep, args=(str(root / "bert"), str(tmp_path), some))
            for some in lots]  # fmt: skip
    for one in each:
        one.start()
    for one in each:
        one.join()
    assert [one.exitcode for one in each] == [0, 0, 0]
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    kept = [json.loads((p / "facts.json").read_text())["captions"] for p in folder.glob("part-*")]
    assert sum(kept) == len({caption for some in lots for caption in some})  # none twice


@pytest.mark.parametrize("name", ["tokens.npy", "pooled.npy", "ends.npy", "keys.npy", "facts.json"])
def test_a_damaged_part_is_named(root, tmp_path, name):
    opened(root, tmp_path).keep(CAPTIONS)
    (path,) = tmp_path.glob(f"*/part-*/{name}")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(InputError, match=f"{path.parent} is damaged; delete it, and it is made"):
        opened(root, tmp_path).keep(CAPTIONS)


def test_a_pickle_among_what_is_kept_is_not_read(root, tmp_path):
    opened(root, tmp_path).keep(CAPTIONS)
    (path,) = tmp_path.glob("*/part-*/ends.npy")
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="is damaged"):
        opened(root, tmp_path).keep(CAPTIONS)


def test_features_that_float16_cannot_hold_are_refused(root, tmp_path, monkeypatch):
    call = TextEncoder.__call__

    def huge(self, captions):
        found = call(self, captions)
        return found._replace(text=found.text * 1e6)

    monkeypatch.setattr(TextEncoder, "__call__", huge)
    with pytest.raises(InputError, match="features that float16 cannot hold; set text.precision="):
        opened(root, tmp_path).keep(CAPTIONS)
    opened(root, tmp_path, precision="float32").keep(CAPTIONS)


def test_an_encoder_that_is_another_when_it_is_opened_again_is_refused(root, tmp_path):
    import shutil

    shutil.copytree(root / "bert", tmp_path / "bert")
    reader = TextConfig(encoder=str(tmp_path / "bert"), length=20, device="cpu").open(CPU)
    reader.keep(("a cat",))
    reader.rest()
    text_case.encoder(tmp_path / "bert", "bert", seed=1)
    reader.keep(("a cat",))  # known already
    with pytest.raises(InputError, match="was changed while it was in use"):
        reader.keep(("a dog",))


def test_a_cache_that_holds_all_need_not_be_writable(root, tmp_path, monkeypatch):
    opened(root, tmp_path).keep(CAPTIONS)

    def refuse(*asked, **more):
        raise AssertionError("written")

    monkeypatch.setattr("pointillist.data.words.locked", refuse)
    opened(root, tmp_path).keep(CAPTIONS)
    with pytest.raises(AssertionError, match="written"):
        opened(root, tmp_path).keep(("new",))


# Whole sets.


def test_a_set_is_read_whole_and_counted(root, tmp_path, never):
    from tests.test_text_runs import source_of

    source = source_of([("a cat", "a dog"), (), ("",), ("y" * 30,)])
    reader = opened(root, tmp_path)
    told = read_all(reader, (source, source))
    assert told == {"captions": 3, "cut": 1, "missing": 4}
    assert reader.encoder is None  # its memory is free
    never()
    reader.take(("", "a dog", "y" * 30), CPU)
    assert captions_of(source)[1] == () and first_of(captions_of(source), 4)[:2] == ("a cat", "")
    assert prompts_of(said_of(source), range(3)) == ("a cat", "y" * 30, "a cat")


def test_the_words_of_a_run_are_the_encoders(root):
    assert TextConfig().promise() is None
    asked = config(root)
    assert asked.promise() == Words(width=text_case.WIDTH, length=20)
    found = asked.open(CPU).words
    assert (found.width, found.length) == (text_case.WIDTH, 20) and len(found.digest) == 32


def test_another_encoder_is_told_by_width_length_and_weights(root):
    asked = config(root)
    kept = Words(width=16, length=20, digest="a")
    check_same_words(asked, kept, kept)
    check_same_words(asked, kept, Words(width=16, length=20))
    for now, text in (
        (Words(width=8, length=20, digest="a"), "has width 8, but the run was trained with 16"),
        (Words(width=16, length=9, digest="a"), "has length 9, but the run was trained with 20"),
        (Words(width=16, length=20, digest="b"), "has other weights, .* set text.verify=false"),
        (None, "which reads no captions, but the run was trained with captions"),
    ):
        with pytest.raises(InputError, match=text):
            check_same_words(asked, kept, now)
    told = config(root, verify=False)
    check_same_words(told, kept, Words(width=16, length=20, digest="b"))


@pytest.mark.parametrize(
    ("words", "text"),
    [({"encoder": ""}, "text.encoder is empty"), ({"length": 0}, "text.length is 0; it must be 1"),
     ({"cache": ""}, "text.cache is empty; name a folder")],
)  # fmt: skip
def test_a_configuration_says_what_it_may_be(words, text):
    with pytest.raises(InputError, match=text):
        TextConfig(**words)
