"""The cross-encoder: one encoder reads the user's history and the candidate together."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.data import Interactions
from recsys_lib.data.ragged import offsets
from recsys_lib.devices import resolve_device, seed_generator
from recsys_lib.losses import bce_loss, bpr_loss, sampled_softmax_loss
from recsys_lib.metrics import ndcg
from recsys_lib.models.core.checks import check_interactions
from recsys_lib.models.core.fine_tuned import batches_of_like_length
from recsys_lib.models.core.labelled_pairs import LabelledPairs, checked_labels, checked_pairs
from recsys_lib.models.core.lists import checked_candidates, draw_lists
from recsys_lib.models.core.options import check_options, data, option
from recsys_lib.models.core.relevance import KeptStates
from recsys_lib.models.core.text_pairs import ReadsTextPairs
from recsys_lib.models.core.windows import strictly_before
from recsys_lib.negatives import NegativeSampler
from recsys_lib.ranking import HeldOut
from recsys_lib.text.pairs import TokenTable

__all__ = ["CrossEncoder", "TextLists"]

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "bce": bce_loss,
    "bpr": bpr_loss,
    "softmax": sampled_softmax_loss,
}

_GIVE_TEXT = "CrossEncoder reads the items' texts: give text=, one text an item"


@dataclass(frozen=True)
class TextLists:
    """What a cross-encoder learns from: for each event what its user had done before, and what was chosen.

    Attributes:
        texts: the distinct histories.
        history: (E,) int64, which of them.
        users: (E,) int64.
        targets: (E,) int64, the item that was chosen.
        candidates: (E, C) int64, -1 at padding, of which negatives are drawn; None takes the catalog.
        sampler: draws from the catalog.
        lists: (E, 1 + K) int64, where they stay the same in all epochs.
        kept: what the frozen layers make of these lists' pairs, and which row is which pair's, (E, 1 + K).
    """

    texts: TokenTable
    history: Tensor
    users: Tensor
    targets: Tensor
    candidates: Tensor | None
    sampler: NegativeSampler
    lists: Tensor | None = None
    kept: tuple[KeptStates, Tensor] | None = None


class CrossEncoder(ReadsTextPairs[TextLists | LabelledPairs]):
    """Reads the user's recent history and the candidate's text as one sequence, and gives it one score.

        s(u, i) = head(encoder("newest; ...; oldest" [SEP] "candidate"))

    Two towers meet in a dot product, after each has said all it has to say. Here every word of the candidate
    attends to every word of the history, in each layer. The price: nothing can be computed in advance, and a
    catalog costs a pass of the encoder for each user and item. So it ranks few candidates that another model
    has found: ``rank(users, candidates)``.

    **Words.** ``predict`` and ``rank`` take users and items as any model does, or texts::

        model.predict([("a slow drama", "Tokyo Story (1953)"), ("a slow drama", "Speed (1994)")])  # (2,)
        model.rank("a slow drama", ["Speed (1994)", "Tokyo Story (1953)"])  # positions, scores

    Texts can be asked before ``fit`` where ``text_model`` is a published cross-encoder, which has a head
    (``head="pooler"``, ``pooling="cls"``). For those who are no users, ``rank_histories`` orders items by a
    history, and ``rank_texts`` by a text that is read in its place; so a ``Pipeline`` answers for them.

    **Objectives.** Each event is an example: its item, and ``n_negatives`` others. ``"bce"`` judges each pair
    by itself (``losses.bce_loss``), ``"bpr"`` the target against each other one (``losses.bpr_loss``),
    ``"softmax"`` the target against the list (``losses.sampled_softmax_loss``, uniform draws). Negatives are
    drawn anew in each epoch, from the items that the user does not have; or from ``candidates``, so that
    training lists look like those that will be ranked.

    Where someone has judged pairs of texts, ``fit_pairs(pairs, labels)`` learns from these. ``"bce"`` then
    judges each pair by its label; the other two hold a pair against those of its query with a lower label.

    **No leak.** What is read of a history are the user's events of strictly earlier times. A first event has
    an empty history, from which the model learns what to say of those of whom nothing is known.

    **Cost.** Pairs of like length share a batch. ``frozen_layers`` keeps the embeddings and the lowest blocks
    as they were published; with ``cache_frozen`` their output is computed once for all epochs and kept in a
    file, for lists that then stay the same.

    Source: Nogueira and Cho 2019, "Passage Re-ranking with BERT", section 3 (pointwise); Burges 2010, "From
    RankNet to LambdaRank to LambdaMART: An Overview", section 2 (pairwise); Cao, Qin, Liu, Tsai, Li 2007,
    "Learning to Rank: From Pairwise Approach to Listwise Approach", section 4 (listwise, top one).
    """

    loss: str = option("what a chosen item is held against", default="softmax", choices=tuple(_LOSSES))
    n_negatives: int = option("other items in an example", default=4, at_least=1)
    cache_frozen: bool = option("compute the frozen layers' output once", default=False)
    max_examples: int | None = option(
        "events that an epoch learns from, drawn anew in each; all by default", default=None, at_least=1
    )
    check_users: int = option("users that a check on validation ranks for", default=100, at_least=1)
    check_items: int = option("items that it ranks for each", default=100, at_least=2)
    epochs: int = option(default=1)
    learning_rate: float = option(default=1e-3)
    batch_size: int = option(default=32)
    check_every: int = option(default=1)
    candidates: Tensor | None = data(
        "(E, C) int64, for each event of ``fit`` the items to draw its negatives from, -1 at padding",
        default=None,
    )

    def __post_init__(self) -> None:
        """Checks what concerns two options."""
        super().__post_init__()
        if self.cache_frozen and not self.frozen_layers:
            raise ValueError("cache_frozen needs frozen_layers of 1 or more: nothing else stays the same")

    # Learning from labels.

    def fit_pairs(
        self,
        pairs: Sequence[tuple[str, str]],
        labels: Sequence[float] | Tensor,
        interactions: Interactions | None = None,
        *,
        device: str | torch.device = "auto",
        max_seconds: float | None = None,
        progress: bool = True,
    ) -> Self:
        """Learns from pairs of texts that someone has judged; a second call, or ``fit``, starts over.

        ::

            model = CrossEncoder(loss="bce").fit_pairs([("a slow drama", "Tokyo Story"), ...], [1.0, ...])
            model.rank("a slow drama", ["Speed (1994)", "Tokyo Story (1953)"])

        Args:
            pairs: N of a query and a document.
            labels: (N,) how well they fit, a larger number for better. With ``loss="bce"`` from 0 to 1; with
                the others any numbers, of which two different ones of a query are compared.
            interactions: users, items and histories that it shall answer for as well; the items' texts come
                from ``text``. Nothing is learned from them, and ``Pipeline.assemble`` takes it as it is.
                None: it answers for texts alone.
            device: as for ``fit``; ``"auto"`` takes an accelerator where there is one.
            max_seconds: as for ``fit``.
            progress: show a bar on long work.

        Returns:
            The model itself.

        Raises:
            TypeError: something that is no pair of texts, or no number.
            ValueError: no pairs, another number of labels, labels that the loss cannot take, no two documents
                of a query with different labels, or interactions without texts of their items.
        """
        check_options(self)
        queries, documents = checked_pairs(pairs)
        if not queries:
            raise ValueError(f"{type(self).__name__}.fit_pairs needs at least one pair, got none")
        numbers = checked_labels(labels, len(queries), probabilities=self.loss == "bce")  # (N,)
        if interactions is not None:
            check_interactions(interactions, f"{type(self).__name__}.fit_pairs")
        place = resolve_device(device)

        def learn() -> None:
            if interactions is not None:
                if not self.item_text.filled:
                    raise ValueError(_GIVE_TEXT)
                self._keep_histories(interactions.to(place))
            table, i, j = self._distinct(queries, documents)
            examples = LabelledPairs.of(table, i, j, numbers, by_list=self.loss != "bce")
            if self.cache_frozen:
                self.scorer.eval()
                kept = self._reader().keep_lower(table, examples.first, table, examples.second)
                self.scorer.train()
                examples = replace(examples, kept=kept)
            self._train(examples, seed_generator(self.seed, place), None, progress)

        known = interactions
        sizes = (0, 0) if known is None else (known.n_users, known.n_items)
        ids = (None, None) if known is None else (known.user_ids, known.item_ids)
        self._learn(learn, place, sizes, ids, max_seconds)
        return self

    def _losses_of_labels(
        self, examples: LabelledPairs, epoch: int, done: int
    ) -> Iterator[tuple[Tensor, int]]:
        """One epoch over pairs that were judged, those of like length together."""
        reader, generator, alone = self._reader(), self.epoch_generator(epoch), self.loss == "bce"
        chosen = self._chosen(len(examples.targets), generator)  # (N,)
        lists = examples.lists(chosen, 0 if alone else self.n_negatives, generator)  # (N, 1 + K)
        first, second = examples.first[lists[:, 0]], examples.second[lists[:, 0]]  # (N,), (N,)
        lengths = examples.texts.lengths[first] + examples.texts.lengths[second]  # (N,)
        order = batches_of_like_length(lengths, self.batch_size, self.epoch_generator(epoch, "order"))
        for batch in order[done:]:
            row, column = (lists[batch] >= 0).nonzero(as_tuple=True)  # (P,), (P,)
            pairs = lists[batch][row, column]  # (P,)
            if examples.kept is not None:
                found = reader.scores_of_kept(examples.kept, pairs)  # (P,)
            else:
                i, j = examples.first[pairs], examples.second[pairs]  # (P,), (P,)
                found = reader.scores(examples.texts, i, examples.texts, j)  # (P,)
            if alone:
                labels = examples.labels[pairs].to(found.device)  # (B,)
                yield functional.binary_cross_entropy_with_logits(found, labels), len(batch)
            else:
                yield self._loss_of_lists(found, row, column, (len(batch), lists.shape[1])), len(batch)

    def _loss_of_lists(self, found: Tensor, row: Tensor, column: Tensor, shape: tuple[int, int]) -> Tensor:
        """The loss () of scores (P,) that stand at places of lists (B, 1 + K), the chosen ones first."""
        scores = found.new_full(shape, -torch.inf)  # (B, 1 + K)
        scores = scores.index_put((row.to(found.device), column.to(found.device)), found)
        return _LOSSES[self.loss](scores[:, 0], scores[:, 1:])

    # Learning from events.

    def prepare(self, events: Interactions, generator: torch.Generator) -> TextLists:
        """Each event is an example, with what its user had done strictly before."""
        if not self.item_text.filled:
            raise ValueError(_GIVE_TEXT)
        order = self._keep_histories(events)  # (E,)
        events = events.to("cpu")
        starts = offsets(events.user_counts())[events.users].tolist()  # (E,)
        items, before = events.items[order].tolist(), strictly_before(events).tolist()
        said = self._said(
            [
                items[max(0, n - self.max_history) + start : start + n]
                for start, n in zip(starts, before, strict=True)
            ]
        )
        place = {text: number for number, text in enumerate(dict.fromkeys(said))}
        crow, own = events.csr()
        learnable = crow.diff()[events.users] < self.n_items  # (E,) of users for whom there is something else
        candidates = checked_candidates(self.candidates, events, self.n_items)  # (E, C)
        if candidates is not None:
            learnable &= ((candidates >= 0) & (candidates != events.items[:, None])).any(dim=1)
            candidates = candidates[learnable]
        examples = TextLists(
            texts=self._reader().tokenizer.table(list(place), keep=True),
            history=torch.tensor([place[text] for text in said], device="cpu")[learnable],
            users=events.users[learnable],
            targets=events.items[learnable],
            candidates=candidates,
            sampler=NegativeSampler(crow, own, self.n_items),
        )
        return self._with_kept(examples) if self.cache_frozen and len(examples.targets) else examples

    def _with_kept(self, examples: TextLists) -> TextLists:
        """The examples with lists for all epochs, and what the frozen layers make of them."""
        chosen = self._chosen(len(examples.targets), self.epoch_generator(0))  # (N,)
        lists = self._lists(examples, chosen, self.epoch_generator(0))  # (N, 1 + K)
        there = lists >= 0  # (N, 1 + K)
        row, column = there.nonzero(as_tuple=True)  # (P,), (P,)
        place = there.flatten().cumsum(0).view(there.shape) - 1  # (N, 1 + K)
        history = examples.history[chosen]  # (N,)
        self.scorer.eval()
        kept = self._reader().keep_lower(examples.texts, history[row], self._items(), lists[row, column])
        self.scorer.train()
        return TextLists(
            texts=examples.texts,
            history=history,
            users=examples.users[chosen],
            targets=examples.targets[chosen],
            candidates=None,
            sampler=examples.sampler,
            lists=lists,
            kept=(kept, place),
        )

    def _chosen(self, n: int, generator: torch.Generator) -> Tensor:
        """The examples of an epoch, of n that there are, (N,) int64."""
        if self.max_examples is None or self.max_examples >= n:
            return torch.arange(n, device="cpu")  # (E,)
        return torch.randperm(n, generator=generator, device="cpu")[: self.max_examples].sort()[0]  # (N,)

    def _lists(self, examples: TextLists, rows: Tensor, generator: torch.Generator) -> Tensor:
        """The target and K others for each of some examples, -1 where there are fewer: (N, 1 + K)."""
        targets = examples.targets[rows]  # (N,)
        if examples.candidates is not None:
            others = draw_lists(examples.candidates[rows], targets, self.n_negatives, generator)  # (N, K)
        else:
            others = examples.sampler.sample(examples.users[rows], self.n_negatives, generator)  # (N, K)
        return torch.cat([targets[:, None], others], dim=1)  # (N, 1 + K)

    def n_batches(self, examples: TextLists | LabelledPairs) -> int:
        """Batches in an epoch."""
        n = len(examples.targets)
        return -(-min(n, self.max_examples or n) // self.batch_size)

    def contents(self, examples: TextLists | LabelledPairs) -> Iterator[bytes]:
        """Who chose what after what, in which words, out of which candidates; or who judged what how."""
        tensors: list[Tensor | None]
        if isinstance(examples, LabelledPairs):
            every = torch.arange(len(examples.texts), device="cpu")  # (T,)
            tokens = examples.texts.take(every, examples.texts.lengths)
            tensors = [examples.first, examples.second, examples.labels, examples.texts.lengths, tokens]
        else:
            tensors = [examples.history, examples.users, examples.targets, examples.candidates]
        for tensor in (*tensors, *self.item_text.buffers(), *self.read_text.buffers()):
            if tensor is not None:
                yield hashlib.sha256(tensor.cpu().contiguous().numpy().data).digest()

    def epoch_losses(
        self, examples: TextLists | LabelledPairs, epoch: int, done: int
    ) -> Iterator[tuple[Tensor, int]]:
        """One epoch over the examples, those of like length together."""
        if isinstance(examples, LabelledPairs):
            yield from self._losses_of_labels(examples, epoch, done)
            return
        reader, lists, history = self._reader(), examples.lists, examples.history  # (N, 1 + K), (N,)
        if lists is None:
            generator = self.epoch_generator(epoch)
            chosen = self._chosen(len(examples.targets), generator)  # (N,)
            lists, history = self._lists(examples, chosen, generator), history[chosen]
        lengths, shuffle = examples.texts.lengths[history], self.epoch_generator(epoch, "order")  # (N,)
        order = batches_of_like_length(lengths, self.batch_size, shuffle)
        for batch in order[done:]:
            row, column = (lists[batch] >= 0).nonzero(as_tuple=True)  # (P,), (P,)
            if examples.kept is not None:
                kept, place = examples.kept
                found = reader.scores_of_kept(kept, place[batch][row, column])  # (P,)
            else:
                items = lists[batch][row, column]  # (P,)
                found = reader.scores(examples.texts, history[batch][row], self._items(), items)  # (P,)
            yield self._loss_of_lists(found, row, column, (len(batch), lists.shape[1])), len(batch)

    def figure(self, held_out: HeldOut, seen: Interactions) -> tuple[str, Callable[[], float]]:
        """NDCG@10 of some users, each with lists of what to find among other items, drawn once.

        It is no estimate of NDCG over the catalog, which would cost a pass of the encoder for each user and
        item; it says when this one model has stopped getting better.
        """
        generator = self.epoch_generator(0, "order")
        rows = torch.randperm(len(held_out.users), generator=generator, device="cpu")[: self.check_users]
        rows = rows.sort()[0]  # (U,)
        users = held_out.users[rows]  # (U,)
        relevant = held_out.relevant[torch.isin(held_out.relevant // self.n_items, users)]  # (R,)
        some = HeldOut(users, held_out.n_relevant[rows], relevant, self.n_items)
        crow, own = (x.cpu() for x in seen.csr())
        candidates = torch.full((len(users), self.check_items), -1, device="cpu")  # (U, C)
        for row, user in enumerate(users.tolist()):
            find = relevant[relevant // self.n_items == user] % self.n_items
            other = torch.ones(self.n_items, dtype=torch.bool, device="cpu")  # (I,)
            other[own[crow[user] : crow[user + 1]]] = False
            other[find] = False
            others = other.nonzero().squeeze(1)
            others = others[torch.randperm(len(others), generator=generator, device="cpu")]
            mixed = torch.cat([find, others])[: self.check_items]
            candidates[row, : len(mixed)] = mixed

        def measure() -> float:
            was_training = self.training
            self.eval()
            items, _ = self.rank(users, candidates)  # (U, C)
            self.train(was_training)
            return float(ndcg(some.hits(items[:, :10]), some.n_relevant).mean())

        return f"ndcg@10 among {self.check_items}", measure
