"""The pack: what the trials that train together over one frozen model share while they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass
class Pack:
    """Seeds, step counters and the present batch's rows of all trials; a single run is a pack of one.

    `seeds` are those of initialisation, and of dropout as well unless `dropout_seeds` says otherwise.

    The model sees `trials * rows` rows, trial-major. Whoever calls the model sets `rows` first.
    A trial that is not `running` has stopped: whatever a step does, it does not do to this trial. One that runs but
    is not `moving` skips this step, whose gradient is of no use: its step counts, but no gradient is read.
    """

    seeds: tuple[int, ...]
    total_steps: tuple[int, ...]
    rows: int = 0
    micro_step: int = 0
    enabled: bool = True
    steps: list[int] = field(default_factory=list)
    running: list[bool] = field(default_factory=list)
    moving: list[bool] = field(default_factory=list)
    dropout_seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.seeds or len(self.seeds) != len(self.total_steps):
            raise ValueError(
                f"a pack needs one seed and one number of steps a trial; "
                f"got {len(self.seeds)} seeds and {len(self.total_steps)} numbers of steps"
            )
        self.dropout_seeds = self.dropout_seeds or self.seeds
        if len(self.dropout_seeds) != len(self.seeds):
            raise ValueError(
                f"a pack needs one dropout seed a trial, or none at all; "
                f"got {len(self.dropout_seeds)} for {len(self.seeds)} trials"
            )
        if not self.steps:
            self.steps = [0] * len(self.seeds)
        self.running = self.running or [True] * len(self.seeds)
        self.moving = self.moving or [True] * len(self.seeds)

    @property
    def trials(self) -> int:
        return len(self.seeds)

    def by_trial(self, x: Float[Tensor, "leading *rest d"]) -> Float[Tensor, "trials n d"]:
        """The same numbers with the trial axis first: (trials * rows, ..., d) -> (trials, rows * ..., d).

        Raises: ValueError if the leading size is not trials * rows.
        """
        self.refuse_other_rows(x)
        return x.reshape(self.trials, -1, x.shape[-1])

    def refuse_other_rows(self, x: Tensor) -> None:
        """Raises: ValueError if the leading size is not trials * rows: such rows belong to no trial."""
        if len(self.seeds) > 1 and x.shape[0] != self.trials * self.rows:
            raise ValueError(
                f"an adapted layer got {x.shape[0]} rows but the pack has {self.trials} trials x "
                f"{self.rows} rows; this model sends something other than independent, trial-major rows "
                f"through the layer (shared position embeddings, sequence-first attention): "
                f"train it as a pack of one"
            )

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Adapters are off inside: the model computes with W0 alone (heads stay as trained)."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before
