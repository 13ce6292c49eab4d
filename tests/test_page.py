"""A page stands alone, is well-formed, and shows text as text."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from pointillist.figures import Scale, Series, chart
from pointillist.page import Html, cell, figure, page, picture, repeat, section, table

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Refuses tags that do not close in order; keeps what a test asks for."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.images = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """A <line .../> in a chart opens nothing."""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


NASTY = '</pre><script>alert("1")</script> & "quotes"'


@pytest.fixture
def whole():
    svg = chart([Series(NASTY, (1, 2), (3, 4))], title=NASTY, note="n = 2", x=Scale("x"),
                y=Scale("y"))  # fmt: skip
    return page(NASTY, [
        NASTY,
        section(NASTY, NASTY, figure(svg, NASTY), picture(torch.zeros(2, 3, 4, 4), NASTY, NASTY)),
        table([[NASTY, 1.5], [None, 12345]], [NASTY, "value"]),
        repeat({"label": NASTY, "nested": {"steps": 50}}, NASTY),
    ])  # fmt: skip


def test_a_page_is_well_formed_and_needs_nothing_else(whole):
    found = Checked(whole)
    assert len(found.images) == 1 and found.images[0]["alt"] == NASTY
    assert not re.search(r'(src|href)="(?!data:)', whole) and "url(" not in whole
    assert whole.startswith("<!doctype html>") and '<html lang="en">' in whole


def test_text_is_shown_as_text_everywhere(whole):
    assert "<script" not in whole
    text = Checked(whole).text
    # Title, heading 1 and 2, two paragraphs, the chart's own title and drawn title, two captions,
    # cell, head, summary; the legend is cut, and the chart's marks say more beside it.
    assert sum(one.strip() == NASTY for one in text) == 12
    facts = re.search(r"<pre>(.*?)</pre>", whole, re.S)[1]
    assert json.loads("".join(Checked(facts).text)) == {"label": NASTY, "nested": {"steps": 50}}


def test_an_embedded_picture_is_the_sheet_of_its_states():
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 3, 4)
    text = picture(x, "two", columns=2, scale=3)
    data = re.search(r"base64,([^\"]+)", text)[1]
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.size == (30, 9) and image.getpixel((0, 0)) == 0 and image.getpixel((29, 0)) == 255
    assert 'width="30" height="9"' in text
    larger = picture(image, "again", scale=2)
    assert 'width="60" height="18"' in larger and "figcaption" not in larger


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (12345, "12,345"), (0.0312345, "0.03123"), (123456.7, "123,457"), (True, "True"),
     ("a<b", "a&lt;b"), (Html("<b>x</b>"), "<b>x</b>"), (-0.5, "-0.5"), (2.0, "2")],
)  # fmt: skip
def test_cells_show_numbers_briefly(value, shown):
    assert cell(value) == shown
