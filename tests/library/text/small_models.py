"""Small models, made on the spot, texts for them, and what tests ask of an encoder and of its cache."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from torch import nn

from recsys_lib.text import TextEncoder

FILMS = [
    "The Godfather (1972). Genres: Crime, Drama.",
    "Toy Story (1995). Genres: Animation, Children's, Comedy.",
    "Shall We Dance? (1996).",
    "Amélie, 天空の城ラピュタ and Ольга \N{CLAPPER BOARD}",
    "",
    "M",
    "Toy Story (1995). Genres: Animation, Children's, Comedy.",
    " ".join(["a very long film in which the same thing happens again and again"] * 40),
    "   \n\t ",
]


WORDS = [f"w{i}" for i in range(30)]


def save_tokenizer(folder: Path, special: list[str], template: str | None, **options: object) -> None:
    """One token a word. With a template such as "<s> $A </s>" the special tokens are added."""
    vocab = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token=special[-1]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if template:
        ends = [(token, vocab[token]) for token in template.split() if token != "$A"]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, special_tokens=ends
        )
    options = {"unk_token": special[-1], **options}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(folder)


def save_model(folder: Path, model: transformers.PreTrainedModel) -> None:
    for parameter in model.parameters():  # far from the quiet start, so that every term shows
        nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.4)
    model.save_pretrained(folder)


SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


def make_bert(folder: Path) -> None:
    config = transformers.BertConfig(
        **SIZES, max_position_embeddings=20, hidden_act="relu", layer_norm_eps=1e-6
    )
    save_model(folder, transformers.BertModel(config))
    save_tokenizer(folder, ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[CLS] $A [SEP]", pad_token="[PAD]")


def make_roberta(folder: Path) -> None:
    """Saved with its head, as roberta-base is; its tokenizer states no longest text, as in many copies."""
    config = transformers.RobertaConfig(
        **SIZES, max_position_embeddings=22, pad_token_id=1, type_vocab_size=1
    )
    save_model(folder, transformers.RobertaForMaskedLM(config))
    save_tokenizer(folder, ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", pad_token="<pad>")


def make_gpt2(folder: Path) -> None:
    """Causal, no special tokens, no padding token."""
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=20)
    save_model(folder, transformers.GPT2Model(config))
    save_tokenizer(folder, ["<end>", "<unk>"], None, eos_token="<end>", padding_side="left")


def make_t5(folder: Path) -> None:
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    save_model(folder, transformers.T5Model(config))
    save_tokenizer(folder, ["<pad>", "</s>", "<unk>"], "$A </s>", pad_token="<pad>", model_max_length=20)


MAKERS: dict[str, Callable[[Path], None]] = {
    "bert": make_bert,
    "roberta": make_roberta,
    "gpt2": make_gpt2,
    "t5": make_t5,
}
POOLING = {"bert": "cls", "roberta": "mean", "gpt2": "last", "t5": "mean"}
ANY_MODEL = pytest.mark.parametrize("kind", MAKERS)


def own_copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def sentences(n: int, longest: int = 12, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1))) for _ in range(n)]


def count_computed(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that reach the tokenizer from now on."""
    computed: list[str] = []
    tokens = encoder._tokens

    def counting(texts: list[str]) -> dict[str, list[list[int]]]:
        computed.extend(texts)
        return tokens(texts)

    monkeypatch.setattr(encoder, "_tokens", counting)
    return computed


def stored(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())
