"""Small towers that learn from large ones."""

from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.models.core.options import option
from recsys_lib.models.core.towers import HistoryAttention
from recsys_lib.models.two_tower import TwoTower, UserItemPairs
from recsys_lib.negatives import known_columns
from recsys_lib.training import batches

__all__ = ["DistilledTwoTower"]


class DistilledTwoTower(TwoTower):
    """Two towers that are told what larger ones think of the whole catalog, beside what was chosen.

        L = (1 - a) loss of the two towers + a KL(teacher || student)

    An event says of one item that it was chosen. The teacher says of every item how likely it was, to a
    person with this history: its scores over its temperature are a softmax over the catalog, and so are the
    student's. The teacher reads what the student reads, the events before the one that is asked for.

    Where the loss corrects for popularity (``log_q``), scores are logarithms of what is chosen, in both.

    Source: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2; for
    recommenders Tang and Wang 2018, "Ranking Distillation: Learning Compact Ranking Models With High
    Performance for Recommender System".
    """

    share: float = option("a, the teacher's share of the loss", default=0.5, at_least=0, at_most=1)
    dim: int = option(default=16)

    def __post_init__(self) -> None:
        """Starts without a teacher."""
        super().__post_init__()
        self.taught_by(None)

    def taught_by(self, teacher: TwoTower | None) -> Self:
        """Names the teacher, before ``fit``.

        ::

            DistilledTwoTower(dim=16).taught_by(large).fit(split.train)

        Args:
            teacher: fitted two towers of the same items, whose users are known by their histories. None
                leaves the events as all that is learned from. It is no part of the model: it learns nothing,
                and is not saved.

        Returns:
            The model itself, not yet fitted.
        """
        self.__dict__["teacher"] = teacher  # past ``nn.Module``, which would make it a part
        return self

    def prepare(self, events: Interactions, generator: torch.Generator) -> UserItemPairs:
        """As two towers do, once it is known that the teacher fits."""
        teacher: TwoTower | None = self.__dict__["teacher"]
        if teacher is not None:
            if teacher.n_items != self.n_items:
                raise ValueError(
                    f"the teacher knows {teacher.n_items} items, and the events are of {self.n_items}"
                )
            if not (self.reads_histories and teacher.reads_histories):
                raise ValueError(
                    'a teacher and its student both read histories here; take another user_tower than "id"'
                )
            if isinstance(self.user, HistoryAttention):
                raise ValueError(
                    'the student\'s user_tower may be "history_mean" or "text", not attention, which learns '
                    "from windows"
                )
        return super().prepare(events, generator)

    def losses(self, examples: UserItemPairs, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the examples, shuffled."""
        teacher: TwoTower | None = self.__dict__["teacher"]
        if teacher is None:
            yield from super().losses(examples, generator)
            return
        everything = torch.arange(self.n_items, device=self.device)  # (n_items,)
        known = teacher.encode_items().to(self.device).mT / teacher.temperature  # (D, n_items)
        for batch in batches(len(examples.users), self.batch_size, generator):
            users, items = examples.users[batch], examples.items[batch]  # (B,), (B,)
            stretches = examples.read, examples.starts[batch], examples.lengths[batch]
            vectors = self.history_side(*stretches)  # (B, d)
            left_out = None
            if self.masked == "known":
                left_out = known_columns(examples.crow, examples.own, users, items)  # (B, B)
            told = self.objective(vectors, users, items, left_out, examples, generator)  # ()
            with torch.no_grad():
                read = teacher.history_side(*(x.to(teacher.device) for x in stretches))  # (B, D)
                thinks = (teacher.scaled(read).to(self.device) @ known).softmax(1)  # (B, n_items)
            scores = self.scaled(vectors) @ self.scaled(self.item_side(everything)).mT  # (B, n_items)
            ours = (scores / self.temperature).log_softmax(dim=1)  # (B, n_items)
            gap = functional.kl_div(ours, thinks, reduction="batchmean")  # ()
            yield (1 - self.share) * told + self.share * gap, len(batch)
