"""The cross-encoder: right values, what it reads, what it learns, what two vectors cannot."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import tokenizers
import torch
import transformers
from small_bert import save_small_bert, small_bert
from small_hub import small_hub
from torch import nn

from recsys_lib.data import Interactions
from recsys_lib.models import CrossEncoder, NotFittedError
from recsys_lib.models.core.fine_tuned import batches_of_like_length
from recsys_lib.models.core.lists import draw_lists
from recsys_lib.models.core.relevance import KeptStates, Relevance

WORDS = ("red", "blue", "old", "new", "song", "film", ";")
TEXTS = ["red song", "blue film", "old red film", "new", "blue", "old song new"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path / "cache"))


def events(rows, n_items=6) -> Interactions:
    """From (user, item, time)."""
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, user_ids=range(frame.user_id.max() + 1), item_ids=range(n_items))


EVENTS = events(
    [(0, 0, 1), (0, 1, 2), (0, 2, 3), (1, 3, 1), (1, 4, 1), (1, 5, 2), (2, 2, 9), (3, 1, 1), (3, 5, 5)]
)


def make(**options) -> CrossEncoder:
    small = {"text": TEXTS, "text_model": small_bert(WORDS, n_layers=2), "batch_size": 4, "n_negatives": 2}
    return CrossEncoder(**(small | {"dropout": 0.0, "encoder_learning_rate": 1e-3} | options))


def fit(model: CrossEncoder, inter: Interactions = EVENTS, *rest, **options) -> CrossEncoder:
    return model.fit(inter, *rest, device="cpu", progress=False, **options)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Right values.


def of_transformers(model: CrossEncoder, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """The same encoder in the code of its authors, one pair at a time, and the head put together by hand."""
    theirs = transformers.BertModel.from_pretrained(model.text_model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.text_model)
    found = []
    for query, document in pairs:
        # In a list: alone, an empty second text counts as none.
        batch = tokenizer([query], [document], return_tensors="pt", return_token_type_ids=True)
        hidden = theirs(**batch).last_hidden_state[0]  # (T, d)
        vector = hidden.mean(0) if model.pooling == "mean" else hidden[0]  # (d,)
        if model.scorer.dense is not None:
            vector = torch.tanh(vector @ model.scorer.dense.weight.T + model.scorer.dense.bias)
        found.append(vector @ model.scorer.out.weight[0] + model.scorer.out.bias[0])
    return torch.stack(found).detach()


@pytest.mark.parametrize(("head", "pooling"), [("linear", "mean"), ("linear", "cls"), ("pooler", "cls")])
def test_scores_are_those_of_bert_and_a_linear_head(head, pooling):
    # Frozen whole, the encoder stays as it was published; the head has learned.
    model = fit(make(head=head, pooling=pooling, frozen_layers=2, epochs=2))
    pairs = list(itertools.product(["red song ; old", "", "film"], [*TEXTS, ""]))
    found = model.predict(pairs)
    torch.testing.assert_close(found, of_transformers(model, pairs), rtol=1e-5, atol=1e-5)
    assert found.std() > 1e-3


def test_a_published_cross_encoder_scores_as_its_authors_code_does(tmp_path):
    folder = save_small_bert(tmp_path, WORDS, n_layers=2, num_labels=1)
    model = CrossEncoder(text_model=str(folder), head="pooler", pooling="cls")
    pairs = list(itertools.product(TEXTS[:3], TEXTS))
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = [
        theirs(**tokenizer(*p, return_tensors="pt", return_token_type_ids=True)).logits for p in pairs
    ]
    torch.testing.assert_close(model.predict(pairs), torch.cat(expected)[:, 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(NotFittedError):
        model.predict(torch.tensor([0]), torch.tensor([0]))


ROBERTA_WORDS = tuple(f"w{n}" for n in range(8))


def save_small_roberta(folder: Path, kind=transformers.RobertaForSequenceClassification):
    """Random weights, far from the quiet start; returns the model of its authors and the tokenizer."""
    vocab = {token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *ROBERTA_WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    ours = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"
    )
    ours.save_pretrained(folder)
    config = transformers.RobertaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=24,
        pad_token_id=1,
        type_vocab_size=1,
        num_labels=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = kind(config).eval()
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    theirs.save_pretrained(folder)
    return theirs, ours


def test_a_published_roberta_does_so_too(tmp_path):
    theirs, ours = save_small_roberta(tmp_path)
    queries = ["w0 w1", "w2 w2 w3 w4 w5", "w7"]
    pairs = list(itertools.product(queries, [*queries, "w6 w1 unknown"]))
    batch = ours(*zip(*pairs, strict=True), return_tensors="pt", padding=True)
    expected = theirs(batch["input_ids"], batch["attention_mask"]).logits[:, 0]
    found = CrossEncoder(text_model=str(tmp_path), head="pooler", pooling="cls").predict(pairs)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
    assert found.std() > 1e-3


BY_NAME = """
    import json, sys
    from recsys_lib.models import CrossEncoder

    pairs = [["red song", "blue film"], ["old", "new song"]]
    published = CrossEncoder(
        text_model="cross-encoder/ms-marco-MiniLM-L-6-v2", head="pooler", pooling="cls"
    )
    scores = published.predict(pairs).tolist()
    plain = CrossEncoder(text_model="roberta-base", frozen_layers=2, learning_rate=1e-12)
    plain.fit_pairs([["w0", "w1"], ["w0", "w2"]], [1, 0], device="cpu", progress=False)
    plain.save_pretrained(sys.argv[1])
    again = CrossEncoder.from_pretrained(sys.argv[1]).predict([["w0", "w1"]])
    assert again.tolist() == plain.predict([["w0", "w1"]]).tolist()
    print(json.dumps(scores))
