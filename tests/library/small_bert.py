"""A BERT that fits in a test: its folder is made when it is first asked for."""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import tokenizers
import torch
import transformers

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def save_pair_tokenizer(folder: Path, words: Sequence[str]) -> int:
    """One token a word, pairs as BERT has them; returns the size of the vocabulary."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(vocab)


def save_small_bert(folder: Path, words: Sequence[str], dim: int = 16, n_layers: int = 1, **options) -> Path:
    """A BERT with random weights, far from the quiet start, so that every term shows."""
    config = transformers.BertConfig(
        vocab_size=save_pair_tokenizer(folder, words),
        hidden_size=dim,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        intermediate_size=2 * dim,
        max_position_embeddings=64,
        **options,
    )
    kind = transformers.BertForSequenceClassification if options.get("num_labels") else transformers.BertModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    model.save_pretrained(folder)
    return folder


@lru_cache
def small_bert(words: tuple[str, ...], **options) -> str:
    """The folder of a small BERT that knows these words; it goes when the tests end."""
    folder = Path(tempfile.mkdtemp(prefix="small_bert"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(save_small_bert(folder, words, **options))
