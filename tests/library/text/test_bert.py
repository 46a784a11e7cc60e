"""Published weights in the library's own encoder, against transformers."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from small_models import FILMS, sentences
from torch import Tensor
from torch.nn import functional

from recsys_lib.text import TextEncoder, from_bert_state, load_minilm, pool

close = torch.testing.assert_close


def test_own_encoder_equals_transformers_in_every_layer(minilm: Path, reference: Tensor) -> None:
    """Hidden states of all layers and all tokens, padding included; every head's weights; sentence vectors.

    Each form is held against the same form in transformers. Its two forms differ among themselves by up to
    1.5e-4 at padding, where no one looks, and by less than 1e-5 at tokens.
    """
    films = [*FILMS[:7], FILMS[7][:200]]  # 8 texts, the longest of 44 tokens
    batch = TextEncoder(device="cpu").tokenize(films)
    ids, present = batch["input_ids"], batch["attention_mask"]
    assert 0 < present.float().mean() < 0.5, "most of this batch is padding"
    for fused, form in ((False, "eager"), (True, "sdpa")):
        model = transformers.AutoModel.from_pretrained(minilm, attn_implementation=form, use_safetensors=True)
        ours = load_minilm("cpu", fused=fused)
        assert not ours.training
        with torch.no_grad():
            theirs = model(**batch, output_hidden_states=True, output_attentions=form == "eager")
            hidden = ours(ids, present, batch["token_type_ids"])
        trace = ours.trace(ids, present)
        assert trace.weights.shape[:3] == (6, len(films), 12)
        close(trace.hidden, torch.stack(theirs.hidden_states), atol=1e-5, rtol=0)
        if form == "eager":
            close(trace.weights, torch.stack(theirs.attentions), atol=1e-5, rtol=0)
        vectors = functional.normalize(pool(hidden, present), dim=-1)
        close(vectors[:7], reference[:7], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_own_encoder_equals_any_bert_and_roberta(models: dict[str, Path], kind: str) -> None:
    folder = models[kind]
    encoder = TextEncoder(folder, device="cpu")
    batch = encoder.tokenize(sentences(8))
    present = batch["attention_mask"]
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    before = torch.get_rng_state()
    ours = from_bert_state(state, config)
    assert torch.get_rng_state().equal(before), "loading draws no random numbers"
    assert ours.max_length == 20
    with torch.no_grad():
        theirs = encoder.model(**batch).last_hidden_state
        close(ours(batch["input_ids"], present)[present.bool()], theirs[present.bool()], atol=1e-5, rtol=0)
        for parameter in ours.parameters():
            assert parameter.requires_grad
            parameter.zero_()
    assert all((weight != 0).any() for weight in state.values()), "the weights were copied"


def test_weights_with_their_first_names_are_known(models: dict[str, Path]) -> None:
    """As in the file of bert-base-uncased, which is older than today's names."""
    folder = models["bert"]
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    first = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): weight
        for name, weight in state.items()
    }
    assert sum(name.endswith(("gamma", "beta")) for name in first) > 4
    old, new = from_bert_state(first, config), from_bert_state(state, config)
    for name, weight in new.state_dict().items():
        assert torch.equal(old.state_dict()[name], weight), name


def test_weights_that_do_not_fit_are_refused(models: dict[str, Path]) -> None:
    folder = models["bert"]
    state, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="'gpt2'"):
        from_bert_state(state, {**config, "model_type": "gpt2"})
    with pytest.raises(ValueError, match="'relative_key'"):
        from_bert_state(state, {**config, "position_embedding_type": "relative_key"})
    with pytest.raises(ValueError, match="'swish'"):
        from_bert_state(state, {**config, "hidden_act": "swish"})
    with pytest.raises(ValueError, match=r"lack 'encoder\.layer\.2"):
        from_bert_state(state, {**config, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"no place for 16 weights, such as 'encoder\.layer\.1"):
        from_bert_state(state, {**config, "num_hidden_layers": 1})
    with pytest.raises(ValueError, match=r"intermediate.dense.*\(24, 16\), not \(25, 16\)"):
        from_bert_state(state, {**config, "intermediate_size": 25})
    old = {f"bert.{name}": weight for name, weight in state.items()}
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    from_bert_state(old, config)