"""


def test_published_encoders_come_from_the_hub_by_name(tmp_path):
    """With the files' real names beside others; once fetched, they need no hub."""
    published, plain = tmp_path / "published", tmp_path / "plain"
    save_small_bert(published, WORDS, n_layers=2, num_labels=1)
    save_small_roberta(plain, transformers.RobertaForMaskedLM)  # as roberta-base is: no pooler, another head
    for folder in (published, plain):
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.safetensors").write_bytes(b"for other programs")
    environment = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")} | {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "0",
    }
    run = [sys.executable, "-c", textwrap.dedent(BY_NAME), str(tmp_path / "model")]
    names = {"cross-encoder/ms-marco-MiniLM-L-6-v2": published, "roberta-base": plain}
    with small_hub(names) as hub:
        environment["HF_ENDPOINT"] = hub.url
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        fetched = sorted(hub.fetched)
    scores = json.loads(done.stdout)
    pairs = [("red song", "blue film"), ("old", "new song")]
    ours = CrossEncoder(text_model=str(published), head="pooler", pooling="cls")
    assert scores == pytest.approx(ours.predict(pairs).tolist(), rel=1e-6)
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    assert fetched == sorted(f"{name}/{file}" for name in names for file in files)
    # The hub is gone.
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == scores


def test_a_query_ranks_documents():
    model = fit(make())
    order, scores = model.rank("red song", TEXTS)
    expected = model.predict([("red song", text) for text in TEXTS])
    assert sorted(order.tolist()) == list(range(len(TEXTS)))
    torch.testing.assert_close(scores, expected[order])
    assert (scores.diff() <= 0).all()
    assert model.rank("red song", [])[0].shape == (0,)
    assert model.predict([]).shape == (0,)


def test_users_and_items_are_read_as_these_texts():
    model = fit(make(max_history=2, history_text=[text.split()[0] for text in TEXTS]))
    # User 0 had 0, 1, 2: the newest first, two of them, in the words of histories.
    pairs = [("old ; blue".replace(" ;", ";"), text) for text in TEXTS]
    torch.testing.assert_close(model.score(torch.tensor([0]))[0], model.predict(pairs), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        model.score_histories([[0, 1, 2], []])[1], model.predict([("", text) for text in TEXTS])
    )


# As a second stage, for those who are no users of the fit.


def test_candidates_of_histories_are_ranked_as_their_texts_are(monkeypatch):
    model = fit(make(max_history=2))
    histories, candidates = (
        [[3, 0, 1], [], torch.tensor([5])],
        torch.tensor([[0, 1, 2], [5, 4, -1], [3, -1, -1]]),
    )
    read = []
    pairs = CrossEncoder._pair_scores
    monkeypatch.setattr(
        CrossEncoder, "_pair_scores", lambda self, said, i, j: read.append(len(i)) or pairs(self, said, i, j)
    )
    items, scores = model.rank_histories(histories, candidates)
    assert read == [6]  # no item beside the candidates costs a pass of the encoder
    for row, said in enumerate(["blue film; red song", "", TEXTS[5]]):
        asked = [item for item in candidates[row].tolist() if item >= 0]
        alone = model.predict([(said, TEXTS[item]) for item in asked])
        order = alone.argsort(descending=True).tolist()
        assert items[row].tolist() == [asked[place] for place in order] + [-1] * (3 - len(asked))
        torch.testing.assert_close(scores[row, : len(asked)], alone[order], rtol=1e-5, atol=1e-6)
    one, _ = model.rank_histories(histories[:1], candidates[:1])
    assert torch.equal(one, items[:1])


