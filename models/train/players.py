"""The update of two players, a generator and its discriminator, from one forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import cached
from torch.optim import Optimizer

from models.train import distributed

if TYPE_CHECKING:
    from typing_extensions import Self

Batch = Mapping[str, Tensor]
Losses = dict[str, Tensor]
Made = TypeVar("Made")


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
        self._clear()
        with self._computing():
            loss_g, loss_d, terms = forward()
        self._differentiate_d(loss_d)
        loss_g.backward(inputs=_trainable(self.generator))
        self._apply(self.discriminator, self.optimizer_d)
        self._apply(self.generator, self.optimizer_g)
        return {name: term.detach() for name, term in terms.items()}

    def update_in_turn(
        self,
        make: Callable[[], Made],
        judge_d: Callable[[Made], tuple[Tensor | None, Losses]],
        judge_g: Callable[[Made], tuple[Tensor, Losses]],
    ) -> Losses:
        """`update`, but D first: G is judged by what D has become.

        `make` runs G, whose outputs both L_D of `judge_d` and L_G of `judge_g` are of; each gives its terms too.
        """
        self._clear()
        with self._computing():
            made = make()
            loss_d, terms = judge_d(made)
        self._differentiate_d(loss_d)
        self._apply(self.discriminator, self.optimizer_d)
        with self._computing():
            loss_g, terms_g = judge_g(made)
        loss_g.backward(inputs=_trainable(self.generator))
        self._apply(self.generator, self.optimizer_g)
        return {name: term.detach() for name, term in {**terms, **terms_g}.items()}

    def _clear(self) -> None:
        """Drops both players' gradients, before the forward pass because that is where memory runs short."""
        for optimizer in (self.optimizer_d, self.optimizer_g):
            optimizer.zero_grad()

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """What losses are computed in; every spectral norm is estimated once for all that a discriminator sees."""
        with self.autocast(), cached():
            yield

    def _differentiate_d(self, loss: Tensor | None) -> None:
        if loss is not None and loss.requires_grad:
            loss.backward(inputs=_trainable(self.discriminator), retain_graph=True)

    @staticmethod
    def _apply(network: nn.Module, optimizer: Optimizer) -> None:
        distributed.average_gradients(network.parameters())
        optimizer.step()


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
