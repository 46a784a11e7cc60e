"""The published weights of a BERT or RoBERTa in this library's own ``attention.TransformerEncoder``.

The same numbers as the models' own code gives, from code that can be read on one screen.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from recsys_lib.attention import TransformerEncoder
from recsys_lib.devices import resolve_device
from recsys_lib.text.pretrained import minilm_folder

__all__ = ["from_bert_state", "load_minilm"]


def load_minilm(device: str | torch.device = "auto", *, fused: bool = True) -> TransformerEncoder:
    """all-MiniLM-L6-v2 as this library's own encoder, in evaluation mode.

    A sentence vector is the normalized mean of its output::

        batch = TextEncoder().tokenize(texts)
        hidden = load_minilm()(batch["input_ids"], batch["attention_mask"])  # (B, T, 384)
        vectors = functional.normalize(pool(hidden, batch["attention_mask"]), dim=-1)  # (B, 384)

    Args:
        device: "auto", "cpu", "cuda", "mps" or a ``torch.device``.
        fused: Use torch's fused attention kernel.
    """
    folder = minilm_folder()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    encoder = from_bert_state(load_file(folder / "model.safetensors"), config, fused=fused)
    return encoder.to(resolve_device(device))


# Where each weight of a block stands in a BERT. Devlin et al. 2019 normalize after each sublayer.
_BERT_BLOCK = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up": "intermediate.dense",
    "feed_forward.down": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


def from_bert_state(
    state: Mapping[str, Tensor], config: Mapping[str, Any], *, fused: bool = True
) -> TransformerEncoder:
    """Put the weights of a published BERT or RoBERTa into this library's encoder.

    The pooler and the heads for pre-training are left out. RoBERTa (Liu et al. 2019) counts positions from
    ``pad_token_id + 1``; the rows before are left out, and the vectors of tokens stay the same where padding
    is on the right.

    Args:
        state: Name -> weight, as ``safetensors.torch.load_file`` reads them; copied.
        config: The model's ``config.json``.
        fused: Use torch's fused attention kernel.

    Returns:
        The encoder in evaluation mode, on the weights' device and in their type.

    Raises:
        ValueError: It is no BERT or RoBERTa, has a part that the encoder has not, or lacks a weight.
    """
    kind = config.get("model_type")
    if kind not in ("bert", "roberta", "xlm-roberta"):
        raise ValueError(f"model_type {kind!r} is neither 'bert' nor 'roberta' nor 'xlm-roberta'")
    if (positions := config.get("position_embedding_type", "absolute")) != "absolute":
        raise ValueError(f"position_embedding_type {positions!r} is not supported, only 'absolute'")
    skipped = 0 if kind == "bert" else config["pad_token_id"] + 1
    with torch.device("meta"):  # the shapes alone: no random weights are drawn to be thrown away
        encoder = TransformerEncoder(
            config["vocab_size"],
            config["hidden_size"],
            config["num_hidden_layers"],
            config["num_attention_heads"],
            hidden=config["intermediate_size"],
            max_length=config["max_position_embeddings"] - skipped,
            n_segments=config["type_vocab_size"],
            positions="learned",
            norm="post",
            dropout=config.get("hidden_dropout_prob", 0.0),
            activation=config["hidden_act"],
            eps=config["layer_norm_eps"],
            padding_id=config.get("pad_token_id"),
            fused=fused,
        )
    names = {
        "token_embedding": "embeddings.word_embeddings",
        "position_embedding": "embeddings.position_embeddings",
        "segment_embedding": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
    }
    for i in range(config["num_hidden_layers"]):
        names |= {f"blocks.{i}.{ours}": f"encoder.layer.{i}.{theirs}" for ours, theirs in _BERT_BLOCK.items()}

    given = {_present_name(name): weight for name, weight in state.items()}
    weights = {}
    for name, expected in encoder.state_dict().items():
        module, _, kind_of_weight = name.rpartition(".")
        source = f"{names[module]}.{kind_of_weight}"
        if source not in given:
            raise ValueError(f"the weights lack {source!r}")
        weight = given.pop(source)
        weight = weight[skipped:] if module == "position_embedding" else weight
        if weight.shape != expected.shape:
            raise ValueError(f"{source!r} has the shape {tuple(weight.shape)}, not {tuple(expected.shape)}")
        weights[name] = weight.clone()
    given.pop("embeddings.position_ids", None)  # 0, 1, 2, ...: no weight, but old files hold it
    if unknown := [name for name in given if name.startswith(("embeddings.", "encoder."))]:
        raise ValueError(f"the encoder has no place for {len(unknown)} weights, such as {unknown[0]!r}")
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


def _present_name(name: str) -> str:
    """A weight's name without its model's; the first BERTs call those of a normalization gamma and beta."""
    name = re.sub(r"^(bert|roberta)\.", "", name)
    return re.sub(
        r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    )