def test_a_text_is_read_in_place_of_a_history():
    model = fit(make())
    texts, candidates = ["old red", "blue film; new"], torch.tensor([[2, 0, 4, 5], [3, 1, -1, -1]])
    scores = model.score_texts(texts)
    torch.testing.assert_close(
        scores.flatten(), model.predict(list(itertools.product(texts, TEXTS))), rtol=1e-5, atol=1e-6
    )
    items, found = model.rank_texts(texts, candidates)
    for row, text in enumerate(texts):
        asked = [item for item in candidates[row].tolist() if item >= 0]
        order, alone = model.rank(text, [TEXTS[item] for item in asked])
        assert items[row, : len(asked)].tolist() == [asked[place] for place in order]
        torch.testing.assert_close(found[row, : len(asked)], alone, rtol=1e-5, atol=1e-6)
        single, values = model.rank_texts([text], candidates[row : row + 1])
        assert torch.equal(single[0], items[row])
        torch.testing.assert_close(values[0], found[row], rtol=1e-5, atol=1e-6)
    assert found[1, 2:].tolist() == [-math.inf] * 2
    assert model.score_texts([]).shape == (0, 6)
    for ask in (lambda: model.score_texts("old"), lambda: model.rank_texts("old", candidates)):
        with pytest.raises(TypeError, match=r"write \[text\]"):
            ask()
    with pytest.raises(ValueError, match="one row a text, 2, got 1"):
        model.rank_texts(texts, candidates[:1])
    with pytest.raises(NotFittedError):
        make().rank_texts(texts, candidates)


# What it learns from.


def test_an_example_reads_what_came_strictly_before(monkeypatch):
    model = make()
    kept = {}
    prepare = CrossEncoder.prepare
    monkeypatch.setattr(CrossEncoder, "prepare", lambda self, *a: kept.setdefault("it", prepare(self, *a)))
    said = []
    of = CrossEncoder._said
    monkeypatch.setattr(
        CrossEncoder, "_said", lambda self, h: said.append([list(x) for x in h]) or of(self, h)
    )
    fit(model)
    assert kept["it"].targets.tolist() == EVENTS.items.tolist()
    # Items 3 and 4 of user 1 are of one second: neither reads the other, the third reads both.
    expected = [[], [0], [0, 1], [], [], {3, 4}, [], [], [1]]
    found = [set(x) if isinstance(e, set) else x for x, e in zip(said[0], expected, strict=True)]
    assert found == expected


def test_negatives_are_no_items_of_the_user_or_are_the_candidates():
    model = make(n_negatives=30)
    examples = fit(model) and model.prepare(EVENTS, None)
    rows = torch.arange(len(examples.targets))
    lists = model._lists(examples, rows, model.epoch_generator(1))
    own = [set(EVENTS.items[EVENTS.users == user].tolist()) for user in range(4)]
    for user, drawn in zip(examples.users.tolist(), lists[:, 1:].tolist(), strict=True):
        assert not own[user] & set(drawn)
        assert len(set(drawn)) == len(TEXTS) - len(own[user])
    # No event of user 2 has a candidate beside its target, and teaches nothing.
    candidates = torch.tensor([[0, 1, 5]] * 6 + [[2, -1, -1]] + [[1, 5, 3]] * 2)
    model = fit(make(n_negatives=4, candidates=candidates))
    examples = model.prepare(EVENTS, None)
    assert examples.users.tolist() == [0, 0, 0, 1, 1, 1, 3, 3]
    lists = model._lists(examples, torch.arange(8), model.epoch_generator(1))
    expected = [{1, 5}, {0, 5}, {0, 1, 5}, {0, 1, 5}, {0, 1, 5}, {0, 1}, {5, 3}, {1, 3}]
    assert [set(row[1:]) - {-1} for row in lists.tolist()] == expected
    with pytest.raises(ValueError, match="one row for each of the 9 events of fit, got 3"):
        fit(make(candidates=candidates[:3]))


def test_lists_are_drawn_without_replacement_and_evenly():
    candidates = torch.tensor([[7, 3, 5, -1, 9]]).expand(3000, -1)
    drawn = draw_lists(candidates, torch.full((3000,), 5), 2, torch.Generator().manual_seed(0))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    counts = drawn.flatten().bincount(minlength=10)
    assert counts[[3, 7, 9]].sum() == 6000
    assert ((counts[[3, 7, 9]] - 2000).abs() < 200).all()
    assert draw_lists(candidates[:1], torch.tensor([5]), 6, torch.Generator()).tolist()[0][3:] == [-1] * 3


