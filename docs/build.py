"""Turn the Markdown of docs/ and the project's root into HTML in out/docs, and check every link.

python docs/build.py
"""

import re
import shutil
import sys
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "docs"
STYLE = """body { font: 16px/1.6 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto;
padding: 0 1rem; color: #222 } pre { background: #f5f5f5; padding: .8rem; overflow-x: auto }
code { background: #f5f5f5 } table { border-collapse: collapse } img { max-width: 100% }
td, th { border-bottom: 1px solid #ddd; padding: .2rem .8rem; text-align: left }"""
LINK = re.compile(r'(?:href|src)="(?!https?:|#|mailto:)([^"#]+)')


def main() -> int:
    markdown = MarkdownIt("commonmark").enable("table")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    broken = []
    for page in pages:
        body = markdown.render(page.read_text(encoding="utf-8"))
        for link in LINK.findall(body):
            if not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link} is not there")
        body = re.sub(r'(href="(?!https?:)[^"#]+)\.md', r"\1.html", body)
        title = page.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        target = OUT / page.relative_to(ROOT).with_suffix(".html")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<style>{STYLE}</style>{body}</html>\n",
            encoding="utf-8",
        )
    images = ROOT / "docs" / "images"
    if images.is_dir():
        shutil.copytree(images, OUT / "docs" / "images", dirs_exist_ok=True)
    print("\n".join(broken) or f"{len(pages)} pages in {OUT.relative_to(ROOT)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
