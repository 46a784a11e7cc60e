"""The text encoder against sentence-transformers, its batches and what it refuses."""

import math
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import (
    ANY_MODEL,
    FILMS,
    POOLING,
    SIZES,
    count_computed,
    own_copy,
    save_model,
    sentences,
)
from torch import Tensor, nn
from tqdm.auto import tqdm

from recsys_lib import progress
from recsys_lib.attention import TransformerEncoder
from recsys_lib.text import TextEncoder, TextVectors
from recsys_lib.text import encoder as encoder_module

close = torch.testing.assert_close


def test_equals_sentence_transformers(minilm: Path, reference: Tensor) -> None:
    """Short, long (cut at 256 tokens), empty, blank, equal and foreign texts, whatever the batches."""
    for batch_size in (None, 4):
        vectors = TextEncoder(device="cpu").encode(FILMS, batch_size=batch_size, cache=False)
        assert vectors.shape == (len(FILMS), 384)
        assert vectors.dtype == torch.float32
        close(vectors, reference, atol=1e-5, rtol=0)
    assert TextEncoder(minilm).max_length == 256


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16], ids=str)
def test_half_precision(minilm: Path, reference: Tensor, dtype: str | torch.dtype) -> None:
    encoder = TextEncoder(device="cpu", dtype=dtype, cache=False)
    vectors = encoder.encode(FILMS[:6])
    assert next(encoder.model.parameters()).dtype == encoder.dtype != torch.float32
    assert vectors.dtype == torch.float32
    close(vectors.norm(dim=-1), torch.ones(6))
    assert (vectors * reference[:6]).sum(-1).min() > 0.999


@ANY_MODEL
def test_a_vector_does_not_depend_on_its_batch(models: dict[str, Path], kind: str) -> None:
    encoder = TextEncoder(models[kind], POOLING[kind], normalize=False, device="cpu", cache=False)
    texts = sentences(12)
    alone = torch.cat([encoder.encode([sentence]) for sentence in texts])
    assert alone.std(0).mean() > 0.01, "the texts differ"
    for batch_size in (None, 1, 5, 100):
        close(encoder.encode(texts, batch_size=batch_size), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("kind", "longest"), [("bert", 20), ("roberta", 20), ("gpt2", 20), ("t5", 20)])
def test_long_texts_lose_their_end(models: dict[str, Path], kind: str, longest: int) -> None:
    """RoBERTa's table has two rows more than it has positions for tokens."""
    encoder = TextEncoder(models[kind], device="cpu", cache=False)
    assert encoder.max_length == longest
    special = encoder.tokenize(["w1"])["input_ids"].shape[1] - 1
    words = sentences(1, 60, seed=3)[0].split() * 3
    assert len(words) > longest
    close(encoder.encode([" ".join(words)]), encoder.encode([" ".join(words[: longest - special])]))
    shorter = TextEncoder(models[kind], device="cpu", max_length=8, cache=False)
    close(shorter.encode([" ".join(words)]), encoder.encode([" ".join(words[: 8 - special])]))
    if kind != "t5":  # its positions are relative and have no end
        with pytest.raises(ValueError, match=r"max_length=21 is more than the 20 positions"):
            TextEncoder(models[kind], device="cpu", max_length=21).encode(["w1"], cache=False)


