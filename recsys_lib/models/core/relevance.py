"""How relevant one text is to another: a pre-trained encoder that reads both at once, and a head."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from recsys_lib.attention import TransformerEncoder, padding_mask
from recsys_lib.data.download import cache_root
from recsys_lib.data.ragged import offsets, row_of_each, within_rows
from recsys_lib.models.core.windows import by_length
from recsys_lib.text import from_bert_state, pool
from recsys_lib.text.pairs import PairBatch, PairTokenizer, TokenTable

__all__ = ["KeptStates", "PairReader", "Relevance"]

# Features of tokens (padding included) that go through the encoder at once: what fits a CPU's caches, and
# fills an accelerator.
_FEATURES_AT_ONCE = {"cpu": 2**18}
_FEATURES_AT_ONCE_ELSEWHERE = 2**24

# Where published cross-encoders keep their head: those of BERT a pooler and a classifier, those of RoBERTa
# both in one.
_HEADS = (
    {"dense": "bert.pooler.dense", "out": "classifier"},
    {"dense": "classifier.dense", "out": "classifier.out_proj"},
)
_POOLERS = ("pooler.dense", "bert.pooler.dense")


class Relevance(nn.Module):
    """An encoder over the tokens of two texts, and a head that makes one number of what it found.

    Every token of the one text attends to every token of the other in each block, so what a word of the one
    means can depend on words of the other.

    Args:
        encoder: of the library's own kind.
        head: "linear": a linear map of the pooled tokens. "pooler": of a layer with tanh, as in BERT.
        pooling: how tokens become one vector, see ``text.pool``.
        dropout: share of the pooled features dropped in training, before the map.
        frozen_layers: 0 freezes nothing; k the embeddings and the first k blocks, which then learn nothing
            and drop nothing.

    Raises:
        ValueError: fewer blocks than are to be frozen.

    Source: Nogueira and Cho 2019, "Passage Re-ranking with BERT", section 3.
    """

    def __init__(
        self,
        encoder: TransformerEncoder,
        *,
        head: str = "linear",
        pooling: str = "mean",
        dropout: float = 0.0,
        frozen_layers: int = 0,
    ) -> None:
        super().__init__()
        n_blocks, dim = len(encoder.blocks), encoder.token_embedding.embedding_dim
        if frozen_layers > n_blocks:
            raise ValueError(f"frozen_layers={frozen_layers}, but the encoder has {n_blocks} blocks")
        self.encoder, self.pooling, self.frozen_layers = encoder, pooling, frozen_layers
        self.dense = nn.Linear(dim, dim) if head == "pooler" else None
        self.out = nn.Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)
        self.has_published_head = False
        for module in self._frozen():
            module.requires_grad_(False)

    @classmethod
    def from_folder(
        cls, folder: Path, *, dropout: float, head: str, pooling: str, frozen_layers: int
    ) -> "Relevance":
        """With the published weights in a folder; where there is a head for one number among them, it too.

        Raises:
            ValueError: it is no BERT or RoBERTa, or its weights are in several files.
        """
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not (folder / "model.safetensors").is_file():
            raise ValueError(f"{folder} has no model.safetensors; save the model anew, into one file")
        state = load_file(folder / "model.safetensors")
        body = {name: weight for name, weight in state.items() if "classifier" not in name}
        encoder = from_bert_state(body, {**config, "hidden_dropout_prob": dropout}).float()
        found = cls(encoder, head=head, pooling=pooling, dropout=dropout, frozen_layers=frozen_layers)
        found._take_head(state)
        return found

    @torch.no_grad()
    def _take_head(self, state: dict[str, Tensor]) -> None:
        """Fills the head from published weights, as far as they have one of this form."""
        if self.dense is None:
            return
        for names in _HEADS:
            out = state.get(f"{names['out']}.weight")
            if out is not None and out.shape == self.out.weight.shape and f"{names['dense']}.weight" in state:
                for module, name in ((self.dense, names["dense"]), (self.out, names["out"])):
                    module.weight.copy_(state[f"{name}.weight"])
                    module.bias.copy_(state[f"{name}.bias"])
                self.has_published_head = True
                return
        for name in _POOLERS:
            if f"{name}.weight" in state:
                self.dense.weight.copy_(state[f"{name}.weight"])
                self.dense.bias.copy_(state[f"{name}.bias"])

    def _frozen(self) -> list[nn.Module]:
        if not self.frozen_layers:
            return []
        encoder = self.encoder
        tables = (encoder.token_embedding, encoder.segment_embedding, encoder.position_embedding)
        blocks = list(encoder.blocks)[: self.frozen_layers]
        parts: list[nn.Module | None] = [*tables, encoder.embedding_norm, encoder.dropout, *blocks]
        return [part for part in parts if part is not None]

    def train(self, mode: bool = True) -> "Relevance":
        """Training mode, for what is not frozen."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def lower(self, ids: Tensor, present: Tensor, segments: Tensor) -> Tensor:
        """What goes into the first block that learns: (B, T) each to (B, T, d)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_layers):
            # A RoBERTa has one kind of segment, and its tokenizer counts one.
            x = self.encoder.embed(ids, segments)  # (B, T, d)
            mask = padding_mask(present)  # (B, 1, 1, T)
            for block in list(self.encoder.blocks)[: self.frozen_layers]:
                x = block(x, mask)  # (B, T, d)
        return x

    def upper(self, hidden: Tensor, present: Tensor) -> Tensor:
        """The scores, from what ``lower`` gave: (B, T, d), (B, T) to (B,)."""
        mask = padding_mask(present)  # (B, 1, 1, T)
        for block in list(self.encoder.blocks)[self.frozen_layers :]:
            hidden = block(hidden, mask)  # (B, T, d)
        pooled = pool(self.encoder.output_norm(hidden), present, self.pooling)  # type: ignore[arg-type]  # (B, d)
        pooled = pooled.to(self.out.weight.dtype)
        if self.dense is not None:
            pooled = torch.tanh(self.dense(pooled))  # (B, d)
        return self.out(self.dropout(pooled)).squeeze(1)  # (B,)

    def forward(self, ids: Tensor, present: Tensor, segments: Tensor) -> Tensor:
        """Token numbers, presence and segments (B, T) to scores (B,)."""
        return self.upper(self.lower(ids, present, segments), present)


class PairReader:
    """Scores pairs of tokenized texts, those of like length together, so that little padding is read.

    Args:
        model: on its device.
        tokenizer: joins pairs.
    """

    def __init__(self, model: Relevance, tokenizer: PairTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device = model.out.weight.device

    def scores(self, first: TokenTable, i: Tensor, second: TokenTable, j: Tensor) -> Tensor:
        """Scores of pairs, text i of the first table with text j of the second: (N,), (N,) to (N,).

        The indices are on the CPU; the scores on the model's device, with gradients where these are wanted.
        """
        parts, order = [], []
        for rows, batch in self._batches(first, i, second, j):
            parts.append(self.model(*self._here(batch)).float())  # (b,)
            order.append(rows)
        return self._in_order(parts, order)

    def keep_lower(self, first: TokenTable, i: Tensor, second: TokenTable, j: Tensor) -> "KeptStates":
        """What the frozen layers make of pairs, computed once and kept in a file."""
        lengths = self.tokenizer.lengths(first.lengths[i], second.lengths[j])  # (N,)
        kept = KeptStates(lengths, self.model.out.weight.shape[1])
        with torch.no_grad():
            for rows, batch in self._batches(first, i, second, j):
                ids, present, segments = self._here(batch)
                kept.write(rows, self.model.lower(ids, present, segments).float().cpu())
        return kept

    def scores_of_kept(self, kept: "KeptStates", rows: Tensor) -> Tensor:
        """Scores of kept pairs, (N,) int64 on the CPU: (N,), as ``scores`` gives them."""
        parts, order = [], []
        for batch in by_length(kept.lengths[rows], self._budget):
            hidden, present = kept.read(rows[batch])  # (b, T, d), (b, T)
            here = hidden.to(self.device, self.model.out.weight.dtype)
            parts.append(self.model.upper(here, present.to(self.device)).float())  # (b,)
            order.append(batch)
        return self._in_order(parts, order)

    @property
    def _budget(self) -> int:
        features = _FEATURES_AT_ONCE.get(self.device.type, _FEATURES_AT_ONCE_ELSEWHERE)
        return max(1, features // self.model.out.weight.shape[1])

    def _batches(
        self, first: TokenTable, i: Tensor, second: TokenTable, j: Tensor
    ) -> Iterator[tuple[Tensor, PairBatch]]:
        lengths = self.tokenizer.lengths(first.lengths[i], second.lengths[j])  # (N,)
        for rows in by_length(lengths, self._budget):
            yield rows, self.tokenizer.join(first, i[rows], second, j[rows])

    def _here(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        ids, present, segments = (x.to(self.device) for x in batch)
        return ids, present, segments

    def _in_order(self, parts: list[Tensor], order: list[Tensor]) -> Tensor:
        """Scores of batches (b,) each, put back where their pairs were: (N,)."""
        if not parts:
            return torch.zeros(0, device=self.device)
        return torch.cat(parts)[torch.cat(order).argsort().to(self.device)]


class KeptStates:
    """Vectors of the tokens of N pairs, in a file that goes with the object.

    Args:
        lengths: (N,) int64, tokens of each pair, on the CPU.
        dim: d, features of a token.

    Raises:
        OSError: the file would not fit on the disk.
    """

    def __init__(self, lengths: Tensor, dim: int) -> None:
        self.lengths, self.crow = lengths, offsets(lengths)
        place = cache_root() / "states"
        place.mkdir(parents=True, exist_ok=True)
        needed, free = int(lengths.sum()) * dim * 4, shutil.disk_usage(place).free
        if needed > free:
            raise OSError(
                f"what the frozen layers make of {len(lengths):,} pairs takes {needed / 1e9:,.1f} GB, and "
                f"{place} has {free / 1e9:,.1f} GB left; set cache_frozen=False, or learn from fewer examples"
            )
        self._folder = tempfile.TemporaryDirectory(dir=place)
        file = Path(self._folder.name) / "states.f32"
        self._states = np.memmap(file, np.float32, "w+", shape=(max(1, int(lengths.sum())), dim))

    def _places(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        crow = offsets(self.lengths[rows])  # (b + 1,)
        row, within = row_of_each(crow), within_rows(crow)  # (E,)
        return row, within, self.crow[rows][row] + within

    def write(self, rows: Tensor, hidden: Tensor) -> None:
        """Keeps the vectors (b, T, d) of pairs (b,); what is beyond a pair's length is padding."""
        row, within, place = self._places(rows)
        self._states[place.numpy()] = hidden[row, within].numpy()

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of pairs (b,), zero at padding, and where they are: (b, T, d), (b, T) bool."""
        row, within, place = self._places(rows)
        length, dim = int(self.lengths[rows].max()), self._states.shape[1]
        hidden = torch.zeros(len(rows), length, dim, device="cpu")  # (b, T, d)
        hidden[row, within] = torch.as_tensor(self._states[place.numpy()], device="cpu")
        return hidden, torch.arange(length, device="cpu") < self.lengths[rows][:, None]  # (b, T)
