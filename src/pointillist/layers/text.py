"""Captions, as features of a frozen encoder, to tokens that a network's own attend to."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pointillist.layers.attention import xavier_
from pointillist.layers.norm import RMSNorm
from pointillist.types import Given, InputError, Spec, Words


class Text(NamedTuple):
    """Tokens of the captions, and which of them are there (None: all)."""

    tokens: Float[Tensor, "b l d"]
    mask: Bool[Tensor, "b l"] | None


def words_of(spec: Spec, kind: str) -> Words:
    """What captions become; InputError where nobody reads them."""
    if spec.words is None:
        raise InputError(
            f"model.kind is {kind}, which reads captions, but these data come without an encoder "
            f"of text; set text.encoder=minilm"
        )
    return spec.words


def text_of(given: Given, words: Words, kind: str) -> Float[Tensor, "b l e"]:
    """Features of the captions; InputError where there are none, or they have another width."""
    if given.text is None:
        raise InputError(f"model {kind} reads captions, and none is given; give one, be it empty")
    width = given.text.shape[-1]
    if width != words.width:
        raise InputError(
            f"captions have features of width {width}, but model {kind} was built for "
            f"{words.width}; encode them by the encoder that it was trained with"
        )
    if given.text.shape[1] > words.length:
        raise InputError(
            f"captions have {given.text.shape[1]} tokens, but model {kind} reads {words.length}; "
            f"cut them, as text.length does"
        )
    return given.text


def pooled_of(given: Given, words: Words, kind: str) -> Float[Tensor, "b e"] | None:
    """The pooled vector of the captions, if there is one; InputError where it has another width."""
    if given.pooled is not None and given.pooled.shape[-1] != words.width:
        raise InputError(
            f"model {kind} is steered by a caption's pooled vector of width {words.width}, and one "
            f"of width {given.pooled.shape[-1]} is given; encode captions by the encoder that it "
            f"was trained with"
        )
    return given.pooled


class TextEmbedding(nn.Module):
    """norm(W text + b) + a learnt place for each of `words.length` tokens (PixNerd, PixelDiT).

    A shorter caption has the first places. Padding, where `attend_padding` is false, is hidden by
    the mask. Where it is true, captions are filled up to all places with zeros, for a network
    trained without a mask; the encoder's own answers to padding stood there in published training.
    """

    def __init__(self, words: Words, width: int, kind: str, attend_padding: bool) -> None:
        super().__init__()
        self.words, self.kind, self.attend_padding = words, kind, attend_padding
        self.project = nn.Linear(words.width, width)
        self.norm = RMSNorm(width)
        self.place = nn.Parameter(torch.empty(words.length, width))

    def initialise(self) -> None:
        """Xavier for the projection, N(0, 0.02) for the places."""
        xavier_(self)
        nn.init.normal_(self.place, std=0.02)

    def forward(self, given: Given) -> Text:
        """InputError where there is no caption, or one that the places do not hold."""
        text = text_of(given, self.words, self.kind)
        mask = None if self.attend_padding else given.text_mask
        length = text.shape[1]
        # What is read may not depend on the captions beside it; one without a mask has no padding.
        if self.attend_padding and given.text_mask is not None:
            text = F.pad(text, (0, 0, 0, self.words.length - length))
            length = self.words.length
        if mask is not None:  # whatever stands in the padding, NaN too
            text = text.masked_fill(~mask[..., None], 0)
        return Text(self.norm(self.project(text)) + self.place[:length], mask)
