"""What docs/sparse.md prints is run: its toy training, every command, and its Python."""

import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pointillist import cli

PAGE = Path(__file__).parents[1] / "docs" / "sparse.md"
SHORT = {"train.images=4k": "train.images=256", "train.save_every=2k": "train.save_every=128"}


def blocks() -> list[str]:
    """Indented text, line continuations joined."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    return [re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in found]


def commands() -> list[list[str]]:
    lines = "".join(blocks()).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("pointillist ")]


def test_the_page_trains_first_and_shows_every_command_of_its_subject():
    words = commands()
    assert words[0][1] == "train" and set(SHORT) <= set(words[0])
    assert {line[1] for line in words} == {"train", "show", "reconstruct", "upscale"}


@pytest.mark.slow
def test_the_page_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, size in (("face", 32), ("large", 64)):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(f"{name}.png")
    hole = np.full((32, 32), 255, np.uint8)
    hole[8:20, 10:26] = 0
    Image.fromarray(hole).save("hole.png")
    (table,) = [block for block in blocks() if block.startswith("x,y,")]
    Path("pixels.csv").write_text(table)
    for words in commands():
        monkeypatch.setattr(sys, "argv", [SHORT.get(word, word) for word in words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, (words, capsys.readouterr().err)
        if words[1] in ("reconstruct", "upscale"):
            default = f"out/{words[1]}"
            out = Path(words[words.index("--out") + 1] if "--out" in words else default)
            pictures = max(1, len({"face.png", "large.png"} & set(words)))
            for name in ("observed.png", "mean.png", "triptych.png", "facts.json"):
                assert len(list(out.rglob(name))) == pictures, (words, name)
            shutil.rmtree(out)
    (script,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    names: dict = {}
    exec(compile(script, str(PAGE), "exec"), names)
    assert names["big"].shape == (3, 64, 64) and names["post"].mean.isfinite().all()
