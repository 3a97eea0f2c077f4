"""Trained tensors side by side in memory, one row a trial: what is done to a trial is done to one row."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lora_variants.interface.parameter_groups import ParameterGroup


class FlatParameters:
    """Parameters of one group that share a type and a device, with their gradients and moments: (trials, numbers) each.

    The parameters, their gradients and the moments that are given, (trials, ...), live in these rows from now on, as
    views in the memory layout that each parameter had. To a gradient that is in its row autograd adds, in place.
    """

    def __init__(
        self, group: ParameterGroup, parameters: Sequence[nn.Parameter], moments: Sequence[list[Tensor]]
    ) -> None:
        # What autograd says once a process of gradients that lie as ours do: nothing that has to be done about.
        warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        self.group, self.parameters = group, tuple(parameters)
        wholes = [p.detach() if group.trial_axis else p.detach()[None] for p in parameters]
        orders = [_in_memory(whole) for whole in wholes]
        self.values = _side_by_side(wholes, orders)
        self.gradients = torch.zeros_like(self.values)
        self.first, self.second = (_side_by_side([pair[i] for pair in moments], orders) for i in (0, 1))
        all_rows = (self.values, self.gradients, self.first, self.second)
        places = [rows.split([whole[0].numel() for whole in wholes], dim=1) for rows in all_rows]
        self.views: list[Tensor] = []
        for i, (parameter, whole, order) in enumerate(zip(self.parameters, wholes, orders, strict=True)):
            value, gradient, *moments[i][:] = (_shaped(place[i], whole, order) for place in places)
            value, gradient = (value, gradient) if group.trial_axis else (value[0], gradient[0])
            if parameter.grad is not None:
                gradient.copy_(parameter.grad)
            parameter.data, parameter.grad = value, gradient
            self.views.append(gradient)
        self.by_trial = list(zip(*(rows.unbind() for rows in all_rows), strict=True))

    def gather(self) -> None:
        """Have the gradients in the rows, also those that somebody has put elsewhere; what has none has zeros."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is not view:
                view.zero_() if parameter.grad is None else view.copy_(parameter.grad)
                parameter.grad = view


def _side_by_side(tensors: Sequence[Tensor], orders: Sequence[list[int]]) -> Tensor:
    """(trials, numbers of all tensors), each with its axes in this order."""
    return torch.cat([t.permute(order).flatten(1) for t, order in zip(tensors, orders, strict=True)], dim=1)


def _shaped(numbers: Tensor, like: Tensor, order: Sequence[int]) -> Tensor:
    """These numbers of all trials in the shape of a tensor whose axes lie in this order."""
    ordered = numbers.view(len(numbers), *(like.shape[axis] for axis in order[1:]))
    return ordered.permute([order.index(axis) for axis in range(like.ndim)])


def _in_memory(tensor: Tensor) -> list[int]:
    """The axes by decreasing stride, the trials' first."""
    return [0, *sorted(range(1, tensor.ndim), key=lambda axis: -tensor.stride()[axis])]
