"""Einstein summation two tensors at a time, so that each product can be followed and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def contract(equation: str, *operands: Tensor) -> Tensor:
    """`torch.einsum` of one tensor or two."""
    return torch.einsum(equation, *operands)


def pairwise(equation: str, operands: Sequence[T]) -> list[tuple[str, list[T | None]]] | None:
    """The steps from left to right, as torch goes, each of two operands; None stands for the step before.

    None where the equation has an ellipsis or takes a diagonal.

    >>> pairwise("bht,bhtd,hdw->bw", ["a", "v", "o"])
    [('bht,bhtd->bhd', ['a', 'v']), ('bhd,hdw->bw', [None, 'o'])]
    """
    before, arrow, after = equation.replace(" ", "").partition("->")
    terms = before.split(",")
    if "." in equation or any(len(set(term)) < len(term) for term in terms):
        return None
    if not arrow:
        after = "".join(sorted(letter for letter in set(before) - {","} if before.count(letter) == 1))
    if len(terms) == 1:
        return [(f"{before}->{after}", list(operands))]
    steps: list[tuple[str, list[T | None]]] = []
    left: str = terms[0]
    held: T | None = operands[0]
    for number, right in enumerate(terms[1:], 1):
        later = "".join(terms[number + 1 :]) + after
        last = number == len(terms) - 1
        made = after if last else "".join(letter for letter in dict.fromkeys(left + right) if letter in later)
        steps.append((f"{left},{right}->{made}", [held, operands[number]]))
        left, held = made, None
    return steps
