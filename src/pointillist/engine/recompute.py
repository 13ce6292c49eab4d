"""Activation checkpointing: a block keeps only what comes in and is computed again for gradients.

Memory of the activations falls from all blocks' to one block's and every block's input, at the
price of a second forward (Chen et al. 1604.06174).
"""

import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the model's lists that are made of layers, none inside of another."""
    for module in model.children():
        members = list(module) if isinstance(module, nn.ModuleList) else []
        if members and all(map(_is_block, members)):
            yield from members
        else:
            yield from blocks_of(module)


def _is_block(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList) and next(module.children(), None) is not None


def recompute_blocks(model: nn.Module) -> nn.Module:
    """Checkpoint every block of `model`, in place; names of weights stay what they are."""
    for block in blocks_of(model):
        block.forward = functools.partial(_recomputed, block.forward)
    return model


def _recomputed(forward: Callable[..., Any], *args: Any, **more: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **more)
    # Dropout is a function of sample and layer (`layers/dropout.py`): no generator to set back, but
    # backward on CUDA runs in threads that know nothing of the samples unless they are told.
    inside = functools.partial(contextvars.copy_context().run, forward)
    return checkpoint(inside, *args, use_reentrant=False, preserve_rng_state=False, **more)
