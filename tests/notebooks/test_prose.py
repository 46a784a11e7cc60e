"""The check for measured numbers that were typed, held against texts where the answer is known."""

import pytest

from book.prose import typed_claims, typed_numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("BPR reaches 0.071.", ["0.071"]),
        ("It is .071 here", [".071"]),
        ("−0.01 and +1,234.5", ["-0.01", "+1,234.5"]),
        ("about 1e-6 apart, or 2.5e-3", ["1e-6", "2.5e-3"]),
        ("a gain of 12 %", ["12 %"]),
        ("a gain of 12.5%, or 12 percent, or 3 per cent", ["12.5%", "12 percent", "3 per cent"]),
        ("95 % of the users", ["95 %"]),
        ("It dropped to 0.071 (from 0.084).", ["0.071", "0.084"]),
        ("**0.071** and *0.072* and [0.073](https://example.org)", ["0.071", "0.072", "0.073"]),
        ("## A gain of 3.2 %", ["3.2 %"]),
        ("- an item with 0.3", ["0.3"]),
        ("> a quote with 0.07", ["0.07"]),
        ("| a | b |\n|---|---|\n| x | .05 |", [".05"]),
        ("![a curve that ends at 0.5](x.png)", ["0.5"]),
        ("```{note}\nIt is 0.07.\n```", ["0.07"]),
        ("````{admonition} Title 0.1\n:class: tip\n```{note}\nIt is 0.2.\n```\n````", ["0.1", "0.2"]),
        (":::{exercise} Title\n:label: e\n\nWe saw 0.071.\n:::", ["0.071"]),
        ("```{figure} x.png\n:alt: It ends at 0.5\n:width: 50%\n\nA caption with 0.6\n```", ["0.5", "0.6"]),
        # a formula without a variable is a number in disguise
        ("$0.071$ or $$0.5 > 0.2$$", ["0.071", "0.5", "0.2"]),
        (r"$\text{NDCG} = 0.071$", ["0.071"]),
        (r"$12\%$ more", ["12%"]),
        ("```{math}\n0.5\n```", ["0.5"]),
        ("{sub}`0.05`", ["0.05"]),
        # a citation covers its own sentence only
        ("They found 0.29 {cite}`rendle2009`. We find 0.07.", ["0.07"]),
        ("[They](https://doi.org/10.1145/3357384.3357895) found 0.29. We find 0.07.", ["0.07"]),
        ("We find 0.07. They found 0.29 {cite}`rendle2009`.", ["0.07"]),
        ("We find 0.07.\n\n- They found 0.29 {cite}`rendle2009`.\n- We 0.08.", ["0.07", "0.08"]),
    ],
)
def test_a_typed_number_is_found(text, numbers):
    assert typed_numbers(text) == numbers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BPR reaches {glue:text}`bpr:.3f`, from {glue:text}`bpr_low:.3f`.",
        "{glue:text}`../notebooks/04_bpr.ipynb::bpr:.3f`",
        "They reached 0.292 {cite}`rendle2009`.",
        "[Rendle et al. (2009)](https://arxiv.org/abs/1205.2618) reached 0.292.",
        "In {cite:t}`he2017`, the rate was 0.001, e.g. 5 % of that.",
        "set `lr=0.5` here, or ``0.5``",
        "```python\nx = 0.5\n```",
        "~~~\n0.5\n~~~",
        "    0.5 indented",
        "```{code-block} python\n:linenos:\nx = 0.5\n```",
        "```{math}\nx = 0.5\n```",
        r"a weight of $\alpha = 0.5$, $x > 0.1$ or $$\lambda_u = 0.01$$",
        "95 % interval, 95% confidence interval, 95 % bootstrap interval",
        "Section 3.2, equation 4.1, figure 1.2, Python 3.11, version 2.13.0",
        "1. first\n2. second",
        "100,000 ratings by 943 users of 1,682 movies; NDCG@10; k = 10; u1.base",
        "<https://example.org/1.5/a> and [a paper](https://example.org/2.5) and https://example.org/3.5",
        "<!-- 0.5 -->",
        "% a comment with 0.5",
        "```{figure} x.png\n:width: 50%\n:alt: A curve\n```",
        "The year 2009. In 10 of 12 cases.",
    ],
)
def test_everything_else_is_let_through(text):
    assert typed_numbers(text) == []


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("EASE is fitted in less than a second.", ["less than a second"]),
        ("under two minutes, or just\na few hours", ["under two minutes", "just a few hours"]),
        ("It takes about ten minutes and needs seconds.", ["takes about ten minutes", "needs seconds"]),
        ("trained in minutes, ready in a few hours", ["trained in minutes", "ready in a few hours"]),
        ("and EASE needs a fraction of the time", ["a fraction of the time"]),
        ("at half the cost, a third of the memory", ["half the cost", "a third of the memory"]),
        ("twice as fast, half as large", ["twice as fast", "half as large"]),
        ("costs several times as much, or ten times more", ["several times as much", "ten times more"]),
        ("It is *three times faster*.", ["three times faster"]),
        ("A few films collect most of the ratings.", ["most of the"]),
        (
            "nearly all users, almost none, the vast majority of films",
            ["nearly all", "almost none", "the vast majority of"],
        ),
        ("It beats it for almost every user.", ["almost every user"]),
        ("![a line twice as high](x.png)", ["twice as high"]),
        ("```{note}\nIt takes a minute.\n```", ["takes a minute"]),
        # a citation covers its own sentence only
        ("They need half the time {cite}`rendle2009`. Ours takes an hour.", ["takes an hour"]),
    ],
)
def test_a_measured_claim_in_words_is_found(text, claims):
    assert typed_claims(text) == claims


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fitted in {glue:text}`seconds:.1f` s, {glue:text}`times:.1f` times as long",
        "`half the time`, or\n\n```python\n# takes ten minutes\n```",
        "{cite:t}`he2017` needed half the time.",
        "The span of a history, in minutes; within a minute of the last known event; an hour later.",
        "How many times longer is it? Stretch it by up to four times. Count it twice.",
        "Each has half the weight of the one after it. Half of the users rated more.",
        "Most of this chapter turns that dial. Almost every recommender ends in one line.",
        "n events or a fraction of each history; the second minute; at the last second",
        "A film that hardly anyone knows. A few films. The same budget of trials.",
        "Score each half twice, and draw users many times.",
        "<https://example.org/half-the-time> and $2 x$",
    ],
)
def test_words_that_measure_nothing_are_let_through(text):
    assert typed_claims(text) == []
