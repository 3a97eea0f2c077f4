"""What is benchmarked: which model, of which shape, adapted in which layers; nothing heavy is imported for it."""

from dataclasses import dataclass

MODELS = ("bert", "byte_transformer")
TARGETS = ("all", "qv")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model and one batch; `targets` are all linear layers of its blocks, or their queries and values.

    `memory` says whether the memory of a step is measured besides its time. Raises: ValueError for a shape
    that no model has.
    """

    model: str = "bert"
    width: int = 128
    layers: int = 4
    heads: int = 4
    rows: int = 8
    length: int = 32
    rank: int = 8
    targets: str = "all"
    precision: str = "float32"
    memory: bool = False

    def __post_init__(self) -> None:
        for knob, known in (("model", MODELS), ("targets", TARGETS), ("precision", PRECISIONS)):
            if getattr(self, knob) not in known:
                raise ValueError(f"{knob} is one of {', '.join(known)}; got {getattr(self, knob)!r}")
        for knob in ("width", "layers", "heads", "rows", "length", "rank"):
            if getattr(self, knob) < 1:
                raise ValueError(f"{knob} is at least 1; got {getattr(self, knob)}")
        if self.width % self.heads:
            raise ValueError(f"width is a multiple of heads; got {self.width} and {self.heads}")
        if self.rank > self.width:
            raise ValueError(f"rank is at most the width; got {self.rank} and {self.width}")

    @property
    def label(self) -> str:
        """The case in a few words; what has its default is left out, apart from the shape."""
        usual = Case()
        parts = [f"{self.model} d={self.width}", f"{self.rows * self.length:,} tokens"]
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
        Case(rows=32, length=64, precision=precision, memory=True),
    ]