@pytest.mark.parametrize(("kind", "special"), [("bert", 2), ("roberta", 2), ("gpt2", 0), ("t5", 1)])
def test_the_shortest_text_has_one_token_beside_the_special_ones(
    models: dict[str, Path], kind: str, special: int
) -> None:
    """Below that all texts would be the same, or not be cut at all."""
    for too_short in range(1, special + 1):
        with pytest.raises(ValueError, match=rf"max_length={too_short} .* the smallest is {special + 1}$"):
            TextEncoder(models[kind], device="cpu", max_length=too_short).encode(["w1"])
    shortest = TextEncoder(models[kind], device="cpu", max_length=special + 1, cache=False)
    vectors = shortest.encode(["w1", "w2", "w1 w3 w4"])
    assert not vectors[0].equal(vectors[1])
    close(vectors[2], vectors[0])


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 700), max_size=40),
    batch_size=st.one_of(st.none(), st.integers(1, 9)),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_batches_cover_every_row_once_by_length(
    lengths: list[int], batch_size: int | None, device: str
) -> None:
    batches = list(encoder_module._batches(lengths, batch_size, torch.device(device)))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert [lengths[row] for batch in batches for row in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        longest = max(lengths[row] for row in batch)
        if batch_size is not None:
            assert len(batch) <= batch_size
        else:
            assert len(batch) == 1 or len(batch) * longest <= {"cpu": 512, "cuda": 16_384}[device]


def test_many_texts_are_tokenized_in_pieces(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, texts = TextEncoder(models["bert"], device="cpu", cache=False), sentences(30)
    whole = encoder.encode(texts)
    monkeypatch.setattr(encoder_module, "_CHUNK", 7)
    close(encoder.encode(texts), whole, atol=1e-6, rtol=0)


def test_no_texts(models: dict[str, Path], cache: Path) -> None:
    vectors = TextEncoder(models["bert"], device="cpu").encode([])
    assert vectors.shape == (0, 16)
    assert not cache.exists()


def test_columns_and_iterables_are_texts(models: dict[str, Path]) -> None:
    encoder, texts = TextEncoder(models["bert"], device="cpu", cache=False), sentences(4)
    expected = encoder.encode(texts)
    frame = pd.DataFrame({"text": texts}, index=[7, 3, 3, 1])
    for given_texts in (tuple(texts), iter(texts), np.array(texts), np.array(texts, object), frame["text"]):
        close(encoder.encode(given_texts), expected)


def test_equal_texts_are_computed_once(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(models["bert"], device="cpu", cache=False)
    computed = count_computed(encoder, monkeypatch)
    vectors = encoder.encode(["w1", "w2", "w1", "w1"])
    assert sorted(computed) == ["w1", "w2"]
    assert vectors[0].equal(vectors[2])
    assert not vectors[0].equal(vectors[1])


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT], ids=repr)
def test_missing_texts_count_as_empty_with_a_warning(models: dict[str, Path], missing: object) -> None:
    encoder = TextEncoder(models["bert"], device="cpu", cache=False)
    with pytest.warns(UserWarning, match="2 of 4 texts are missing, the first is number 1") as caught:
        vectors = encoder.encode(["w1", missing, "w2", missing])
    assert caught[0].filename == __file__
    close(vectors, encoder.encode(["w1", "", "w2", ""]))
    assert vectors.isfinite().all()


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_text_without_tokens_is_zero(models: dict[str, Path], kind: str) -> None:
    """GPT-2's tokenizer makes nothing of an empty text; T5's makes its end."""
    encoder = TextEncoder(models[kind], "mean", device="cpu", cache=False)
    for texts in (["", "w1 w2"], [""]):
        vectors = encoder.encode(texts)
        assert vectors.isfinite().all()
        assert (vectors[0] == 0).all() == (kind == "gpt2")
    close(encoder.encode(["", "w1 w2"])[1], encoder.encode(["w1 w2"])[0], atol=1e-6, rtol=0)


def test_what_is_no_text_is_refused(models: dict[str, Path]) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    for one in ("a text", b"bytes"):
        with pytest.raises(TypeError, match=r"write \[text\]"):
            encoder.encode(one)
    for wrong in (3, 2.5, b"bytes", ["nested"], {"a": 1}, np.array(["a"])):
        with pytest.raises(TypeError, match=f"text 1 is a {type(wrong).__name__}"):
            encoder.encode(["w1", wrong])
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        encoder.encode(["w1"], batch_size=0)


def test_what_gives_something_else_than_its_texts_is_refused(models: dict[str, Path]) -> None:
    """A table gives the names of its columns, a mapping its keys, a set any order."""
    encoder, texts = TextEncoder(models["bert"], device="cpu", cache=False), ["w3", "w1"]
    frame, mapping = pd.DataFrame({"title": texts}), dict(zip("ab", texts, strict=True))
    for wrong, instead in [
        (frame, r'DataFrame; pass a column, such as df\["title"\]'),
        (frame[[]], "DataFrame"),
        (mapping, r"dict; pass its values, list\(d\.values\(\)\)"),
        (MappingProxyType(mapping), "mappingproxy; pass its values"),
        ({}, "dict"),
        (set(texts), "set, which has no order; pass a list"),
        (frozenset(texts), "frozenset, which has no order"),
    ]:
        for call in (encoder.encode, encoder.tokenize):
            with pytest.raises(TypeError, match=f"must be a list of strings, got a {instead}"):
                call(wrong)
    for right in (frame["title"], list(mapping.values()), mapping.values(), dict.fromkeys(texts).keys()):
        close(encoder.encode(right), encoder.encode(texts))


def test_half_a_character_is_replaced(models: dict[str, Path]) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    close(encoder.encode(["w1 \udc80 w2"]), encoder.encode(["w1 ? w2"]))


def test_wrong_options_are_refused(models: dict[str, Path]) -> None:
    for options, message in [
        ({"pooling": "max"}, "pooling='max'"),
        ({"dtype": "int8"}, "dtype='int8' is not one of float32, bfloat16, float16"),
        ({"dtype": torch.float64}, "float64"),
        ({"max_length": 0}, "max_length must be 1 or more"),
        ({"device": "abacus"}, "abacus"),
    ]:
        with pytest.raises(ValueError, match=message):
            TextEncoder(models["bert"], **options)


def test_numbers_beyond_the_type_are_refused(models: dict[str, Path], tmp_path: Path, cache: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "loud")
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.1.output.LayerNorm.weight"] *= 1e6
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    TextEncoder(folder, device="cpu").encode(["w1"], cache=False)
    with pytest.raises(ValueError, match=r"beyond torch\.float16"):
        TextEncoder(folder, device="cpu", dtype="float16").encode(["w1"])
    assert not list(cache.rglob("*.safetensors"))


def test_vectors_take_part_in_training(models: dict[str, Path]) -> None:
    vectors = TextEncoder(models["bert"], device="cpu").encode(["w1", "w2"])
    assert not vectors.requires_grad
    layer = nn.Linear(16, 1)
    layer(vectors).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_short_work_is_silent(models: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    TextEncoder(models["roberta"], device="cpu").encode(sentences(5))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_long_work_shows_a_bar_unless_told_not_to(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "tqdm", lambda *args, **options: tqdm(*args, **{**options, "delay": 0.0}))
    encoder = TextEncoder(models["bert"], device="cpu", cache=False)
    encoder.encode(sentences(5), progress=False)
    assert capfd.readouterr().err == ""
    encoder.encode(sentences(5))
    assert "encoding texts" in capfd.readouterr().err


def test_input_is_made_on_the_encoder_device(models: dict[str, Path]) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    assert encoder.tokenize(["w1", "w2 w3"])["input_ids"].tolist() == [[1, 5, 2, 0], [1, 6, 7, 2]]
    with pytest.raises(ValueError, match="at least one text"):
        encoder.tokenize([])
    roberta = TextEncoder(models["roberta"], device="cpu")
    assert roberta.tokenize(["w1", "w2 w3"])["input_ids"].tolist() == [[0, 5, 2, 1], [0, 6, 7, 2]]
    encoder.device = torch.device("meta")
    assert {tensor.device.type for tensor in encoder.tokenize(["w1", "w2 w3"]).values()} == {"meta"}


def test_repr_names_the_model() -> None:
    assert "all-MiniLM-L6-v2" in repr(TextEncoder(device="cpu"))


def test_import_is_light() -> None:
    code = (
        "import sys, recsys_lib.text; print(*{'transformers', 'datasets', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# ---------------------------------------------------------------------- with the library's own encoder


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_own_encoder_makes_the_same_vectors(models: dict[str, Path], kind: str, pooling: str) -> None:
    texts = sentences(20)
    theirs = TextEncoder(models[kind], pooling, device="cpu", cache=False)
    ours = TextEncoder(models[kind], pooling, device="cpu", cache=False, own=True)
    assert isinstance(ours.model, TransformerEncoder)
    assert isinstance(ours, TextVectors)
    assert ours.dim == theirs.dim
    assert ours.max_length == theirs.max_length
    close(ours.encode(texts), theirs.encode(texts), atol=1e-5, rtol=0)
    half = TextEncoder(models[kind], pooling, device="cpu", cache=False, own=True, dtype="bfloat16")
    assert next(half.model.parameters()).dtype == torch.bfloat16
    assert (half.encode(texts) * ours.encode(texts)).sum(-1).min() > 0.99


def test_a_roberta_with_a_tokenizer_of_bytes(tmp_path: Path) -> None:
    """As roberta-base: pieces of bytes, so that no text is unknown, and positions that start at two."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(FILMS, vocab_size=340, min_frequency=1, special_tokens=special)
    folder = tmp_path / "roberta"
    folder.mkdir()
    tokenizer.save_model(str(folder))
    transformers.RobertaTokenizerFast(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        **{**SIZES, "vocab_size": tokenizer.get_vocab_size()},
        max_position_embeddings=66,
        type_vocab_size=1,
    )
    assert config.pad_token_id == 1
    save_model(folder, transformers.RobertaModel(config))
    texts = [*FILMS, "\N{CLAPPER BOARD} unseen: zażółć"]
    for pooling in ("cls", "mean"):
        ours = TextEncoder(folder, pooling, normalize=False, device="cpu", cache=False, own=True)
        assert ours.max_length == 64
        model = transformers.RobertaModel.from_pretrained(folder, use_safetensors=True).eval()
        words = transformers.AutoTokenizer.from_pretrained(folder)
        for text, vector in zip(texts, ours.encode(texts), strict=True):
            batch = words(text, truncation=True, max_length=64, return_tensors="pt")
            assert words.unk_token_id not in batch["input_ids"]
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state[0]  # (T, d)
            close(vector, hidden[0] if pooling == "cls" else hidden.mean(0), atol=1e-5, rtol=0)


def test_the_own_encoder_is_for_bert_and_roberta(models: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="'gpt2'"):
        TextEncoder(models["gpt2"], "last", device="cpu", own=True).encode(["w1"])


# ---------------------------------------------------------------------- special tokens


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("own", [False, True])
def test_special_tokens_may_be_kept_out_of_the_pooling(
    models: dict[str, Path], pooling: str, own: bool
) -> None:
    options = {"normalize": False, "device": "cpu", "cache": False}
    encoder = TextEncoder(models["bert"], pooling, own=own, pool_special=False, **options)
    texts = [*sentences(9), ""]
    model = TextEncoder(models["bert"], **options)
    vectors = encoder.encode(texts, batch_size=4)
    for text, vector in zip(texts, vectors, strict=True):
        batch = model.tokenize([text])
        with torch.no_grad():
            inner = model.model(**batch).last_hidden_state[0, 1:-1]  # without [CLS] and [SEP]
        if not text:
            assert not len(inner)
            assert vector.abs().sum() == 0
        else:
            close(vector, inner.mean(0) if pooling == "mean" else inner[-1], atol=1e-5, rtol=0)
    assert set(encoder.tokenize(texts)) == set(model.tokenize(texts))


def test_without_special_tokens_nothing_changes_for_a_model_that_has_none(models: dict[str, Path]) -> None:
    texts = sentences(5)
    one, other = (
        TextEncoder(models["gpt2"], "last", device="cpu", cache=False, pool_special=pool_special)
        for pool_special in (True, False)
    )
    close(one.encode(texts), other.encode(texts))
    with pytest.raises(ValueError, match="pooling='cls' takes a special token"):
        TextEncoder(models["bert"], "cls", device="cpu", pool_special=False)


def test_what_is_not_the_default_has_a_cache_of_its_own(models: dict[str, Path]) -> None:
    options = [{}, {"own": True}, {"pool_special": False}, {"own": True, "pool_special": False}]
    folders = {TextEncoder(models["bert"], device="cpu", **given)._store().folder for given in options}
    assert len(folders) == 4


INSTRUCTION = "w7 w8 w9 "


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("pool_special", [True, False])
def test_an_instruction_is_read_and_takes_no_part_in_the_mean(
    models: dict[str, Path], kind: str, pool_special: bool
) -> None:
    options = {"normalize": False, "device": "cpu", "cache": False}
    encoder = TextEncoder(models[kind], "mean", instruction=INSTRUCTION, pool_special=pool_special, **options)
    plain = TextEncoder(models[kind], **options)
    texts = sentences(7)
    vectors = encoder.encode(texts, batch_size=3)
    for text, vector in zip(texts, vectors, strict=True):
        batch = plain.tokenize([INSTRUCTION + text])
        with torch.no_grad():
            hidden = plain.model(**batch).last_hidden_state[0]  # (T, d)
        ends = {"bert": ([0], [len(hidden) - 1]), "gpt2": ([], [])}[kind]
        first = len(ends[0]) + 3
        rows = list(range(first, first + len(text.split())))
        rows = [*ends[0], *rows, *ends[1]] if pool_special else rows
        close(vector, hidden[rows].mean(0), atol=1e-5, rtol=0)
    assert encoder.tokenize(texts)["input_ids"].shape == (7, plain.tokenize(texts)["input_ids"].shape[1] + 3)


def test_the_last_token_has_read_the_instruction(models: dict[str, Path]) -> None:
    options = {"normalize": False, "device": "cpu", "cache": False}
    texts = [*sentences(5), ""]
    asked = TextEncoder(models["gpt2"], "last", instruction=INSTRUCTION, **options).encode(texts)
    written = TextEncoder(models["gpt2"], "last", **options).encode([INSTRUCTION + text for text in texts])
    close(asked, written)
    assert (asked - TextEncoder(models["gpt2"], "last", **options).encode(texts))[:-1].abs().sum(
        1
    ).min() > 0.1


def test_an_instruction_has_a_cache_of_its_own(models: dict[str, Path]) -> None:
    plain, same, *others = (
        TextEncoder(models["bert"], device="cpu", **given)._store().folder
        for given in ({}, {"instruction": ""}, {"instruction": "w1 "}, {"instruction": "w2 "})
    )
    assert plain == same
    assert len({plain, *others}) == 3


def test_an_instruction_that_cannot_be_kept_apart_is_refused(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = TextEncoder(models["bert"], device="cpu", max_length=5, instruction=INSTRUCTION, cache=False)
    with pytest.raises(ValueError, match=r"the instruction takes 5 tokens, .* of the 5 .* leaves none"):
        long.encode(["w1"])
    slow = TextEncoder(models["bert"], device="cpu", instruction="w1 ", cache=False)
    kind = type(TextEncoder(models["bert"], device="cpu").tokenizer)
    monkeypatch.setattr(kind, "is_fast", False)
    with pytest.raises(ValueError, match="the mean cannot leave out the instruction"):
        slow.encode(["w1"])
