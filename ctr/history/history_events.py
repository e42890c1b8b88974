"""Embedded event columns of histories, and their products.

Shapes: R rows (of a batch, or candidates of a request), H histories (R in a batch, 1 in a request), S positions,
E width of the embedded events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Events(ABC):
    """Embedded event columns of H histories."""

    @abstractmethod
    def embedded(self) -> Tensor:
        """Each event, [H, S, E]: a large tensor, for readers that need more than `dots` and `sums`."""

    @abstractmethod
    def dots(self, query_RE: Tensor) -> Tensor:
        """`query_r · events_s`, [R, S]."""

    @abstractmethod
    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs events_s`, [R, E]."""


class EmbeddedEvents(Events):
    """Events as one tensor.

    Args:
        events_HSE: embedded event columns.
    """

    def __init__(self, events_HSE: Tensor) -> None:
        self._events_HSE = events_HSE

    def embedded(self) -> Tensor:
        """The tensor, [H, S, E]."""
        return self._events_HSE

    def dots(self, query_RE: Tensor) -> Tensor:
        """`query_r · events_s`, [R, S]."""
        return (self._events_HSE @ query_RE.unsqueeze(-1)).squeeze(-1)

    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs events_s`, [R, E]."""
        return (weights_RS.unsqueeze(1) @ self._events_HSE).squeeze(1)
