"""Splits that a data set does not have: shares of its training rows, and a limit of what is trained on."""

from collections.abc import Mapping

import torch

from experiments.data.reading import DataError
from lora_variants.interface.rng import stream


def split_rows(
    rows: int, shares: Mapping[str, float], *, seed: int, contiguous: bool = False, limit: int | None = None
) -> dict[str, list[int]]:
    """Places of the rows of each split, in order: `shares` of all go to those splits, the rest is for training.

    Shuffled by the seed, which is not the run's; contiguous: training first, then each share in turn. With a
    `limit`, training keeps that many of its rows, drawn by the same seed; the other splits do not depend on it.
    Raises: DataError for a split without a row.
    """
    order = torch.arange(rows) if contiguous else torch.randperm(rows, generator=stream(seed, "split"))
    sizes = {split: round(share * rows) for split, share in shares.items()}
    kept = rows - sum(sizes.values())
    for split, size in {"train": kept, **sizes}.items():
        if size < 1:
            raise DataError(f"{split} has none of {rows} rows: give it a larger share, or the data more rows")
    found, after = {}, kept
    for split, size in sizes.items():
        found[split] = sorted(order[after : after + size].tolist())
        after += size
    train = order[:kept]
    if limit is not None and limit < kept:
        train = train[torch.randperm(kept, generator=stream(seed, "limit"))[:limit]] if contiguous else train[:limit]
    return {"train": sorted(train.tolist()), **found}
