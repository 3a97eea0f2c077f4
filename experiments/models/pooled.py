"""A text encoder with the mean of its last hidden states and one linear layer as classifier."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn


class Logits(NamedTuple):
    """What a forward returns: `.logits`, as the models of transformers do."""

    logits: Float[Tensor, "rows labels"]


class MeanPooled(nn.Module):
    """`body` is a model whose output has `.last_hidden_state`; `classifier` is the head, always in float32.

    The body stands under the name that it has inside its own classification model ('bert', 'transformer', 'model'),
    so that layers have the same names with either kind of head, and adapters of one fit the other.
    """

    def __init__(self, body: nn.Module, *, name: str, width: int, labels: int) -> None:
        super().__init__()
        self.add_module(name, body)
        self.body_name = name
        self.classifier = nn.Linear(width, labels)

    @property
    def base_model(self) -> nn.Module:
        return self.get_submodule(self.body_name)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **more: Tensor) -> Logits:
        """All (rows, length); a row's mean is over the places where its mask is 1, at least one of them.

        `more` is what else the body takes: BERT's token_type_ids.
        """
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state.float()
        kept = attention_mask[..., None].to(hidden.dtype)  # (rows, length, 1)
        return Logits(self.classifier((hidden * kept).sum(dim=1) / kept.sum(dim=1)))
