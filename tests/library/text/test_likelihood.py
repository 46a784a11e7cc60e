"""A language model asked for likelihoods, against plain transformers one pair at a time."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from small_models import SIZES, save_model, save_tokenizer, sentences
from torch import Tensor

from recsys_lib.text import CausalLM
from recsys_lib.text import likelihood as module

close = torch.testing.assert_close


def make_gemma(folder: Path) -> None:
    """A starting token; the head is the table of tokens; most layers look no further back than four."""
    config = transformers.Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
    )
    save_model(folder, transformers.Gemma3ForCausalLM(config))
    save_tokenizer(folder, ["<pad>", "<bos>", "<unk>"], "<bos> $A", pad_token="<pad>", bos_token="<bos>")


def make_llama(folder: Path) -> None:
    """A starting and an ending token; a head of its own."""
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=64)
    save_model(folder, transformers.LlamaForCausalLM(config))
    save_tokenizer(folder, ["<s>", "</s>", "<unk>"], "<s> $A </s>", bos_token="<s>", eos_token="</s>")


def make_gpt2(folder: Path) -> None:
    """No special tokens."""
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, n_positions=64)
    save_model(folder, transformers.GPT2LMHeadModel(config))
    save_tokenizer(folder, ["<end>", "<unk>"], None, eos_token="<end>")


MAKERS: dict[str, Callable[[Path], None]] = {"gemma": make_gemma, "llama": make_llama, "gpt2": make_gpt2}
START = {"gemma": "<bos>", "llama": "<s>", "gpt2": None}
ANY = pytest.mark.parametrize("kind", MAKERS)


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    with torch.random.fork_rng():
        for kind, make in MAKERS.items():
            torch.manual_seed(1)
            folders[kind] = tmp_path_factory.mktemp(kind)
            make(folders[kind])
    return folders


def plainly(folder: Path, start: str | None, prompt: str, continuation: str) -> tuple[Tensor, int]:
    """One pair through transformers alone, whole, in float64: the sum over the continuation's tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first = [] if start is None else [tokenizer.convert_tokens_to_ids(start)]
    before = first + tokenizer(prompt, add_special_tokens=False)["input_ids"]
    after = tokenizer(continuation, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum((logits[len(before) - 1 + i, token] for i, token in enumerate(after)), torch.zeros(())), len(
        after
    )


def pairs(start: str | None) -> tuple[list[str], list[str]]:
    prompts = sentences(3, longest=12, seed=1)
    if start is not None:
        prompts.append("")  # the starting token alone
    continuations = [*sentences(5, longest=7, seed=2), "w3", ""]
    every = [(prompt, continuation) for continuation in continuations for prompt in prompts]  # mixed
    return [prompt for prompt, _ in every], [continuation for _, continuation in every]


@ANY
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_the_likelihood_is_that_of_plain_transformers(
    causal: dict[str, Path], kind: str, batch_size: int | None, device: torch.device
) -> None:
    prompts, continuations = pairs(START[kind])
    model = CausalLM(causal[kind], device=device)
    found = model.log_likelihood(prompts, continuations, batch_size)
    assert found.log_likelihood.dtype == torch.float32
    expected = [
        plainly(causal[kind], START[kind], prompt, continuation)
        for prompt, continuation in zip(prompts, continuations, strict=True)
    ]
    close(found.log_likelihood.cpu(), torch.stack([x for x, _ in expected]).float(), atol=1e-4, rtol=1e-5)
    assert found.tokens.tolist() == [n for _, n in expected]
    means = torch.stack([x / max(n, 1) for x, n in expected]).float()
    close(found.per_token().cpu(), means, atol=1e-4, rtol=1e-5)


@ANY
def test_a_prompt_is_read_once(causal: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CausalLM(causal[kind], device="cpu")
    prompt, *others = sentences(6, longest=9, seed=3)
    read = []
    body = model._body
    forward = body.forward

    def counting(*arguments: object, **options: Tensor) -> object:
        read.append(tuple(options["input_ids"].shape))
        return forward(*arguments, **options)

    monkeypatch.setattr(body, "forward", counting)
    model.log_likelihood([prompt] * 5, others, batch_size=2)
    n = len(model.prompt_tokens([prompt])[0])
    assert read[0] == (1, n)
    lengths = sorted((len(text.split()) for text in others), reverse=True)
    batches = [lengths[start : start + 2] for start in range(0, 5, 2)]
    assert read[1:] == [(len(batch), batch[0] - 1) for batch in batches if batch[0] > 1]


@ANY
def test_the_next_token(causal: dict[str, Path], kind: str, device: torch.device) -> None:
    model = CausalLM(causal[kind], device=device)
    prompts = sentences(7, longest=11, seed=4)
    letters = ["w4", "w9", "w2"]
    found = model.next_token_logits(prompts, letters, batch_size=3)
    assert found.shape == (7, 3)
    # A token's likelihood is the softmax of all the logits.
    chances = model.next_token_logits(prompts).log_softmax(-1)
    ids = model._single_tokens(letters)
    for i, letter in enumerate(letters):
        asked = model.log_likelihood(prompts, [letter] * 7).log_likelihood
        close(chances[:, ids[i]], asked, atol=1e-4, rtol=1e-5)
    close(found - found[:, :1], (chances - chances[:, ids[:1]])[:, ids], atol=1e-4, rtol=1e-5)


def test_pieces_of_logits_change_nothing(causal: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, continuations = pairs("<bos>")
    model = CausalLM(causal["gemma"], device="cpu")
    whole = model.log_likelihood(prompts, continuations)
    monkeypatch.setattr(module, "_LOGITS_AT_ONCE", 100)
    close(model.log_likelihood(prompts, continuations).log_likelihood, whole.log_likelihood)


def test_half_precision_is_near(causal: dict[str, Path]) -> None:
    prompts, continuations = pairs("<bos>")
    exact = CausalLM(causal["gemma"], device="cpu").log_likelihood(prompts, continuations).log_likelihood
    rough = CausalLM(causal["gemma"], device="cpu", dtype="bfloat16").log_likelihood(prompts, continuations)
    assert rough.log_likelihood.dtype == torch.float32
    close(rough.log_likelihood, exact, atol=0.5, rtol=0.05)


def test_what_cannot_be_asked_is_refused(causal: dict[str, Path]) -> None:
    gemma, gpt2 = (CausalLM(causal[kind], device="cpu") for kind in ("gemma", "gpt2"))
    with pytest.raises(ValueError, match="2 prompts and 1 continuations are no pairs"):
        gemma.log_likelihood(["w1", "w2"], ["w3"])
    with pytest.raises(ValueError, match=r"an empty prompt gives .* nothing to start from"):
        gpt2.log_likelihood(["w1", ""], ["w3", "w3"])
    with pytest.raises(
        ValueError, match="a prompt of 61 tokens and a continuation of 4 are more than the 64"
    ):
        gemma.log_likelihood([" ".join(["w1"] * 60)], ["w1 w2 w3 w4"])
    with pytest.raises(ValueError, match="the option 'w1 w2' is 2 tokens"):
        gemma.next_token_logits(["w1"], ["w3", "w1 w2"])
    with pytest.raises(ValueError, match="are the same token"):
        gemma.next_token_logits(["w1"], ["w3", "w3"])
    with pytest.raises(TypeError, match="got one str"):
        gemma.log_likelihood("w1", ["w2"])
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        gemma.log_likelihood(["w1"], ["w2"], batch_size=0)
    empty = gemma.log_likelihood([], [])
    assert empty.log_likelihood.shape == empty.tokens.shape == (0,)


def test_scores_that_are_scaled_in_another_way_are_refused(
    causal: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(causal["llama"], device="cpu")
    monkeypatch.setattr(module, "load_transformers", lambda *a, **k: _scaled(load(*a, **k)))
    with pytest.raises(ValueError, match="scales its scores in a way that is not supported"):
        model.log_likelihood(["w1"], ["w2"])


load = module.load_transformers


def _scaled(loaded: tuple) -> tuple:
    model, tokenizer = loaded
    forward = model.forward

    def doubled(*arguments: object, **options: object) -> object:
        found = forward(*arguments, **options)
        found.logits = 2 * found.logits
        return found

    model.forward = doubled
    return model, tokenizer
