"""Randomness as a function: (seed, sample, purpose, position) -> bits, uniforms, normals.

The function is Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
SC 2011).
A 64-bit mixer such as SplitMix64 would be about twice as fast here, but it has one input: four
coordinates would first have to be folded into it by a home-made hash that nobody has tested.
Philox takes them as they are: seed in the key; sample, position and the purpose's 32-bit word in
the 128-bit counter, so different draws never share a counter. It passes BigCrush and has published
test vectors, which the tests check. What it costs of a training step: `bench/overhead.py`.

Nothing here has a state: a draw is the same for every batch split, thread count and tile.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32 on four broadcastable int64 tensors that hold 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # A product of two 32-bit words may wrap in int64; its 64 bits are right all the same.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = (p1 >> 32).bitwise_and_(MASK).bitwise_xor_(c1).bitwise_xor_(k0)
        c2 = (p0 >> 32).bitwise_and_(MASK).bitwise_xor_(c3).bitwise_xor_(k1)
        c1, c3 = p1.bitwise_and_(MASK), p0.bitwise_and_(MASK)
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def purpose_word(purpose: str) -> int:
    """The 32-bit word that stands for a purpose such as "noise" or "time"."""
    return zlib.crc32(purpose.encode())


class Draw(NamedTuple):
    """All draws of some samples: `Draw(seed, index).normal("noise", (3, 32, 32))`."""

    seed: int
    index: Int[Tensor, " b"]  # type: ignore[assignment]

    def words(self, purpose: str, blocks: Int[Tensor, " k"]) -> Int[Tensor, "b 4*k"]:
        """Four 32-bit words (in int64) for every numbered block, block after block."""
        index = self.index[:, None].long()
        counter = (
            (blocks[None] & MASK).expand(index.shape[0], -1),
            (index & MASK).expand(-1, blocks.shape[0]),
            ((index >> 32) & MASK).expand(-1, blocks.shape[0]),
            torch.full_like(blocks[None], purpose_word(purpose)).expand(index.shape[0], -1),
        )
        key = (self.seed & MASK, (self.seed >> 32) & MASK)
        return torch.stack(philox(counter, key), -1).flatten(1)

    def bits(
        self, purpose: str, shape: tuple[int, ...] = (), tile: tuple[slice, ...] | None = None
    ) -> Int[Tensor, " b *shape"]:
        """32 random bits for every place of `shape`, or of the `tile` cut out of it."""
        if tile is None:
            count = math.prod(shape)
            blocks = torch.arange(-(-count // 4), device=self.index.device)
            return self.words(purpose, blocks)[:, :count].reshape(-1, *shape)
        places = torch.arange(math.prod(shape), device=self.index.device).view(shape)[tile]
        return self.at(self.words, purpose, places)

    @staticmethod
    def at(words: Callable[[str, Tensor], Tensor], purpose: str, places: Tensor) -> Tensor:
        """What `words` yields at numbered places, each block of four made once."""
        blocks, back = torch.unique(places.flatten() // 4, return_inverse=True)
        found = words(purpose, blocks)[:, back * 4 + places.flatten() % 4]
        return found.reshape(-1, *places.shape)

    def uniform(self, purpose: str, shape: tuple[int, ...] = ()) -> Float[Tensor, " b *shape"]:
        """Float32 in [0, 1): multiples of 2^-24, so 1 is never reached by rounding."""
        return (self.bits(purpose, shape) >> 8).float() * 2.0**-24

    def below(self, purpose: str, n: int, shape: tuple[int, ...] = ()) -> Int[Tensor, " b *shape"]:
        """Whole numbers in [0, n); n is far below 2^31, so the bias of n/2^32 does not matter."""
        return (self.bits(purpose, shape) * n) >> 32

    def normals(self, purpose: str, blocks: Int[Tensor, " k"]) -> Float[Tensor, "b 4*k"]:
        """Four normals for every numbered block: Box-Muller in float64, rounded once."""
        words = self.words(purpose, blocks).double()
        radius = words[:, 0::2].add_(1).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        angle = words[:, 1::2].mul_(2 * math.pi * 2.0**-32)
        return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1).float()

    def normal(
        self, purpose: str, shape: tuple[int, ...] = (), tile: tuple[slice, ...] | None = None
    ) -> Float[Tensor, " b *shape"]:
        """Standard normals in float32 for every place of `shape`, or of a `tile` cut out of it."""
        if tile is None:
            count = math.prod(shape)
            blocks = torch.arange(-(-count // 4), device=self.index.device)
            return self.normals(purpose, blocks)[:, :count].reshape(-1, *shape)
        places = torch.arange(math.prod(shape), device=self.index.device).view(shape)[tile]
        return self.at(self.normals, purpose, places)


def permutation(seed: int, number: int, purpose: str, n: int) -> Int[Tensor, " n"]:
    """The `number`-th random order of n things: places sorted by 62 random bits of their own."""
    draw = Draw(seed, torch.tensor([number]))
    high, low = draw.bits(purpose, (2, n))[0]
    return torch.argsort((high >> 1 << 31) | (low >> 1), stable=True)
