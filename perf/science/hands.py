"""Whether a symbol is found again as another hand draws it: a test without labels, on the emoji of `make data`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

DRAWN = re.compile(r"/([0-9a-f]+(?:-[0-9a-f]+)*)-(noto|twemoji|fluent)\.png$")  # symbol and hand in a name


def across_hands(features: Float[Tensor, "images dim"], names: Sequence[str]) -> float | None:
    """Share of the drawings whose nearest one by another hand, by cosine, is of the same symbol; None for other images.

    features: of unit length. Drawings of symbols that no other hand draws are left out as queries.
    """
    found = [DRAWN.search(name) for name in names]
    if not all(found):
        return None
    symbols, hands = (numbers([match[part] for match in found if match]) for part in (1, 2))
    others = hands[:, None] != hands[None]
    nearest = (features @ features.T).masked_fill(~others, -torch.inf).argmax(1)
    asked = ((symbols[:, None] == symbols[None]) & others).any(1)
    return float((symbols[nearest] == symbols)[asked].double().mean())


def numbers(words: Sequence[str]) -> Tensor:
    """A number for each word, [words] int64; equal words have the same."""
    known = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return torch.tensor([known[word] for word in words])
