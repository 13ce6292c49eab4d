"""Known pixels on the grid of patches: values and mask."""

from jaxtyping import Float
from torch import Tensor, nn

from pointillist.layers.observations import hint_channels
from pointillist.layers.patch import patchify
from pointillist.types import Given


class HintPatches(nn.Module):
    """Linear, without bias, from the c value channels and the mask of a patch to the width.

    Start it at zero, so that hints change nothing until they are learnt; without a bias, "nothing
    known" adds nothing ever.
    """

    def __init__(self, channels: int, axes: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.channels, self.patch_size = channels, patch_size
        self.linear = nn.Linear((channels + 1) * patch_size**axes, width, bias=False)

    def channels_of(self, given: Given, size: tuple[int, ...]) -> Float[Tensor, "b d *space"]:
        """`hint_channels` of what is given; one row of zeros where nothing is."""
        return hint_channels(given, self.channels, size, self.linear.weight.device)

    def forward(self, hints: Float[Tensor, "b d *space"]) -> Float[Tensor, "b n d2"]:
        return self.linear(patchify(hints, self.patch_size))
