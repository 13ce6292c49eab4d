#!/usr/bin/env python3
"""Make the embedded emoji set from the Noto pictures.

    tools/build_emoji.py SOURCE     SOURCE holds noto64.zip and emoji.jsonl (emoji-datasource-google
                                    16.0.0 as 64-pixel WebP; captions of emojibase-data 17.0.0)

Writes lossless WebP sheets of 32 x 32 pictures on white, in the order of emoji.jsonl, and one line
of JSON a picture: caption, category, codepoints, and the codepoints of its base emoji.
"""

import gzip
import io
import json
import re
import sys
import zipfile
from pathlib import Path

from PIL import Image

EDGE, ACROSS = 64, 32
OUT = Path(__file__).resolve().parents[1] / "src" / "pointillist" / "data" / "assets"


def base(codepoints: str) -> str:
    """The emoji without skin tones (1f3fb to 1f3ff) and variation selectors."""
    return re.sub(r"-?(1f3f[b-f]|fe0f)", "", codepoints.lower()).strip("-") or codepoints


def main(source: Path) -> None:
    rows = [json.loads(line) for line in (source / "emoji.jsonl").open(encoding="utf-8")]
    pictures = []
    with zipfile.ZipFile(source / "noto64.zip") as archive:
        for row in rows:
            picture = Image.open(io.BytesIO(archive.read(row["images"]["noto64"]))).convert("RGBA")
            ground = Image.new("RGBA", picture.size, "white")
            pictures.append(Image.alpha_composite(ground, picture).convert("RGB"))
    OUT.mkdir(exist_ok=True)
    for number, first in enumerate(range(0, len(pictures), ACROSS * ACROSS)):
        sheet = Image.new("RGB", (EDGE * ACROSS, EDGE * ACROSS), "white")
        for i, picture in enumerate(pictures[first : first + ACROSS * ACROSS]):
            sheet.paste(picture, (i % ACROSS * EDGE, i // ACROSS * EDGE))
        sheet.save(OUT / f"emoji_{number}.webp", lossless=True, quality=100, method=6)
    untoned = {row["caption"]: base(row["codepoints"]) for row in rows if not tone(row)}
    lines = []
    for row in rows:
        own = base(row["codepoints"])
        if tone(row) and own not in untoned.values():
            # Two people of two tones have other codepoints than the emoji they are variants of.
            # ("kiss: person, person, ..." is plainly "kiss" without its tones.)
            name = without_tones(row["caption"])
            own = untoned.get(name) or untoned[name.split(":")[0]]
        kept = {"caption": row["caption"], "category": row["category"],
                "codepoints": row["codepoints"], "base": own}  # fmt: skip
        lines.append(json.dumps(kept, ensure_ascii=False) + "\n")
    with (OUT / "emoji.jsonl.gz").open("wb") as file:
        with gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            packed.write("".join(lines).encode())


def without_tones(caption: str) -> str:
    """The caption of the untoned emoji: "man: dark skin tone, beard" becomes "man: beard"."""
    name, _, details = caption.partition(": ")
    kept = [one for one in details.split(", ") if one and not one.endswith("skin tone")]
    return f"{name}: {', '.join(kept)}" if kept else name


def tone(row: dict) -> bool:
    return bool(row["skin_tone_variant"])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
