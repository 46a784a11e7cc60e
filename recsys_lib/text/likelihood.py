"""How likely a language model finds a text, given another: the model asked directly, with no vector between.

    log p(c | p) = sum over t of log p(c_t | p, c_1 ... c_{t-1}),   for the tokens c_t of a continuation c

A prompt stands before many continuations, such as a history before twenty films. What the model remembers of
it, the keys and values of its tokens (Vaswani et al. 2017, section 3.2), is computed once.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recsys_lib.devices import resolve_device
from recsys_lib.progress import progress_bar
from recsys_lib.text.encoder import float_type
from recsys_lib.text.pretrained import load_transformers, longest_text, model_folder
from recsys_lib.text.strings import as_strings

__all__ = ["CausalLM", "Likelihoods"]

# Tokens in a batch, the prompt's counted once for each of its continuations; and numbers in one table of
# logits, of which a vocabulary of 262,144 makes many.
_TOKENS_PER_BATCH = {"cpu": 1024}
_TOKENS_PER_BATCH_ELSEWHERE = 16_384
_LOGITS_AT_ONCE = 1 << 26


class Likelihoods(NamedTuple):
    """What a model says of N continuations.

    Attributes:
        log_likelihood: (N,) float32, the natural logarithm of a continuation's probability, after its prompt.
        tokens: (N,) int64, the number of its tokens.
    """

    log_likelihood: Tensor
    tokens: Tensor

    def per_token(self) -> Tensor:
        """(N,) the mean over a continuation's tokens, zero where there are none."""
        return self.log_likelihood / self.tokens.clamp(min=1)


