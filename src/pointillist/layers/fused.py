"""Projections whose rows are several matrices, and the matrices inside a network's blocks."""

from torch import nn


class Fused(nn.Linear):
    """A linear layer that computes several at once: `chunk(parts, -1)` of its answer tells them
    apart, and so do as many equal pieces of its rows.

    To torch, and in a state dict, it is an `nn.Linear`; Muon takes it apart.
    """

    def __init__(self, in_features: int, out_features: int, parts: int, bias: bool = True) -> None:
        assert out_features % parts == 0
        super().__init__(in_features, out_features, bias)
        self.parts = parts


def hidden_weights(model: nn.Module) -> dict[nn.Parameter, int]:
    """Weights of the linear layers inside repeated blocks (any ModuleList), and their parts.

    Embeddings, the first and last layers, norms and biases are not among them.
    """
    blocks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = [m for block in blocks for m in block.modules() if isinstance(m, nn.Linear)]
    return {
        m.weight: m.parts if isinstance(m, Fused) else 1
        for m in layers
        if isinstance(m.weight, nn.Parameter) and m.weight.requires_grad
    }
