"""Models that are trained by gradient descent: everything but what they are and what they minimize."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor, nn

from recsys_lib.data import Interactions
from recsys_lib.devices import resolve_device, seed_generator
from recsys_lib.metrics import ndcg
from recsys_lib.models.core.contract import Recommender
from recsys_lib.models.core.options import learned, option
from recsys_lib.models.core.starting import Start
from recsys_lib.ranking import HeldOut, Scorer, seen_in, top_lists
from recsys_lib.training import Steps, Validation, train

__all__ = ["TrainedRecommender", "validation_ndcg"]

Examples = TypeVar("Examples")

_CUTOFF = 10  # of the NDCG on which training stops
_USERS_AT_ONCE = 1024


class TrainedRecommender(Recommender, Generic[Examples]):
    """A model whose parameters are learned from examples by Adam, in epochs.

    With a validation set, training stops when NDCG@10 on it has not grown for ``patience`` checks, and the
    best state is restored. ``best_epoch`` says when that was: the number of ``epochs`` for a refit on all
    data.

    A subclass makes its parameters in ``build`` and implements

    - ``prepare(events, generator)``: gives them their first values, and returns the examples to learn from;
    - ``losses(examples, generator)``: one epoch, the loss of each batch in turn.

    Attributes:
        log: one dictionary an epoch: its number, the mean loss, and NDCG@10 where it was checked.
        best_epoch: the epoch whose state was kept.
        stopped_by: ``"epochs"``, ``"patience"``, ``"time"`` or ``"interrupt"``; see ``training.Training``.
    """

    epochs: int = option("passes over the examples, at most", default=50, at_least=1)
    learning_rate: float = option("of Adam", default=0.001, above=0)
    batch_size: int = option("examples in a step", default=2048, at_least=1)
    patience: int = option(
        "checks on validation without improvement before training stops", default=5, at_least=1
    )
    check_every: int = option("epochs between checks on validation", default=4, at_least=1)
    seed: int = option("of everything random", default=0)

    log: list[dict[str, float]] = learned("one dictionary an epoch")
    best_epoch: int = learned("the epoch whose state was kept")
    stopped_by: str = learned("what ended training, see ``training.Training``")

    def __post_init__(self) -> None:
        """Starts with an empty log."""
        super().__post_init__()
        self.log, self.best_epoch, self.stopped_by = [], 0, ""
        self._start: Start | None = None

    def start_from(
        self,
        other: nn.Module,
        parts: Sequence[str] | Mapping[str, str],
        *,
        rates: Mapping[str, float] | None = None,
        frozen: Iterable[str] | Mapping[str, int | None] | None = None,
    ) -> Self:
        """Lets ``fit`` begin with parts that another model has learned, in place of random ones.

        ::

            SASRec().start_from(pretrained, ["encoder"], rates={"encoder": 0.1}).fit(events)

        A part is a submodule or a parameter by its name: ``"encoder"``, ``"encoder.item_embedding"``. Their
        values are copied now; ``other`` may go on learning.

        Args:
            other: the model, such as ``SASRec.from_pretrained(folder)``.
            parts: their names, or the names here with the names there.
            rates: parts that learn at a share of ``learning_rate``: those nearest to the input change least
                (Howard and Ruder 2018, "Universal Language Model Fine-tuning for Text Classification",
                section 3.2). Of two parts that hold a parameter the smaller one counts.
            frozen: parts that stay as they are; with numbers, for so many epochs, after which they learn as
                well (section 3.3 of the same paper, gradual unfreezing).

        Returns:
            The model itself, not yet fitted.

        Raises:
            KeyError: ``other`` has no such part.
            TypeError: one name in place of a list.
            ValueError: no part, or a rate or a number of epochs that is not above zero. And from ``fit``: a
                part with another shape, other tensors or other items; the message names it.
        """
        self._start = Start.of(other, parts, rates, frozen)
        return self

    @abstractmethod
    def prepare(self, events: Interactions, generator: torch.Generator) -> Examples:
        """Sets the parameters' first values and makes the examples.

        Args:
            events: training events, on the model's device.
            generator: of random numbers, on that device.

        Returns:
            Whatever ``losses`` learns from.
        """

    @abstractmethod
    def losses(self, examples: Examples, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch: yields for each batch its loss (), and how many examples it is the mean of.

        Each is computed when it is asked for, after the step that the one before has led to.
        """

    def figure(self, held_out: HeldOut, seen: Interactions) -> tuple[str, Callable[[], float]]:
        """The name of what is looked at on validation, and what measures it: NDCG@10 over the catalog."""
        return f"ndcg@{_CUTOFF}", lambda: validation_ndcg(self, held_out, seen)

    def slower(self) -> list[tuple[nn.Module, float]]:
        """Parts with a learning rate of their own; none by default."""
        return []

    def steps(self, examples: Examples) -> Steps | None:
        """How steps are taken; None for the plain way."""
        return None

    def losses_from(
        self, examples: Examples, generator: torch.Generator, epoch: int = 1, done: int = 0
    ) -> Iterator[tuple[Tensor, int]]:
        """The losses of an epoch; where there are ``steps``, of which one, and how much of it is done."""
        return self.losses(examples, generator)

    def _fit(self, interactions: Interactions, validation: Interactions | None, progress: bool) -> None:
        generator = seed_generator(self.seed, interactions.items.device)
        examples = self.prepare(interactions, generator)
        look = None
        if validation is not None:
            held_out = _to_find(validation, interactions)
            look = Validation(*self.figure(held_out, interactions), self.check_every, self.patience)
        self._train(examples, generator, look, progress)

    def _train(
        self, examples: Examples, generator: torch.Generator, look: Validation | None, progress: bool
    ) -> None:
        """Minimizes the losses of the examples."""
        start, slower, epochs = self._start, self.slower(), count(1)
        if start is not None:
            start.copy_into(self, self.n_items, self.item_ids)
            slower = start.groups(self, slower, self.learning_rate)

        def losses(*place: int) -> Iterable[tuple[Tensor, int]]:
            if start is not None:
                start.freeze(self, place[0] if place else next(epochs))
            return self.losses_from(examples, generator, *place)

        try:
            done = train(
                self,
                losses,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                slower=slower,
                steps=self.steps(examples),
                validation=look,
                max_seconds=self.max_seconds,
                name=type(self).__name__,
                progress=progress,
            )
        finally:
            self.requires_grad_(True)  # what was frozen is free again
        self.log, self.best_epoch, self.stopped_by = done.log, done.best_epoch, done.stopped_by

    def _place(self, interactions: Interactions) -> torch.device:
        return resolve_device("auto")


def validation_ndcg(model: Scorer, held_out: HeldOut, seen: Interactions) -> float:
    """Mean NDCG@10 of lists without what was seen: the evaluation's quantity, without its extras."""
    k = min(_CUTOFF, model.n_items)
    items, _ = top_lists(
        model, held_out.users, k, seen_in(seen), batch_size=_USERS_AT_ONCE, progress=False
    )  # (U, k)
    return float(ndcg(held_out.hits(items), held_out.n_relevant).mean())


def _to_find(validation: Interactions, seen: Interactions) -> HeldOut:
    """What validation holds out, or an error in the words of ``fit``."""
    if not len(validation):
        raise ValueError("the validation set has no events")
    try:
        return HeldOut.of(validation, seen)
    except ValueError as error:
        raise ValueError(
            "nothing is held out: every validation item is among its user's training events"
        ) from error
