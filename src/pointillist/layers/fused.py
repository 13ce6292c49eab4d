"""Projections whose rows are several matrices, and the matrices inside a network's blocks."""

from torch import nn

from pointillist.engine.muon import Rows


class Fused(nn.Linear):
    """A linear layer that computes several at once; it knows where each lies in its rows.

    Rows are arranged `(outer parts inner)`: with `outer` 1 the parts follow one another, and
    `chunk(parts, -1)` of the answer tells them apart; a larger `outer` repeats that arrangement.
    To torch, and in a state dict, it is an `nn.Linear`.
    """

    def __init__(
        self, in_features: int, out_features: int, parts: int, outer: int = 1, bias: bool = True
    ) -> None:
        assert out_features % (parts * outer) == 0
        super().__init__(in_features, out_features, bias)
        self.rows = Rows(parts, outer)


def hidden_weights(model: nn.Module) -> dict[nn.Parameter, Rows]:
    """Weights of the linear layers inside repeated blocks (any ModuleList), and how each splits.

    Embeddings, the first and last layers, norms and biases are not among them.
    """
    blocks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    return {
        m.weight: m.rows if isinstance(m, Fused) else Rows()
        for m in layers
        if isinstance(m.weight, nn.Parameter) and m.weight.requires_grad
    }
