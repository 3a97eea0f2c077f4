"""What is benchmarked: which model, of which shape, adapted in which layers; nothing heavy is imported for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

MODELS = ("bert", "byte_transformer", "roberta")
TARGETS = ("all", "qv")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and one batch; `targets` are all linear layers of its blocks, or their queries and values.

    `memory` says whether the memory of a step is measured as well as its time. Raises: ValueError for a shape
    that no model has.
    """

    model: str = "bert"
    width: int = 128
    layers: int = 4
    heads: int = 4
    batch_size: int = 8
    length: int = 32
    rank: int = 8
    targets: str = "all"
    precision: str = "float32"
    memory: bool = False

    def __post_init__(self) -> None:
        for knob, known in (("model", MODELS), ("targets", TARGETS), ("precision", PRECISIONS)):
            if getattr(self, knob) not in known:
                raise ValueError(f"{knob} is one of {', '.join(known)}; got {getattr(self, knob)!r}")
        for knob in ("width", "layers", "heads", "batch_size", "length", "rank"):
            if getattr(self, knob) < 1:
                raise ValueError(f"{knob} is at least 1; got {getattr(self, knob)}")
        if self.width % self.heads:
            raise ValueError(f"width is a multiple of heads; got {self.width} and {self.heads}")
        if self.rank > self.width:
            raise ValueError(f"rank is at most the width; got {self.rank} and {self.width}")

    @property
    def tokens(self) -> int:
        """Tokens in the batch."""
        return self.batch_size * self.length

    @property
    def label(self) -> str:
        """The case in a few words; what has its default is left out, apart from the shape."""
        usual = Case()
        parts = [f"{self.model} d={self.width}", f"{self.tokens:,} tokens"]
        parts += ["all linear" if self.targets == "all" else "q, v"]
        parts += [f"{knob} {getattr(self, knob)}" for knob in ("layers", "heads", "rank") if self.differs(usual, knob)]
        parts += [self.precision] if self.differs(usual, "precision") else []
        return ", ".join(parts)

    def differs(self, other: "Case", knob: str) -> bool:
        return bool(getattr(self, knob) != getattr(other, knob))


def standard_cases(precision: str) -> list[Case]:
    """Small to middling models where adapters cost most, and one batch that is large enough for memory to count."""
    return [
        *(Case(width=width, precision=precision) for width in (64, 128, 384)),
        *(Case(width=width, targets="qv", precision=precision) for width in (128, 384)),
        Case(model="byte_transformer", precision=precision),
        Case(batch_size=32, length=64, precision=precision, memory=True),
    ]


@dataclass(frozen=True, kw_only=True)
class PackCase:
    """Trials of one case that train together; their ranks go round in `ranks`, the case's own rank if there is one.

    Raises: ValueError for no rank, or one that the model has no room for.
    """

    case: Case
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ranks:
            raise ValueError("trials have a rank; got none")
        for rank in self.ranks:
            replace(self.case, rank=rank)

    @property
    def label(self) -> str:
        """The case in a few words, with the ranks where they differ."""
        if len(set(self.ranks)) == 1:
            return replace(self.case, rank=self.ranks[0]).label
        return f"{replace(self.case, rank=Case().rank).label}, ranks {', '.join(map(str, self.ranks))}"

    def sizes(self, asked: Sequence[int]) -> list[int]:
        """Those pack sizes in which every rank has as many trials."""
        return [trials for trials in asked if trials % len(self.ranks) == 0]


ROBERTA_BASE = Case(
    model="roberta", width=768, layers=12, heads=12, batch_size=8, length=128, precision="bfloat16", memory=True
)
SAME_BUCKET, SEVERAL_BUCKETS = (2, 4, 6, 8), (2, 4, 8, 16)  # ranks; 16 is padded to another length than the others


def packs_of(case: Case) -> PackCase:
    """Trials of a case that are all of its rank."""
    return PackCase(case=case, ranks=(case.rank,))


def standard_pack_cases(precision: str, device: str) -> list[PackCase]:
    """From steps that are all overhead to steps that fill a core; on a GPU a model of RoBERTa-base's size too."""
    bert = Case(precision=precision)
    bytes_ = Case(model="byte_transformer", width=64, precision=precision)
    cases = [
        *(packs_of(replace(bert, batch_size=rows, length=length)) for rows, length in ((1, 32), (8, 16), (8, 32))),
        packs_of(replace(bert, batch_size=1, targets="qv")),
        packs_of(replace(bytes_, batch_size=1)),
        *(PackCase(case=replace(bytes_, batch_size=4), ranks=ranks) for ranks in ((8,), SAME_BUCKET, SEVERAL_BUCKETS)),
    ]
    return cases + ([packs_of(ROBERTA_BASE)] if device == "cuda" else [])
