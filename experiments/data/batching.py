"""Which rows a step trains on: rows of like length together, every row once an epoch, lengths that all seeds share.

Rows are sorted by length and cut into classes. The classes of a step and so its padded length follow from the data
alone; which rows of the class it takes is drawn from the seed. So the trials of a pack, whatever their seeds, have
batches of one length at every step, and a trial's numbers do not depend on who else is in its pack.
"""

from collections.abc import Iterator
from itertools import count

import torch
from jaxtyping import Int
from torch import Tensor

from lora_variants.interface.rng import stream

MULTIPLE = 8  # of padded lengths: shapes in multiples of 8 keep packs bit-exact
BATCHES_IN_CLASS = 8


def padded_length(length: int) -> int:
    """The least multiple of 8 that holds a row of this length."""
    return -(-length // MULTIPLE) * MULTIPLE


def training_order(
    lengths: Int[Tensor, " all"], rows: int, seed: int, *, spare: int = 0
) -> Iterator[tuple[Int[Tensor, " rows"], int]]:
    """Without end (places of `rows` rows, length of the longest row of their classes).

    Where the rows of the classes are not all of that length, `spare` is added to it: then every row of every trial
    is padded, instead of those of one trial and by chance not those of another.
    Rows are seen once an epoch: any `len(lengths)` rows from a multiple of that on are all rows, once each. A batch
    in which one epoch ends takes its other rows from the next.
    """
    classes = _classes(lengths, rows)
    longest = torch.empty_like(lengths)
    for places in classes:
        among = lengths[places]
        longest[places] = among.max() + spare * int(among.min() < among.max())
    waiting = torch.empty(0, dtype=torch.long)
    for epoch in count():
        waiting = torch.cat([waiting, _epoch(classes, rows, len(waiting), seed, epoch)])
        full = len(waiting) // rows * rows
        for start in range(0, full, rows):
            batch = waiting[start : start + rows]
            yield batch, int(longest[batch].max())
        waiting = waiting[full:]


def evaluation_order(lengths: Int[Tensor, " all"], rows: int) -> Iterator[tuple[Int[Tensor, " rows"], int]]:
    """Every row once, the shortest first."""
    for batch in torch.argsort(lengths, stable=True).split(rows):
        yield batch, int(lengths[batch].max())


def back_in_order(lengths: Int[Tensor, " all"]) -> Int[Tensor, " all"]:
    """Where each row comes in `evaluation_order`: what was found in that order, taken at these places, is in order."""
    return torch.argsort(torch.argsort(lengths, stable=True))


def _classes(lengths: Tensor, rows: int) -> list[Tensor]:
    """Places of the rows by length; each class fills whole batches, what is left over is in the last, the longest."""
    size = rows * BATCHES_IN_CLASS
    whole = max(1, len(lengths) // size)
    order = torch.argsort(lengths, stable=True)
    return list(order.tensor_split([size * i for i in range(1, whole)]))


def _epoch(classes: list[Tensor], rows: int, waiting: int, seed: int, epoch: int) -> Tensor:
    """All rows once, in blocks of one class that fall onto batches after `waiting` rows of the epoch before."""
    drawn = stream(seed, "data", epoch)
    shuffled = [places[torch.randperm(len(places), generator=drawn)] for places in classes]
    last = shuffled.pop()
    first = min(-waiting % rows, len(last))
    ends = (len(last) - first) // rows * rows + first
    blocks = [block for places in (*shuffled, last[first:ends]) for block in places.split(rows)]
    order = torch.randperm(len(blocks), generator=stream(0, "lengths", epoch)).tolist()
    return torch.cat([last[:first], *(blocks[i] for i in order), last[ends:]])
