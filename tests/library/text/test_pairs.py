"""Pairs of texts: their tokens are the tokenizer's own, and are kept by content."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import FILMS, make_gpt2, save_tokenizer

from recsys_lib.text import pairs
from recsys_lib.text.pairs import PairTokenizer, TokenTable, kept_lengths
from recsys_lib.text.pretrained import load_tokenizer


def theirs(folder, first, second, max_length):
    return load_tokenizer(folder, "it")(
        first, second, truncation="longest_first", max_length=max_length, padding="longest",
        return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip


@pytest.mark.parametrize("max_length", [5, 6, 12, 13, 64, 256])
@pytest.mark.parametrize("keep", [False, True])
def test_a_pair_reads_as_the_tokenizer_makes_it(real_minilm, max_length, keep):
    ours = PairTokenizer(real_minilm, "MiniLM", max_length)
    first, second = ours.table(FILMS, keep=keep), ours.table(FILMS[::-1], keep=keep)
    n = len(FILMS)
    i, j = torch.arange(n).repeat_interleave(n), torch.arange(n).repeat(n)
    batch = ours.join(first, i, second, j)
    expected = theirs(real_minilm, [FILMS[k] for k in i], [FILMS[::-1][k] for k in j], max_length)
    assert torch.equal(batch.ids, expected["input_ids"])
    assert torch.equal(batch.present, expected["attention_mask"].bool())
    assert torch.equal(batch.segments, expected["token_type_ids"])
    assert torch.equal(ours.lengths(first.lengths[i], second.lengths[j]), batch.present.sum(1))


def test_roberta_sets_two_separators(tmp_path):
    import tokenizers

    save_tokenizer(tmp_path, ["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>", pad_token="<pad>")
    whole = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    whole.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    whole.save(str(tmp_path / "tokenizer.json"))
    ours = PairTokenizer(tmp_path, "it", 20)
    batch = ours.join(ours.table(["w0 w1"]), torch.tensor([0]), ours.table(["w2"]), torch.tensor([0]))
    assert batch.ids.tolist() == [[0, 4, 5, 2, 2, 6, 2]]
    assert batch.segments.sum() == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 40))
def test_what_is_cut_fits_and_nothing_else_is_cut(a, b, room):
    kept_a, kept_b = (int(x) for x in kept_lengths(torch.tensor([a]), torch.tensor([b]), room))
    assert kept_a + kept_b == min(room, a + b)
    assert kept_a <= a
    assert kept_b <= b
    if min(a, b) <= room // 2:  # the shorter one is whole
        assert (kept_a if a <= b else kept_b) == min(a, b)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_a_table_in_blocks_gives_what_one_block_gives(lengths, data):
    lists = [[10 * n + k for k in range(length)] for n, length in enumerate(lengths)]
    whole = TokenTable.of_lists(lists)
    cut = data.draw(st.integers(0, len(lists)))
    blocks = TokenTable(
        [part for some in (lists[:cut], lists[cut:]) for part in TokenTable.of_lists(some)._blocks]
    )
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)), dtype=torch.int64)
    expected = [token for row in rows.tolist() for token in lists[row]]
    for table in (whole, blocks):
        assert table.lengths.tolist() == lengths
        assert table.take(rows, table.lengths[rows]).tolist() == expected


def test_tokens_are_kept_by_content_and_mapped_into_memory(real_minilm, cache, monkeypatch):
    monkeypatch.setattr(pairs, "_TEXTS_IN_A_BLOCK", 1000)
    texts = [f"film {n}" for n in range(2500)]
    ours = PairTokenizer(real_minilm, "MiniLM", 32)
    plain, kept = ours.table(texts), ours.table(texts, keep=True)
    files = list((cache / "tokens").iterdir())
    assert len(files) == 1
    rows = torch.tensor([2499, 0, 1000, 0])
    assert torch.equal(kept.take(rows, kept.lengths[rows]), plain.take(rows, plain.lengths[rows]))
    assert not any(flat.flags.owndata for flat, _ in kept._blocks)

    monkeypatch.setattr(PairTokenizer, "_tokens", lambda *_: pytest.fail("they are there"))
    again = PairTokenizer(real_minilm, "MiniLM", 32).table(texts, keep=True)
    assert torch.equal(again.lengths, plain.lengths)
    monkeypatch.undo()
    monkeypatch.setenv("RECSYS_DATA", str(cache))
    PairTokenizer(real_minilm, "MiniLM", 33).table(texts, keep=True)  # pairs are cut when they are joined
    assert len(list((cache / "tokens").iterdir())) == 1
    ours.table([*texts[:-1], "another"], keep=True)
    assert len(list((cache / "tokens").iterdir())) == 2


def test_a_damaged_file_is_made_again(real_minilm, cache):
    ours = PairTokenizer(real_minilm, "MiniLM", 32)
    lengths = ours.table(["one film", "two"], keep=True).lengths
    (file,) = (cache / "tokens").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="is damaged .*the texts are tokenized again"):
        assert torch.equal(ours.table(["one film", "two"], keep=True).lengths, lengths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.table(["one film", "two"], keep=True)


def test_what_cannot_be_read_is_refused(real_minilm, tmp_path):
    with pytest.raises(ValueError, match="max_length=4 leaves 1 tokens for two texts; the smallest is 5"):
        PairTokenizer(real_minilm, "MiniLM", 4)
    with pytest.raises(TypeError, match=r"texts\[1\] is None, not a text"):
        PairTokenizer(real_minilm, "MiniLM", 9).table(["a", None])
    make_gpt2(tmp_path)
    with pytest.raises(ValueError, match="the tokenizer of it puts nothing between two texts"):
        PairTokenizer(tmp_path, "it", 9)
