"""The machinery: averages, rates, checkpoints, logs, locks."""

import json

import pytest
import torch
from torch import nn

from pointillist.engine import checkpoint
from pointillist.engine.checkpoint import write_atomically, write_text
from pointillist.engine.device import (
    _container_memory,
    autocast,
    free_memory,
    is_out_of_memory,
    pick_device,
)
from pointillist.engine.ema import EMA
from pointillist.engine.log import Log, read
from pointillist.engine.optim import OptimConfig, StepDownConfig, adamw, clip_norm, learning_rate
from pointillist.types import InputError


def test_an_average_is_the_sum_of_its_equation():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, (0.9, 0.5), warmup=False)
    start = model.weight.item()
    values = [1.0, -2.0, 3.0]
    for value in values:
        nn.init.constant_(model.weight, value)
        ema.update(model)
    for decay in (0.9, 0.5):
        expected = start
        for value in values:
            expected = decay * expected + (1 - decay) * value
        assert float(ema.state(decay)["weight"]) == pytest.approx(expected)


def test_warm_up_forgets_the_first_weights_fast():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 100.0)
    warm, cold = EMA(model, (0.9999,)), EMA(model, (0.9999,), warmup=False)
    nn.init.zeros_(model.weight)
    for _ in range(50):
        warm.update(model)
        cold.update(model)
    assert float(warm.state(0.9999)["weight"]) < 0.1 < 99 < float(cold.state(0.9999)["weight"])


def test_rates_warm_up_stay_or_fall_as_a_cosine():
    def rate(images: int, schedule: str) -> float:
        optim = OptimConfig(lr=2.0, warmup=100, schedule=schedule, final=0.1)
        return learning_rate(optim, images, 1100)

    assert rate(50, "constant") == 1.0 and rate(100, "constant") == rate(999, "constant") == 2.0
    assert rate(600, "cosine") == pytest.approx(2.0 * 0.55) and rate(1100, "cosine") == 0.2
    assert rate(5000, "cosine") == pytest.approx(0.2)


def test_a_step_down_multiplies_the_rate_and_has_its_own_clip():
    down = StepDownConfig(at=500, factor=0.25, clip=0.5)
    flat, cosine = (OptimConfig(lr=2.0, warmup=100, final=0.1, schedule=schedule, step_down=down)
                     for schedule in ("constant", "cosine"))  # fmt: skip
    assert learning_rate(flat, 500, 1100) == 2.0 and learning_rate(flat, 501, 1100) == 0.5
    assert learning_rate(flat, 50, 1100) == 1.0  # the warm-up is as it was
    assert learning_rate(cosine, 600, 1100) == pytest.approx(2.0 * 0.55 * 0.25)
    assert clip_norm(flat, 500) == ("optim.clip", 1.0)
    assert clip_norm(flat, 501) == ("optim.step_down.clip", 0.5)
    kept = OptimConfig(clip=0.3, step_down=StepDownConfig(at=500))
    assert clip_norm(kept, 501) == ("optim.clip", 0.3)
    none = OptimConfig(step_down=StepDownConfig(at=500, clip=0.0))
    assert clip_norm(none, 501) == ("optim.step_down.clip", 0.0)


def test_one_dimensional_weights_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    groups = adamw(list(model.parameters()), OptimConfig(weight_decay=0.1)).param_groups
    assert [len(group["params"]) for group in groups] == [1, 3]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def test_a_checkpoint_comes_back_in_shards(tmp_path):
    tensors = {f"w{i}": torch.full((100,), float(i)) for i in range(5)}
    checkpoint.save(tmp_path / "000000010", {"model": tensors}, {"images": 10}, shard_bytes=900)
    assert len(list((tmp_path / "000000010").glob("model-*.safetensors"))) == 3
    back = checkpoint.load(tmp_path / "000000010", "model")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert checkpoint.facts_of(tmp_path / "000000010")["images"] == 10
    for text in ("{", "{}", "[]", '{"files": {"a": {}}}', '{"files": [1]}'):
        (tmp_path / "000000010" / "state.json").write_text(text)
        with pytest.raises(InputError, match="state.json is missing or damaged"):
            checkpoint.load(tmp_path / "000000010", "model")


def test_only_whole_checkpoints_count_and_old_ones_go(tmp_path):
    for images in (1, 2, 3):
        checkpoint.save(tmp_path / f"{images:09d}", {"model": {}}, {})
    (tmp_path / "000000009").mkdir()
    (tmp_path / ".000000004.draft").mkdir()
    assert [int(p.name) for p in checkpoint.complete(tmp_path)] == [1, 2, 3]
    checkpoint.prune(tmp_path, 0)
    assert len(checkpoint.complete(tmp_path)) == 3
    checkpoint.prune(tmp_path, 2)
    assert [int(p.name) for p in checkpoint.complete(tmp_path)] == [2, 3]
    assert checkpoint.complete(tmp_path / "none") == []
    checkpoint.save(tmp_path / "1000000000", {"model": {}}, {})  # one digit more
    assert checkpoint.complete(tmp_path)[-1].name == "1000000000"


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(draft):
        draft.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match="a.txt cannot be written: No space left on device"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    for left in (".run.draft", ".x.png.draft"):
        (tmp_path / left / "checkpoints").mkdir(parents=True)
    for name in ("run", "x.png"):
        checkpoint.check_writable(tmp_path / name)
        write_text(tmp_path / name, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "x.png"]


def test_no_checkpoint_holds_a_pickle(tmp_path):
    checkpoint.save(tmp_path / "1", {"model": {"a": torch.ones(2)}}, {})
    assert {p.suffix for p in (tmp_path / "1").iterdir()} == {".safetensors", ".json"}


def test_a_log_is_rewound_to_a_checkpoint(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    for images in (1, 2, 3):
        log.write({"event": "step", "images": images})
    with log.path.open("a") as file:
        file.write('{"event": "st')
    with log.path.open("a") as file:
        file.write("\n")
    log.write({"event": "step", "images": 3})  # lines behind a damaged one are kept
    log.sync()
    assert [e["images"] for e in read(log.path)] == [1, 2, 3, 3]
    log.rewind(2)
    lines = log.path.read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [1, 2]


def test_devices_are_named_or_refused():
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match="device is tpu"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device is cuda, but torch .* finds none here"):
            pick_device("cuda")
    assert free_memory(torch.device("cpu")) > 1e8
    with autocast(torch.device("cpu"), "bfloat16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_running_out_of_memory_is_told_from_other_errors():
    assert is_out_of_memory(torch.OutOfMemoryError("x")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert is_out_of_memory(caught.value)
    said = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(said))


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
    checkpoint.check_writable(tmp_path / "new" / "deep" / "x.png")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/x.png cannot be written"):
        checkpoint.check_writable(tmp_path / "file" / "x.png")
    with pytest.raises(InputError, match="log.jsonl cannot be written"):
        Log(tmp_path / "none" / "log.jsonl").write({"event": "step", "images": 1})


def test_a_container_has_what_its_limit_leaves_and_caches_count_as_free(tmp_path):
    assert _container_memory(tmp_path) > 1 << 60  # no limit known
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\nactive_file 200\ninactive_file 400\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert _container_memory(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_memory(tmp_path) > 1 << 60
