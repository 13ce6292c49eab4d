"""Files of other people: what is opened, what is refused, and that no pickle is ever run."""

import argparse
import os
import pickle
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pointillist as pt
from pointillist import foreign
from pointillist.convert import Renamed, convert
from pointillist.published import FAMILIES
from pointillist.run import Run

from .test_convert import DIT, JIT, START, make, publish, publish_shapes, refused, spec_of


@pytest.fixture(scope="module")
def jit():
    return make(JIT, spec_of(16))


class Attack:
    """What would make the file `proof` when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


def test_a_file_that_would_run_a_command_is_refused_and_runs_none(jit, tmp_path):
    proof, path = tmp_path / "proof", tmp_path / "a.pth"
    torch.save({"model": publish(jit), "args": Attack(proof)}, path)
    refused(path, r"asks for \w+\.system to be called while it is opened, which was not done")
    path.write_bytes(pickle.dumps(Attack(proof)))
    refused(path, "is a bare pickle")
    torch.save(Attack(proof), path, _use_new_zipfile_serialization=False)
    refused(path, "before 1.6")
    assert not proof.exists()
    # That the file is one which runs the command where it is opened without care.
    torch.save(Attack(proof), path)
    torch.load(path, weights_only=False)
    assert proof.exists()


def test_a_file_that_is_no_checkpoint_is_refused(jit, tmp_path):
    path = tmp_path / "a.pth"
    refused(path, "is not there")
    path.write_bytes(b"")
    refused(path, "is empty")
    path.write_text("weights")
    refused(path, "cannot be read as a checkpoint")
    path.write_bytes(pickle.dumps([1, 2]))
    refused(path, "is a bare pickle")
    torch.save([1, 2], path)
    refused(path, "holds a list; a checkpoint is a mapping of names to weights")
    torch.save({}, path)
    refused(path, "holds no weights")
    torch.save(publish(jit), path, _use_new_zipfile_serialization=False)
    refused(path, r"re-save it: torch\.save\(torch\.load\(OLD, weights_only=True\), NEW\)")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/words.txt", "no")
    refused(path, "a zip file that torch.save did not write")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"no")
    refused(path, "cannot be read as a checkpoint")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(9999))
    refused(path, "is compressed")
    refused(tmp_path, "is a folder; name the checkpoint file in it")
    (tmp_path / "a.txt").write_text("no")
    refused(tmp_path / "a.txt", "ends in .txt; a checkpoint is one of .pth")
    (tmp_path / "a.safetensors").write_text("no")
    refused(tmp_path / "a.safetensors", "cannot be read as a checkpoint")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.3, 0.97, 0.9999])
def test_a_truncated_file_is_refused(jit, tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    torch.save(publish(jit), path) if suffix == "pth" else save_file(publish(jit), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refused(path, "cannot be read as a checkpoint", START)


def test_only_dense_finite_floating_tensors_within_bounds_are_taken(jit, tmp_path, monkeypatch):
    state, path = publish(jit), tmp_path / "a.pth"
    name, value = "final_layer.linear.bias", state["final_layer.linear.bias"]
    for wrong, message in (
        (value.long(), "a tensor of torch.int64"), (value.to_sparse(), "torch.sparse_coo tensor"),
        (3, "of type int"), (torch.zeros(1).expand(48), "that the file does not hold"),
        (value[:0], "that the file does not hold"), (value.to("meta"), "on meta"),
    ):  # fmt: skip
        torch.save({**state, name: wrong}, path)
        refused(path, f"{name} is .*{message}", START)
    torch.save({**state, 7: value}, path)
    refused(path, "a key of type int", START)
    for number in (float("nan"), float("inf")):
        torch.save({**state, name: torch.full_like(value, number)}, path)
        refused(path, f"{name} holds NaN or infinite values", START)
    torch.save(state, path)
    for bound, message in (("LARGEST_FILE", "GB, more than any"), ("LARGEST_SET", "in one set"),
                           ("MOST_TENSORS", "tensors; a checkpoint has at most"),
                           ("LARGEST_INDEX", "larger in its index")):  # fmt: skip
        with monkeypatch.context() as smaller:
            smaller.setattr(foreign, bound, 20)
            refused(path, message, START)


def test_another_family_is_told_by_its_names(jit, tmp_path):
    path = tmp_path / "a.pth"
    torch.save(publish(make(DIT, spec_of(8, 4))), path)
    refused(path, r"is not a jit checkpoint: x_embedder\.proj1\.weight is missing, and "
                  r"x_embedder\.proj\.weight is not one of its names")  # fmt: skip
    state = publish(jit)
    torch.save(state, path)
    refused(path, "is not a dit checkpoint: x_embedder.proj.weight is missing", family="dit")
    refused(
        path, "family sit is not known; there are jit, dit, pixeldit, pixeldit_text", family="sit"
    )
    del state["blocks.1.norm1.weight"]
    torch.save(state, path)
    refused(path, "blocks.1.norm1.weight is missing; name")
    state = publish(jit) | {"blocks.99999999.norm1.weight": torch.ones(32)}
    torch.save(state, path)
    refused(path, "blocks.3.norm1.weight is missing, and blocks.99999999.norm1.weight is not one")


def test_a_decay_that_is_said_twice_is_kept_once(jit, tmp_path):
    state = publish(jit)
    torch.save({"model": state, "model_ema1": state, "model_ema2": state,
                "args": argparse.Namespace(ema_decay2=0.9999)}, tmp_path / "a.pth")  # fmt: skip
    assert convert("jit", tmp_path / "a.pth", tmp_path / "run", (START,)).ema == (0.9999,)


# Containers that are no checkpoint, though they look like one.


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_torchs_older_form_is_told_in_every_protocol(jit, tmp_path, protocol):
    torch.save(publish(jit), tmp_path / "a.pth", pickle_protocol=protocol,
               _use_new_zipfile_serialization=False)  # fmt: skip
    refused(tmp_path / "a.pth", r"before 1.6, .*; re-save it: torch\.save", START)


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_protocol_that_the_safe_reader_lacks_is_told(jit, tmp_path, protocol):
    torch.save(publish(jit), tmp_path / "a.pth", pickle_protocol=protocol)
    refused(tmp_path / "a.pth", f"pickle protocol {protocol}, .*; re-save its weights", START)


def test_protocol_3_is_read_without_a_word(jit, tmp_path):
    torch.save(publish(jit), tmp_path / "a.pth", pickle_protocol=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convert("jit", tmp_path / "a.pth", tmp_path / "run", (START,)).parameters


def test_containers_of_other_kinds_are_named_with_what_to_do(jit, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(publish(jit)))
    refused(path, "is a bare pickle, which torch.save did not write; re-save its weights")
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "storages")
    refused(path, "is a tar archive, torch's form before 0.4 or several files in one; ")
    save_file(publish(jit), path)
    refused(path, "is a safetensors file by its content; name it .safetensors")


def test_two_indexes_are_one_too_many(jit, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    torch.save(publish(jit), path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/data/data.pkl", b"small")  # and the bound is asked of this one
    refused(path, "a zip file that torch.save did not write", START)


class Numbers:
    """What asks a reader for `count` bytes out of a file that has none of them."""

    def __init__(self, call, *words) -> None:
        self.call, self.words = call, words

    def __reduce__(self):
        return self.call, self.words


@pytest.mark.parametrize(
    ("call", "words"), [(bytearray, (1 << 45,)), (torch.Tensor, (1 << 30, 1 << 13))]
)
def test_memory_out_of_a_number_is_refused_before_it_is_asked_for(jit, tmp_path, call, words):
    torch.save({"model": publish(jit), "more": Numbers(call, *words)}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", f"asks for [a-z_.]+{call.__name__} to be called", START)


def test_one_storage_behind_many_weights_is_refused(jit, tmp_path):
    state = publish(jit)
    shared = torch.zeros(max(value.numel() for value in state.values()))
    torch.save({n: shared[: v.numel()].view(v.shape) for n, v in state.items()}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "MB of weights, more than the file has", START)


def test_a_file_that_may_not_be_read_is_not_called_damaged(jit, tmp_path, monkeypatch):
    torch.save(publish(jit), tmp_path / "a.pth")
    monkeypatch.setattr(Path, "open", _denied)
    refused(tmp_path / "a.pth", "cannot be read: Permission denied; ", START)


def _denied(*words, **more):
    raise PermissionError(13, "Permission denied")


# What stands beside the weights, and before their names.


@pytest.mark.parametrize("said", [10**300 + 1, 10**400, float("nan"), -0.5, 1.0, 2])
def test_a_decay_that_is_none_is_refused_by_name(jit, tmp_path, said):
    torch.save({"model": publish(jit), "model_ema1": publish(jit),
                "args": argparse.Namespace(ema_decay1=said)}, tmp_path / "a.pth")  # fmt: skip
    refused(tmp_path / "a.pth", r"ema_decay1 is .* lies in \[0, 1\); re-save its weights", START)


@pytest.mark.parametrize(
    ("name", "said"),
    [("noise_scale", float("inf")), ("t_eps", -1.0), ("P_std", 0), ("P_std", 10**400)],
)
def test_arguments_that_cannot_be_are_told_with_their_file(jit, tmp_path, name, said):
    arguments = {"P_mean": -0.8, "P_std": 0.8, name: said}
    torch.save({"model": publish(jit), "args": argparse.Namespace(**arguments)}, tmp_path / "a.pth")
    message = r"a\.pth keeps arguments .* \(objective\.[a-z_.]+ is .*\); re-save its weights"
    refused(tmp_path / "a.pth", message, START)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrapped_lightning_module_is_unwrapped(jit, tmp_path, wrapper):
    other = make(JIT, spec_of(16), 1)
    state = {f"{wrapper}denoiser.{n}": v for n, v in publish(jit).items()}
    state |= {f"{wrapper}ema_denoiser._orig_mod.{n}": v for n, v in publish(other).items()}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    assert convert("jit", tmp_path / "a.ckpt", tmp_path / "run", (START,)).ema == (0.9999,)
    kept = dict(pt.load(tmp_path / "run").model.named_parameters())
    assert all(torch.equal(kept[name], value) for name, value in other.named_parameters())


def test_another_networks_names_are_told_before_its_buffers_and_containers(jit, tmp_path):
    path, count = tmp_path / "a.pth", torch.tensor(3)
    torch.save({"bn.num_batches_tracked": count, "bn.weight": torch.ones(3)}, path)
    refused(path, "is not a jit checkpoint: x_embedder.proj1.weight is missing, and "
                  "bn.num_batches_tracked is not one of its names")  # fmt: skip
    torch.save({"epoch": 3, "model_state_dict": publish(jit)}, path)
    refused(path, "proj1.weight is missing, and epoch is not one of its names")


def test_what_is_there_already_is_not_touched(jit, tmp_path):
    torch.save(publish(jit), tmp_path / "a.pth")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("mine")
    with pytest.raises(pt.InputError, match="is there already; choose another --out"):
        convert("jit", tmp_path / "a.pth", tmp_path / "run", (START,))
    assert (tmp_path / "run" / "mine.txt").read_text() == "mine"


def test_weights_are_renamed_a_block_at_a_time_and_are_the_same(tmp_path):
    run = Run.load("imagenet256-pixeldit-b", "model.width=32", "model.heads=2", "model.depth=3",
                   "model.patch_size=4", "model.pixel_width=8", "data.classes=5")  # fmt: skip
    state, family, calls = publish_shapes(run), FAMILIES["pixeldit"], []

    def rename(weights):
        calls.append(
            {n.rpartition("blocks.")[0] + n.split(".")[1] for n in weights if "blocks" in n}
        )
        return family.rename(weights)

    found = list(Renamed(family._replace(rename=rename), state, tmp_path).items())
    whole = family.rename(state)
    assert sorted(name for name, _ in found) == sorted(whole)  # each once
    assert all(torch.equal(value, whole[name]) for name, value in found)
    # What a family reorders is copied: no more than one block's may lie in the memory.
    assert len(calls) == 1 + 3 + 2 and max(map(len, calls)) == 1