def by_hand(model: CrossEncoder, loss: str) -> float:
    """The loss of the first step, in words of the textbook, from the scores of an untrained twin."""
    examples = model.prepare(EVENTS, None)
    lists = model._lists(examples, torch.arange(9), model.epoch_generator(1))
    texts = [model.separator.join(TEXTS[i] for i in h[::-1]) for h in
             ([], [0], [0, 1], [], [], None, [], [], [1]) if h is not None]  # fmt: skip
    total, row = [], 0
    for n in range(9):
        if n == 5:  # the order of two tied events is random
            continue
        s = model.predict([(texts[row], TEXTS[item]) for item in lists[n].tolist()]).double().tolist()
        row += 1
        if loss == "softmax":
            total.append(-math.log(math.exp(s[0]) / sum(map(math.exp, s))))
        elif loss == "bpr":
            total.append(sum(-math.log(1 / (1 + math.exp(x - s[0]))) for x in s[1:]) / len(s[1:]))
        else:
            signs = [1, *[-1] * len(s[1:])]
            total.append(sum(math.log(1 + math.exp(-y * x)) for x, y in zip(s, signs, strict=True)) / len(s))
    return sum(total) / len(total)


@pytest.mark.parametrize("loss", ["softmax", "bpr", "bce"])
def test_the_loss_is_the_one_of_the_textbook(loss):
    kept = torch.arange(len(EVENTS)) != 5
    model = fit(make(loss=loss, learning_rate=1e-12, encoder_learning_rate=1e-12))
    examples = model.prepare(EVENTS, None)
    lists = model._lists(examples, torch.arange(9), model.epoch_generator(1))
    chosen = {name: getattr(examples, name)[kept] for name in ("history", "targets", "users")}
    part = dataclasses.replace(examples, lists=lists[kept], **chosen)
    found = [(value.item(), n) for value, n in model.epoch_losses(part, 1, 0)]
    assert sum(n for _, n in found) == 8
    mean = sum(value * n for value, n in found) / 8
    assert mean == pytest.approx(by_hand(model, loss), rel=1e-5)


def test_batches_hold_examples_of_like_length():
    lengths = torch.randint(100, (1000,), generator=torch.Generator().manual_seed(0))
    batches = batches_of_like_length(lengths, 10, torch.Generator().manual_seed(1))
    assert sorted(torch.cat(batches).tolist()) == list(range(1000))
    spread = torch.tensor([float(lengths[b].max() - lengths[b].min()) for b in batches]).mean()
    assert spread < 10
    means = [float(lengths[b].float().mean()) for b in batches]
    assert means != sorted(means)
    assert batches_of_like_length(lengths[:0], 10, torch.Generator()) == []


# What two vectors cannot.

XOR_TEXTS = ["tea", "coffee", "water", "rain", "morning", "evening"]


