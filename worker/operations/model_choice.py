"""How the requests of a command get their models, with what the endpoints say of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


class ModelFacts(Protocol):
    """What is known of the models that requests may name."""

    @property
    def only_model(self) -> str | None:
        """The one model that there is; None where there are several, or it is not known."""

    def choose_model(self, wanted: str | None) -> str:
        """The model to ask for: the wanted one unless it is refused, or the only one.

        Raises ModelMissing or Refused.
        """

    def check_models(self, wanted: Sequence[str]) -> list[str]:
        """What is doubtful about these models. Raises Refused where one of them is not to be had."""


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """How the input of a command gets its models: `wanted` is the one that was asked for, None where none was.

    `on_doubt` gets a sentence for each doubt about a model.
    """

    wanted: str | None
    facts: ModelFacts
    on_doubt: Callable[[str], None]

    def choose(self, *others: str | None) -> str:
        """The model of all requests: the wanted one, else the first of `others` that is named, else the only one.

        Raises ModelMissing or Refused.
        """
        chosen = self.facts.choose_model(self._first(others))
        self.check([chosen])
        return chosen

    def choose_default(self, *others: str | None) -> str | None:
        """The model of requests that name none; None where each must name its own. `others` as for `choose`.

        Doubts are told by `check`, once the models of all requests are known. Raises Refused.
        """
        wanted = self._first(others)
        if wanted is not None:
            return self.facts.choose_model(wanted)
        return self.facts.only_model

    def check(self, models: Sequence[str]) -> None:
        """Tells what is doubtful about these models. Raises Refused where the endpoint has one of them not."""
        for doubt in self.facts.check_models(models):
            self.on_doubt(doubt)

    def _first(self, others: Sequence[str | None]) -> str | None:
        return next((one for one in (self.wanted, *others) if one), None)
