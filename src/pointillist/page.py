"""A report as one HTML file that needs nothing else: text, tables, charts, embedded pictures.

Whatever is not `Html` is text and is escaped, so names of files, labels and captions cannot become
markup.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pointillist.pictures import contact_sheet, flat, png

STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h2 { margin-top: 2.5rem }
figure { display: inline-block; vertical-align: top; margin: 0 1rem 1rem 0; max-width: 100% }
figcaption { opacity: .75; font-size: .85rem }
img, svg { max-width: 100%; height: auto } svg.chart { color: inherit }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
td, th { padding: .2rem 1rem; text-align: right; border-bottom: 1px solid #8886 }
td:first-child, th:first-child { text-align: left; padding-left: 0 }
tbody th { font-weight: normal }
.wide { overflow-x: auto } pre { overflow-x: auto; padding: .8rem; background: #8882 }
"""


class Html(str):
    """Text that is markup already; everything else is escaped on its way onto a page."""


def markup(part: str) -> Html:
    """Markup as it is; plain text as a paragraph."""
    return part if isinstance(part, Html) else Html(f"<p>{escape(part)}</p>")


def page(title: str, sections: Iterable[str]) -> str:
    """The whole file; `sections` are from `section`, or anything that may stand in one."""
    body = "\n".join(map(markup, sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def section(heading: str, *parts: str) -> Html:
    """A heading and what stands below it, paragraph after picture after table."""
    return Html(f"<section><h2>{escape(heading)}</h2>\n" + "\n".join(map(markup, parts))
                + "</section>")  # fmt: skip


def table(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> Html:
    """Cells of text or numbers: four digits of a fraction, a dash for None."""
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in header)
    lines = "\n".join(
        "<tr>" + "".join(
            f"<td>{cell(one)}</td>" if at else f'<th scope="row">{cell(one)}</th>'
            for at, one in enumerate(row)
        ) + "</tr>"
        for row in rows
    )  # fmt: skip
    return Html(f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n'
                f"<tbody>{lines}</tbody></table></div>")  # fmt: skip


def cell(value: Any) -> str:
    """How a table shows a value."""
    if isinstance(value, Html):
        return value
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return escape(str(value))


def picture(
    shown: Image.Image | Float[Tensor, "b c *space"],
    text: str,
    caption: str = "",
    *,
    columns: int = 0,
    scale: int = 1,
) -> Html:
    """An image, or states in [-1, 1] as a sheet `columns` across, embedded as PNG.

    `text` is what is read out where the picture cannot be seen.
    """
    if isinstance(shown, Tensor):
        shown = contact_sheet(flat(shown), columns, scale=scale)
    elif scale != 1:
        size = (shown.width * scale, shown.height * scale)
        shown = shown.resize(size, Image.Resampling.NEAREST)
    data = base64.b64encode(png(shown)).decode()
    return figure(Html(f'<img alt="{escape(text)}" width="{shown.width}" height="{shown.height}" '
                       f'src="data:image/png;base64,{data}">'), caption)  # fmt: skip


def figure(drawn: str, caption: str = "") -> Html:
    """A chart of `figures`, or an embedded picture, with a caption below."""
    assert drawn.startswith(("<svg", "<img"))
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{drawn}{below}</figure>")


def repeat(facts: Mapping[str, Any], summary: str = "Everything needed to repeat it") -> Html:
    """A folded block with the facts as JSON, ready to be copied."""
    text = json.dumps(facts, indent=1, ensure_ascii=False, default=str)
    return Html(f"<details><summary>{escape(summary)}</summary>\n"
                f"<pre>{escape(text)}</pre></details>")  # fmt: skip