def xor_events(repeats: int = 1) -> Interactions:
    """Morning after exactly one of tea and coffee, evening after both or none; water is in every history.

    The order and the time of the drinks vary, so that only the rule is left to learn.
    """
    rows, user = [], 0
    for tea, coffee in itertools.product((0, 1), repeat=2):
        drinks = [2, *([0] if tea else []), *([1] if coffee else [])]
        for order in itertools.permutations(drinks):
            for _ in range(repeats * 6 // math.factorial(len(drinks))):
                rows += [(user, item, 1 + time) for time, item in enumerate(order)]
                rows.append((user, 4 if tea != coffee else 5, 10))
                user += 1
    return events(rows)


def test_it_learns_an_exclusive_or():
    """No sum of item vectors can: morning over evening must gain by tea, gain by coffee, and lose by both."""
    inter = xor_events()
    # Every example asks the one question: morning or evening? The drinks themselves are not asked for.
    candidates = torch.full((len(inter), 2), -1)
    candidates[inter.items >= 4] = torch.tensor([4, 5])
    model = CrossEncoder(
        text=XOR_TEXTS,
        text_model=small_bert((*XOR_TEXTS, ";"), n_layers=2),
        candidates=candidates,
        n_negatives=1,
        epochs=60,
        batch_size=8,
        dropout=0.0,
        encoder_learning_rate=0.003,
        learning_rate=0.003,
    )
    fit(model, inter)
    histories = [[2], [2, 0], [1, 2], [0, 2, 1], [1, 0, 2], [2, 1, 0]]
    morning = model.score_histories(histories)[:, 4] > model.score_histories(histories)[:, 5]
    assert morning.tolist() == [False, True, True, False, False, False]
    # As texts, too.
    assert model.rank("tea; water", ["evening", "morning"])[0].tolist() == [1, 0]
    assert model.rank("coffee; tea; water", ["evening", "morning"])[0].tolist() == [0, 1]


# Learning from pairs that were judged.

JUDGED = [
    ("old", "red song", 2.0), ("new", "blue", 0.0), ("old", "blue film", 0.0), ("old", "new", 1.0),
    ("film", "blue", 1.0), ("new", "red song", 0.0), ("old", "song", 1.0), ("film", "old", 0.0),
]  # fmt: skip


def judged(losses: str) -> tuple[list[tuple[str, str]], list[float]]:
    """Grades, or shares of the highest where each pair is judged by itself."""
    labels = [label / 2 if losses == "bce" else label for *_, label in JUDGED]
    return [(query, document) for query, document, _ in JUDGED], labels


def fit_pairs(model: CrossEncoder, pairs, labels, *rest, **options) -> CrossEncoder:
    return model.fit_pairs(pairs, labels, *rest, device="cpu", progress=False, **options)


@pytest.mark.parametrize("loss", ["softmax", "bpr", "bce"])
def test_it_learns_a_rule_from_judged_pairs(loss):
    """A document fits a query if exactly one of them is red; some combinations are never shown."""
    things = ["old", "new", "song", "film", "old song", "new film"]
    texts = [*things, *(f"red {thing}" for thing in things)]
    every = list(itertools.product(texts, texts))
    labels = [float(query.startswith("red") != document.startswith("red")) for query, document in every]
    shown = [place for place in range(len(every)) if place % 5]
    rates = {"learning_rate": 0.003, "encoder_learning_rate": 0.003}
    model = make(loss=loss, epochs=40, batch_size=16, seed=2, **rates)
    fit_pairs(model, [every[n] for n in shown], [labels[n] for n in shown])
    hidden = [n for n in range(len(every)) if n % 5 == 0]
    assert len(hidden) == 29
    scores, fits = model.predict([every[n] for n in hidden]), torch.tensor([labels[n] for n in hidden])
    right = scores[fits == 1][:, None] > scores[fits == 0]
    assert right.float().mean() > 0.95
    if loss == "bce":
        assert ((scores > 0).float() == fits).float().mean() > 0.9


def test_a_judged_pair_is_held_against_those_of_its_query_with_a_lower_label():
    model = make(n_negatives=3)
    kept, losses = [], model.epoch_losses
    model.epoch_losses = lambda examples, *rest: kept.append(examples) or losses(examples, *rest)
    pairs, labels = judged("softmax")
    fit_pairs(model, pairs, labels)
    examples = kept[0]
    texts = list(dict.fromkeys([*(query for query, _ in pairs), *(document for _, document in pairs)]))
    label = dict(zip(pairs, labels, strict=True))

    def pair(number):
        return texts[examples.first[number]], texts[examples.second[number]]

    lists = examples.lists(torch.arange(len(examples.targets)), 3, torch.Generator().manual_seed(0))
    found = {pair(row[0]): {pair(n) for n in row[1:] if n >= 0} for row in lists.tolist()}
    # Of "new" both labels are equal: there is nothing to learn of their order.
    assert found == {
        target: {other for other in pairs if other[0] == target[0] and label[other] < label[target]}
        for target in pairs
        if label[target] > 0
    }
    two = examples.lists(torch.full((500,), 2), 2, torch.Generator().manual_seed(0))
    assert pair(two[0, 0]) == ("old", "red song")
    assert (two[:, 1] != two[:, 2]).all()
    assert len({frozenset(row) for row in two[:, 1:].tolist()}) == 3


@pytest.mark.parametrize("loss", ["softmax", "bpr", "bce"])
def test_the_loss_of_judged_pairs_is_the_one_of_the_textbook(loss):
    pairs, labels = judged(loss)
    model = make(loss=loss, n_negatives=5, learning_rate=1e-12, encoder_learning_rate=1e-12)
    fit_pairs(model, pairs, labels)
    score = dict(zip(pairs, model.predict(pairs).double().tolist(), strict=True))
    total = []
    for (query, document), label in zip(pairs, labels, strict=True):
        s = score[query, document]
        lower = [score[p] for p, other in zip(pairs, labels, strict=True) if p[0] == query and other < label]
        if loss == "bce":
            p = 1 / (1 + math.exp(-s))
            total.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
        elif lower and loss == "bpr":
            total += [-math.log(1 / (1 + math.exp(x - s))) / 5 for x in lower]
        elif lower:
            total.append(-math.log(math.exp(s) / sum(map(math.exp, [s, *lower]))))
    n = 8 if loss == "bce" else 4
    assert model.log[0]["loss"] == pytest.approx(sum(total) / n, rel=1e-5)


def test_after_judged_pairs_it_answers_for_texts_and_where_told_for_users(tmp_path):
    pairs, labels = judged("softmax")
    model = fit_pairs(make(), pairs, labels)
    scores = model.predict(pairs)
    with pytest.raises(NotFittedError, match="knows no users and items; give fit_pairs interactions="):
        model.score(torch.tensor([0]))
    with pytest.raises(NotFittedError, match="knows no users and items"):
        model.score_texts(["old"])
    model.save_pretrained(tmp_path / "texts")
    loaded = CrossEncoder.from_pretrained(tmp_path / "texts")
    torch.testing.assert_close(loaded.predict(pairs), scores)
    assert loaded.rank("old", ["blue", "song"])[0].tolist() == model.rank("old", ["blue", "song"])[0].tolist()

    whole = fit_pairs(make(max_history=1), pairs, labels, EVENTS)
    torch.testing.assert_close(whole.predict(pairs), scores)  # nothing is learned from the events
    expected = whole.predict([(TEXTS[2], text) for text in TEXTS])
    torch.testing.assert_close(whole.score(torch.tensor([0]))[0], expected, rtol=1e-5, atol=1e-6)
    whole.save_pretrained(tmp_path / "whole")
    torch.testing.assert_close(
        CrossEncoder.from_pretrained(tmp_path / "whole").score(torch.arange(4)), whole.score(torch.arange(4))
    )
    again = fit(whole)
    assert same_state(state(again), state(fit(make(max_history=1))))  # a fit starts over


def test_nothing_is_left_to_the_default_device(explicit_devices, monkeypatch):
    build = CrossEncoder.build  # the modules of torch itself name no device

    def unguarded(self):
        with torch._C.DisableTorchFunction():
            build(self)

    monkeypatch.setattr(CrossEncoder, "build", unguarded)
    pairs, labels = judged("softmax")
    model = make(frozen_layers=1, cache_frozen=True)
    with explicit_devices:
        fit_pairs(model, pairs, labels, EVENTS)
        model.predict(pairs)
        model.score_texts(["old"])
        model.rank_texts(["old"], torch.zeros(1, 1, dtype=torch.int64, device="cpu"))


def test_the_cached_output_of_frozen_layers_changes_nothing_of_judged_pairs():
    pairs, labels = judged("softmax")
    options = {"frozen_layers": 1, "epochs": 3}
    plain, cached = (fit_pairs(make(cache_frozen=on, **options), pairs, labels) for on in (False, True))
    assert [entry["loss"] for entry in plain.log] == pytest.approx(
        [entry["loss"] for entry in cached.log], rel=1e-5
    )
    torch.testing.assert_close(plain.predict(pairs), cached.predict(pairs), rtol=1e-4, atol=1e-5)


def test_a_run_on_other_labels_does_not_go_on(tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("no further")

    pairs, labels = judged("bpr")
    options = {"loss": "bpr", "checkpoints": tmp_path}
    monkeypatch.setattr("recsys_lib.training.Checkpoints.remove", stop)
    with pytest.raises(RuntimeError, match="no further"):
        fit_pairs(make(**options), pairs, labels)
    monkeypatch.undo()
    for others in ([*labels[:-1], 3.0], [label + 1 for label in labels]):
        with pytest.raises(ValueError, match="run with other options or other data"):
            fit_pairs(make(**options), pairs, others)
    with pytest.raises(ValueError, match="run with other options or other data"):
        fit_pairs(make(**options), [*pairs[:-1], ("film", "new")], labels)
    fit_pairs(make(**options), pairs, labels)


def test_judged_pairs_that_make_no_sense_are_refused():
    pairs, labels = judged("softmax")
    for given, message in (
        ((pairs, labels[:-1]), r"one a pair, 8; got shape \(7,\)"),
        (([], []), "at least one pair, got none"),
        ((pairs, [*labels[:-1], math.nan]), r"labels\[7\] is not finite"),
        ((pairs, [1.0] * 8), "nothing to put in order; add others for the same query"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_pairs(make(), *given)
    with pytest.raises(ValueError, match=r'labels\[0\] is 2: loss="bce" takes labels from 0'):
        fit_pairs(make(loss="bce"), pairs, labels)
    for given, message in (
        ((["ab"], [1]), r"pairs\[0\] must be two texts"),
        (([("a", 3)], [1]), r"pairs\[0\] must be two texts, \(query, document\), got \('a', 3\)"),
        (("ab", [1]), "got a single text"),
        ((pairs, ["good"] * 8), "labels must be numbers"),
        ((pairs, labels, pairs), "fit_pairs takes Interactions, got list"),
    ):
        with pytest.raises(TypeError, match=message):
            fit_pairs(make(), *given)
    with pytest.raises(ValueError, match="reads the items' texts: give text="):
        fit_pairs(make(text=None), pairs, labels, EVENTS)


# Frozen layers.


def test_frozen_layers_are_layers_with_a_rate_of_zero(monkeypatch):
    frozen = fit(make(frozen_layers=1, clip=None, epochs=2))

    def parts(self):
        encoder = self.scorer.encoder
        named = (encoder.token_embedding, encoder.segment_embedding, encoder.position_embedding)
        lower = nn.ModuleList([*named, encoder.embedding_norm, encoder.blocks[0]])
        return [(lower, 0.0), (encoder.blocks[1], self.encoder_learning_rate)]

    monkeypatch.setattr(CrossEncoder, "slower", parts)
    free = fit(make(clip=None, epochs=2))
    for name, tensor in free.state_dict().items():
        torch.testing.assert_close(frozen.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    folder = Path(small_bert(WORDS, n_layers=2))
    before = Relevance.from_folder(folder, dropout=0.0, head="linear", pooling="mean", frozen_layers=0)
    moved = [
        not torch.equal(a.query.weight, b.query.weight)
        for a, b in (
            (frozen.scorer.encoder.blocks[n].attention, before.encoder.blocks[n].attention) for n in (0, 1)
        )
    ]
    assert moved == [False, True]


def test_frozen_layers_drop_nothing():
    scorer = fit(make(frozen_layers=1, dropout=0.5)).scorer.train()
    ids, present = torch.tensor([[1, 4, 5, 2, 6, 2]]), torch.ones(1, 6, dtype=torch.bool)
    hidden = scorer.lower(ids, present, torch.zeros_like(ids))
    assert torch.equal(scorer.lower(ids, present, torch.zeros_like(ids)), hidden)
    assert not hidden.requires_grad
    assert not torch.equal(scorer.upper(hidden, present), scorer.upper(hidden, present))


def test_the_cached_output_of_frozen_layers_changes_nothing(monkeypatch):
    # With the cache an epoch's lists are those of epoch 0; here the lists of all epochs are.
    draw = CrossEncoder.epoch_generator
    monkeypatch.setattr(
        CrossEncoder,
        "epoch_generator",
        lambda self, epoch, purpose="examples": draw(self, epoch * (purpose == "order"), purpose),
    )
    plain, cached = (fit(make(frozen_layers=1, cache_frozen=on, epochs=3)) for on in (False, True))
    assert [entry["loss"] for entry in plain.log] == pytest.approx(
        [entry["loss"] for entry in cached.log], rel=1e-5
    )
    torch.testing.assert_close(
        plain.score(torch.arange(4)), cached.score(torch.arange(4)), rtol=1e-4, atol=1e-5
    )


def test_kept_states_are_given_back_and_their_file_goes(tmp_path, monkeypatch):
    kept = KeptStates(torch.tensor([2, 0, 3]), 2)
    hidden = torch.arange(12.0).view(2, 3, 2)
    kept.write(torch.tensor([2, 0]), hidden)
    found, present = kept.read(torch.tensor([0, 2]))
    assert present.tolist() == [[True, True, False], [True] * 3]
    assert torch.equal(found[1], hidden[0])
    assert torch.equal(found[0, :2], hidden[1, :2])
    assert (found[0, 2] == 0).all()
    folder = tmp_path / "cache" / "states"
    assert len(list(folder.iterdir())) == 1
    del kept
    assert not list(folder.iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 10}))
    with pytest.raises(OSError, match=r"2 pairs takes 0\.0 GB.*cache_frozen=False"):
        KeptStates(torch.tensor([3, 3]), 2)


# Validation.


def test_a_check_ranks_some_items_for_some_users(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    rows = [(u, int(i), t) for u in range(9) for t, i in enumerate(torch.randperm(6, generator=rng)[:4])]
    train, validation = events([r for r in rows if r[2] < 3]), events([r for r in rows if r[2] == 3])
    asked, rank = [], CrossEncoder.rank

    def counted(self, users, candidates):
        assert not self.scorer.training
        asked.append((users, candidates))
        return rank(self, users, candidates)

    monkeypatch.setattr(CrossEncoder, "rank", counted)
    model = fit(make(check_users=4, check_items=3, epochs=3, patience=3), train, validation)
    assert len(asked) == 3
    users, candidates = asked[0]
    assert len(users) == 4
    assert all(torch.equal(candidates, other) for _, other in asked)
    for user, row in zip(users.tolist(), candidates.tolist(), strict=True):
        seen, find = ([r[1] for r in rows if r[0] == user and (r[2] == 3) == late] for late in (False, True))
        assert find[0] in row
        assert not set(row) & set(seen)
    figures = [entry["ndcg@10 among 3"] for entry in model.log]
    assert model.best_epoch == 1 + figures.index(max(figures))
    items, _ = rank(model, users, candidates)
    targets = torch.tensor([[r[1] for r in rows if r[0] == user and r[2] == 3] for user in users.tolist()])
    place = (items == targets).nonzero()[:, 1]
    assert max(figures) == pytest.approx(float((1 / (place + 2).double().log2()).mean()))


# What makes no sense.


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="reads the items' texts: give text="):
        fit(CrossEncoder(text_model=small_bert(WORDS)))
    with pytest.raises(ValueError, match="text must be one text an item: 6 items, 2 texts"):
        fit(make(text=["a", "b"]))
    with pytest.raises(TypeError, match=r"history_text\[1\] is 3, not a text"):
        fit(make(history_text=["a", 3, "b", "c", "d", "e"]))
    with pytest.raises(TypeError, match="got a single text"):
        make(text="red")
    with pytest.raises(ValueError, match="frozen_layers=3, but the encoder has 2 blocks"):
        fit(make(frozen_layers=3))
    with pytest.raises(ValueError, match="cache_frozen needs frozen_layers"):
        make(cache_frozen=True)
    with pytest.raises(NotFittedError, match="has no head to score with"):
        make().predict([("a", "b")])
    model = fit(make())
    with pytest.raises(TypeError, match=r"pairs\[0\] must be two texts"):
        model.predict(["ab"])
    with pytest.raises(TypeError, match="documents must be a list of texts"):
        model.rank("a", "b")


# Runs that are killed.

RUN = """
    import os, signal, sys
    import torch
    import recsys_lib.training as training
    from test_cross_encoder import fit, fine_tuning

    torch.set_num_threads(1)
    folder, text_model, moment, cached = sys.argv[1:]
    left = [4]
    write, save = training.Checkpoints.write, torch.save

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(self, state):
        left[0] -= 1
        write(self, state)
        if left[0] == 0:
            kill()

    def half(state, file):
        save(state, file)
        if left[0] == 0:
            with open(file, "r+b") as part:
                part.truncate(100)
            kill()

    training.Checkpoints.write = counted
    if moment == "in the middle of writing":
        torch.save = half
    fit(fine_tuning(text_model, cached == "True", checkpoints=folder))
"""


def fine_tuning(text_model: str, cached: bool, **options) -> CrossEncoder:
    """Three steps an epoch, with dropout and all the rest."""
    steps = {"accumulate": 2, "batch_size": 2, "epochs": 3, "dropout": 0.2, "checkpoint_every": 1}
    frozen = {"frozen_layers": 1, "cache_frozen": cached}
    return make(text_model=text_model, **steps, **frozen, **options)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("moment", ["after a checkpoint", "in the middle of writing"])
def test_a_killed_run_goes_on_to_the_same_result(moment, cached, tmp_path):
    text_model = small_bert(WORDS, n_layers=2)
    folder = tmp_path / "run"
    root, here = Path(__file__).parents[2], Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN), str(folder), text_model, moment, str(cached)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(here)])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert (folder / "checkpoint.pt").is_file()
    whole = fit(fine_tuning(text_model, cached))
    resumed = fine_tuning(text_model, cached, checkpoints=folder)
    losses, asked = resumed.epoch_losses, []
    resumed.epoch_losses = lambda examples, epoch, done: (
        asked.append((epoch, done)) or losses(examples, epoch, done)
    )
    fit(resumed)
    # After two steps of two batches, the end of the epoch, and a step of the second: the fourth checkpoint.
    # Killed while that was written, the third still stands.
    assert asked[0] == ((2, 2) if moment == "after a checkpoint" else (2, 0))
    assert same_state(state(resumed), state(whole))
    assert resumed.log == whole.log
    assert not (folder / "checkpoint.pt").exists()


def test_a_run_on_other_data_does_not_go_on(tmp_path, monkeypatch):
    def stop(*_):
        raise RuntimeError("no further")

    monkeypatch.setattr("recsys_lib.training.Checkpoints.remove", stop)
    with pytest.raises(RuntimeError, match="no further"):
        fit(make(checkpoints=tmp_path))
    monkeypatch.undo()
    for other in (
        make(checkpoints=tmp_path, loss="bpr"),
        make(checkpoints=tmp_path, text=[*TEXTS[:-1], "new"]),
    ):
        with pytest.raises(ValueError, match="run with other options or other data"):
            fit(other)
    with pytest.raises(ValueError, match="run with other options or other data"):
        fit(make(checkpoints=tmp_path), EVENTS[:-1])
