"""What published checkpoints of each family are called and shaped like, and what that says.

A family is one record in `FAMILIES`: the names its weights have, how a configuration is read off
their shapes, and how they are renamed. What weights do not say is in `unsaid`, with the sentence
that asks for it.
"""

from pointillist.published.family import Family, Seen, bare, check_names, expand
from pointillist.published.patches import DIFFIT, DIT, JIT
from pointillist.published.pixelhdm import PIXELHDM
from pointillist.published.pixels import PIXELDIT, PIXNERD
from pointillist.published.text import PIXELDIT as PIXELDIT_TEXT
from pointillist.published.text import PIXNERD as PIXNERD_TEXT

FAMILIES = {
    "jit": JIT,
    "dit": DIT,
    "pixeldit": PIXELDIT,
    "pixeldit_text": PIXELDIT_TEXT,
    "pixnerd": PIXNERD,
    "pixnerd_text": PIXNERD_TEXT,
    "diffit": DIFFIT,
    "pixelhdm": PIXELHDM,
}

__all__ = ["FAMILIES", "Family", "Seen", "bare", "check_names", "expand"]
