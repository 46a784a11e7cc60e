"""SASRec: the next item from the order of the last ones, by a transformer that looks back."""

import torch
from torch import Tensor

from recsys_lib.attention import present_tokens
from recsys_lib.models.core.next_item import NextItemRecommender

__all__ = ["SASRec"]


class SASRec(NextItemRecommender):
    """Self-attentive sequential recommendation: looks back only, and predicts the next item at every event.

        h_t = what the transformer makes of events 1 to t;   score of i after them: h_t . E_i

    From the paper: the causal transformer; one table of vectors for input and output, scaled by sqrt(d) on
    the way in; learned positions counted from the most recent event. The paper trains with ``loss="bce"`` and
    one negative. Unlike the paper: the blocks are ``attention.EncoderBlock`` (GELU and 4 d features inside
    the feed-forward layer, keys normalized as well as queries), and a long history is learned from as a
    whole. ``NextItemRecommender`` says how histories become windows and batches, and what the losses are.

    Source: Kang and McAuley 2018, "Self-Attentive Sequential Recommendation". On the losses: Petrov and
    Macdonald 2023, "gSASRec: Reducing Overconfidence in Sequential Recommendation Trained with Negative
    Sampling"; Klenitskiy and Vasilev 2023, "Turning Dross Into Gold Loss: is BERT4Rec really better than
    SASRec?".
    """

    causal = True

    def questions(
        self, windows: Tensor, lengths: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """At every event that has a next one: what comes next?"""
        hidden = self.encoder(windows[:, :-1], lengths - 1)  # (B, T - 1, d)
        asked = present_tokens(lengths - 1, windows.shape[1] - 1)  # (B, T - 1)
        return hidden[asked], windows[:, 1:][asked]

    def prompt(self, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The history as it is: its last event is where the next item is predicted."""
        return items, lengths