class CausalLM:
    """A language model that is asked how likely texts are.

    **How a pair is read.** The prompt is tokenized alone, with the special tokens that the tokenizer puts at
    the start (Gemma's ``<bos>``); one that it puts at the end is left out. The continuation is tokenized
    alone, without special tokens, and its numbers follow. So a prompt has the same tokens before every
    continuation, and a continuation the same after every prompt, which is what makes likelihoods comparable.
    The joined text, tokenized as one, may be cut elsewhere: let the prompt end in no blank, and the
    continuation start with it, as words do in most vocabularies.

    A prompt that is empty, in a tokenizer without a starting token, leaves the first token of the
    continuation unpredicted: that is refused.

    Args:
        name_or_path: A folder that holds a model, such as ``gemma_folder()``, or a name on the Hugging Face
            hub.
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.
        dtype: The type that the model computes in: float32, bfloat16 or float16. Probabilities are added in
            float32.

    Raises:
        ValueError: The model has no safetensors file, or the type is none of the three.
        FileNotFoundError: The folder does not exist or holds no model, or the hub does not know the name.
        ConnectionError: The hub cannot be reached, and the model was not fetched before.
    """

    def __init__(
        self,
        name_or_path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = torch.float32,
    ) -> None:
        self.name = str(name_or_path)
        self.device, self.dtype = resolve_device(device), float_type(dtype)
        self.folder = model_folder(name_or_path)
        self._loaded: tuple[Any, Any, int] | None = None

    def __repr__(self) -> str:
        return f"CausalLM({self.name!r}, device={self.device}, {self.dtype})"

    @property
    def model(self) -> Any:
        """The ``transformers`` model with its head, in evaluation mode."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        """The ``transformers`` tokenizer."""
        return self._load()[1]

    @property
    def max_length(self) -> int:
        """The longest prompt and continuation together, in tokens."""
        return self._load()[2]

    def log_likelihood(
        self,
        prompts: Iterable[Any],
        continuations: Iterable[Any],
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Likelihoods:
        """How likely each of N continuations is after its prompt, log p(continuation | prompt).

        Pairs of one prompt are computed together, wherever they stand. Continuations of like length share a
        batch.

        Args:
            prompts: N strings, many of them equal.
            continuations: N strings.
            batch_size: Continuations in a batch; when not given, as many as make a good number of tokens.
            progress: Show a bar when it takes longer than a second.

        Returns:
            In the order of the pairs, on the model's device. An empty continuation has no token and the
            logarithm 0.

        Raises:
            TypeError: One string instead of a list of them, or something that is no text.
            ValueError: There are not as many of one as of the other, a pair is longer than the model reads,
                or a prompt has no token.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        before, after = as_strings(prompts), as_strings(continuations)
        if len(before) != len(after):
            raise ValueError(f"{len(before)} prompts and {len(after)} continuations are no pairs")
        sums = torch.zeros(len(after), device=self.device)  # (N,)
        endings = self._continuation_tokens(after)
        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(before):
            groups.setdefault(prompt, []).append(row)
        starts = dict(zip(groups, self.prompt_tokens(list(groups)), strict=True))
        for prompt, rows in groups.items():
            longest = max(len(endings[row]) for row in rows)
            self._check_length(prompt, len(starts[prompt]), longest)
        bar = progress_bar(groups.items(), "asking the model", enabled=progress, total=len(groups))
        for prompt, rows in bar:
            self._fill(sums, starts[prompt], {row: endings[row] for row in rows if endings[row]}, batch_size)
        counts = torch.tensor([len(ids) for ids in endings], dtype=torch.int64, device=self.device)  # (N,)
        return Likelihoods(sums, counts)

    @torch.no_grad()
    def next_token_logits(
        self,
        prompts: Iterable[Any],
        options: Sequence[str] | None = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Tensor:
        """What the model expects as the first token after each prompt, as scores before the softmax.

        Args:
            prompts: N strings.
            options: The tokens that are asked for, such as " A" to " T"; the whole vocabulary when not given.
            batch_size: Prompts in a batch; when not given, as many as make a good number of tokens.
            progress: Show a bar when it takes longer than a second.

        Returns:
            (N, number of options) float32, or (N, vocabulary), on the model's device.

        Raises:
            TypeError: One string instead of a list of them, or something that is no text.
            ValueError: An option is not one token, two are the same token, a prompt has no token or is longer
                than the model reads.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        chosen = None if options is None else self._single_tokens(options)  # (O,)
        texts = as_strings(prompts)
        lists = self.prompt_tokens(texts)
        for text, ids in zip(texts, lists, strict=True):
            self._check_length(text, len(ids), 0)
        width = self._head.weight.shape[0] if chosen is None else len(chosen)
        logits = torch.zeros(len(texts), width, device=self.device)  # (N, O)
        batches = list(self._batches([len(ids) for ids in lists], batch_size))
        for rows in progress_bar(batches, "asking the model", enabled=progress, total=len(batches)):
            batch, present = self._padded([lists[row] for row in rows])  # (B, T), (B, T)
            hidden = self._body(input_ids=batch, attention_mask=present, use_cache=False).last_hidden_state
            last = present.sum(1) - 1  # (B,)
            ends = hidden[torch.arange(len(rows), device=self.device), last]  # (B, d)
            logits[rows] = self._logits(ends, chosen)  # (B, O)
        return logits

    # ------------------------------------------------------------------ tokens

    def prompt_tokens(self, texts: list[str]) -> list[list[int]]:
        """A prompt's token numbers, with the special ones at the start, without those at the end.

        Raises:
            ValueError: A prompt has no token.
        """
        lists = []
        for ids, marks in self._tokenized(texts, special=True):
            end = len(ids)
            while end and marks[end - 1]:
                end -= 1
            # All special, as an empty prompt is: what stands at the start of any text stays.
            lists.append(ids[:end] if end else ids[: self._n_leading])
        if any(not ids for ids in lists):
            raise ValueError(
                f"an empty prompt gives {self.name} nothing to start from, because its tokenizer puts no "
                "token at the start of a text; let the prompt be a line break, or some words"
            )
        return lists

    def _continuation_tokens(self, texts: list[str]) -> list[list[int]]:
        return [ids for ids, _ in self._tokenized(texts, special=False)]

    def _tokenized(self, texts: list[str], special: bool) -> Iterable[tuple[list[int], list[int]]]:
        if not texts:
            return []
        options = {"return_special_tokens_mask": True, "truncation": False, "padding": False}
        found = self.tokenizer(texts, add_special_tokens=special, **options)
        return zip(found["input_ids"], found["special_tokens_mask"], strict=True)

    @property
    def _n_leading(self) -> int:
        """How many special tokens the tokenizer puts at the start of a text."""
        ((_, marks),) = self._tokenized(["a"], special=True)
        return next((i for i, special in enumerate(marks) if not special), len(marks))

    def _single_tokens(self, options: Sequence[str]) -> Tensor:
        lists = self._continuation_tokens(as_strings(options))
        for option, ids in zip(options, lists, strict=True):
            if len(ids) != 1:
                raise ValueError(f"the option {option!r} is {len(ids)} tokens of {self.name}, not one")
        chosen = [ids[0] for ids in lists]
        if len(set(chosen)) != len(chosen):
            raise ValueError(f"two of the options {list(options)} are the same token of {self.name}")
        return torch.tensor(chosen, dtype=torch.int64, device=self.device)  # (O,)

    def _check_length(self, prompt: str, before: int, after: int) -> None:
        if before + after > self.max_length:
            raise ValueError(
                f"a prompt of {before} tokens and a continuation of {after} are more than the "
                f"{self.max_length} that {self.name} reads; shorten the prompt that starts {prompt[:40]!r}"
            )

    def _padded(self, lists: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(B, T) token numbers padded on the right, which a causal model does not look at; (B, T) 1 or 0."""
        length = max(len(ids) for ids in lists)
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in lists], device=self.device)
        lengths = torch.tensor([len(row) for row in lists], device=self.device)  # (B,)
        present = torch.arange(length, device=self.device) < lengths[:, None]  # (B, T)
        return ids, present.long()

    def _batches(self, lengths: list[int], batch_size: int | None) -> Iterable[list[int]]:
        """Rows of like length, the longest first, so that a lack of memory shows at once."""
        rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        n_tokens = _TOKENS_PER_BATCH.get(self.device.type, _TOKENS_PER_BATCH_ELSEWHERE)
        while rows:
            size = batch_size or max(1, n_tokens // max(1, lengths[rows[0]]))
            yield rows[:size]
            rows = rows[size:]

    # ------------------------------------------------------------------ model

    @torch.no_grad()
    def _fill(
        self, sums: Tensor, prompt: list[int], endings: dict[int, list[int]], batch_size: int | None
    ) -> None:
        """Writes into their rows of (N,) the log-likelihoods of what follows one prompt."""
        if not endings:
            return
        start = torch.tensor([prompt], device=self.device)  # (1, P)
        read = self._body(input_ids=start, use_cache=True)
        last, memory = read.last_hidden_state[:, -1], read.past_key_values  # (1, d)
        places = list(endings)
        # A continuation's keys stand beside a copy of the prompt's: that fills the memory.
        lengths = [len(prompt) + len(endings[row]) for row in places]
        for chosen in self._batches(lengths, batch_size):
            rows = [places[i] for i in chosen]
            ids, present = self._padded([endings[row] for row in rows])  # (B, T), (B, T)
            states = last.expand(len(rows), 1, -1)  # (B, 1, d): what predicts the first token
            if ids.shape[1] > 1:
                past = copy.deepcopy(memory)  # the model adds to it in place
                past.batch_repeat_interleave(len(rows))
                before = present.new_ones(len(rows), len(prompt))  # (B, P)
                further = self._body(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.cat([before, present[:, :-1]], dim=1),
                    past_key_values=past,
                    use_cache=True,
                ).last_hidden_state  # (B, T - 1, d)
                states = torch.cat([states, further], dim=1)  # (B, T, d)
            real = present.bool()
            values = self._token_log_likelihoods(states[real], ids[real])  # (tokens,)
            table = torch.zeros(ids.shape, device=self.device)  # (B, T)
            table[real] = values
            sums[rows] = table.sum(1)

    def _token_log_likelihoods(self, states: Tensor, ids: Tensor) -> Tensor:
        """(M, d) and (M,) to (M,), in pieces whose logits fit into memory."""
        size = max(1, _LOGITS_AT_ONCE // self._head.weight.shape[0])
        pieces = [
            -functional.cross_entropy(self._logits(h), i, reduction="none")
            for h, i in zip(states.split(size), ids.split(size), strict=True)
        ]
        return torch.cat(pieces)

    def _logits(self, states: Tensor, chosen: Tensor | None = None) -> Tensor:
        """(M, d) to (M, vocabulary) or (M, O) float32: the head, with what some models do to its scores."""
        head = self._head
        weight = head.weight if chosen is None else head.weight[chosen]
        bias = None if head.bias is None else head.bias if chosen is None else head.bias[chosen]
        logits = functional.linear(states, weight, bias).float()
        config = self.model.config.get_text_config()
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = cap * (logits / cap).tanh()
        return logits

    @property
    def _head(self) -> Any:
        return self.model.get_output_embeddings()

    @property
    def _body(self) -> Any:
        """The model without its head: a head over every token of a prompt would be most of the work."""
        return self.model.base_model

    def _load(self) -> tuple[Any, Any, int]:
        """The model, its tokenizer and the longest text; loaded once, when first needed."""
        if self._loaded is None:
            model, tokenizer = load_transformers(self.folder, self.name, head=True)
            length = longest_text(model, tokenizer, self.folder, None)
            self._loaded = model.eval().to(self.device, self.dtype), tokenizer, length
            self._check_head()
        return self._loaded

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuses a model that does more between its last layer and its scores than is done here."""
        ids = torch.tensor([[1, 2]], device=self.device)  # (1, 2)
        theirs = self.model(input_ids=ids, use_cache=False).logits.float()  # (1, 2, V)
        ours = self._logits(self._body(input_ids=ids, use_cache=False).last_hidden_state)  # (1, 2, V)
        rough = 1e-3 if self.dtype == torch.float32 else 0.05
        if not torch.allclose(ours, theirs, rtol=rough, atol=rough * float(theirs.abs().max())):
            self._loaded = None
            raise ValueError(f"{self.name} scales its scores in a way that is not supported")
