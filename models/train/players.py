"""The update of two players, a generator and its discriminator, from one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from torch.optim import Optimizer

from models.train import distributed

if TYPE_CHECKING:
    from typing_extensions import Self

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Players:
    """A generator and its discriminator (several of them in one module), each with its optimiser.

    `precision` is autocast's; None computes in fp32.
    """

    generator: nn.Module
    discriminator: nn.Module
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    precision: torch.dtype | None = None

    def autocast(self) -> torch.autocast:
        """The context that forward passes run in."""
        device = next(self.generator.parameters()).device
        return torch.autocast(device.type, self.precision, enabled=self.precision is not None)

    def update(self, forward: Callable[[], tuple[Tensor, Tensor | None, Losses]]) -> Losses:
        """One update of both players. `forward` gives L_G, L_D and all terms, which are returned detached.

        Each loss is differentiated with respect to its own player's weights only: no weight gradient of D is computed
        for L_G, and L_D does not travel back through G. Both players are judged as they were before the update. One
        without a loss (L_D is None or constant) gets no gradient and keeps its weights. Nothing waits for the device.
        """
        both = ((self.discriminator, self.optimizer_d), (self.generator, self.optimizer_g))
        # Before the forward pass, because that is where memory runs short.
        for _, optimizer in both:
            optimizer.zero_grad()
        # One estimate of every spectral norm for all that a discriminator sees in a step.
        with self.autocast(), cached():
            loss_g, loss_d, terms = forward()
        if loss_d is not None and loss_d.requires_grad:
            loss_d.backward(inputs=_trainable(self.discriminator), retain_graph=True)
        loss_g.backward(inputs=_trainable(self.generator))
        for network, optimizer in both:
            distributed.average_gradients(network.parameters())
            optimizer.step()
        return {name: term.detach() for name, term in terms.items()}


class Step(ABC):
    """A training step: one update of two players. Subclasses are dataclasses with the field `players`."""

    players: Players

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Losses]:
        """L_G, L_D, and all terms before their weights."""

    def __call__(self, batch: Batch) -> Losses:
        """One update of both players; returns the terms before their weights, detached."""
        return self.players.update(lambda: self.forward(batch))

    def in_precision(self, precision: torch.dtype | None) -> Self:
        """The same step on the same networks, in autocast to `precision`, or in fp32 for None."""
        return replace(self, players=replace(self.players, precision=precision))


def _trainable(network: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in network.parameters() if parameter.requires_grad]
