"""New words around the values that a copy shows: what a run would show, or the answer that it must be run."""

import random

import pytest

from book.words import reworded, without_words
from recsys_lib.chapter.say import prose

VALUES = {
    "n": 942,
    "gap": "−0.012 [−0.020, −0.004]",
    "word": "ahead",
    "name": "BPR",
    "minus": -0.5,
    "d": {"a": "ahead", "n": 6},
}


def ran(source, **values):
    """The outputs of a cell that is run."""
    outputs = []

    class chapter:  # noqa: N801
        @staticmethod
        def say(text):
            text = prose(text)
            data = {"text/markdown": text, "text/plain": text}
            outputs.append({"output_type": "display_data", "data": data, "metadata": {}})

    exec(source, {"chapter": chapter, **VALUES, **values})
    return outputs


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('chapter.say(f"On {n:,} users it is {gap}.")', 'chapter.say(f"It is {gap} or so, {n:,} users.")'),
        ('chapter.say(f"{n} users")', 'chapter.say(f"{n + 1} users")'),
        ('chapter.say(f"{n} users")', 'chapter.say(f"{n:,} users")'),
        ('chapter.say(f"{n} users")', 'chapter.say(f"{n!r} users")'),
        ('chapter.say(f"{n} users")', 'chapter.say(f"{n} users, {word}")'),
        ('chapter.say(f"{n} users, {word}")', 'chapter.say(f"{n} users")'),
        ('chapter.say(f"it {says(above=1)}")', 'chapter.say(f"it {says(above=2)}")'),
        ("""chapter.say(f"it {f(above='a')}")""", """chapter.say(f"it {f(above='b')}")"""),
        ('x = "a"\nchapter.say(f"{x}")', 'x = "b"\nchapter.say(f"{x}")'),
        ('chapter.say(f"a")\nfinish()', 'chapter.say(f"a")'),
        ('chapter.say(f"a")', 'chapter.say(f"a")\nchapter.say(f"b")'),
        ('chapter.say(text, "a")', 'chapter.say(text, "b")'),
        ('chapter.claim("a", f"{n}")\nchapter.say("b")', 'chapter.claim("b", f"{n}")\nchapter.say("b")'),
        ('print(f"On {n}")', 'print(f"Of {n}")'),
        ('# a comment\nprint("On")', 'print("On")'),
        ('other.say("a")', 'other.say("b")'),
        ('%time chapter.say("a")', '%time chapter.say("b")'),
    ],
)
def test_a_change_of_what_is_computed_is_a_change(before, after):
    assert without_words(before) != without_words(after)
    assert reworded([], before, after) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('chapter.say(f"On {n:,} users it is {gap}.")', 'chapter.say(f"Of {n:,} users: {gap}")'),
        ('chapter.say(f"On {n:,} users.")', 'chapter.say(f"""\n    Two lines.\n\n    {n:,} users.\n""")'),
        ('chapter.say(f"\\n  - {n}\\n  - {word}\\n")', 'chapter.say(f"\\n    1. {n}\\n    2. {word}\\n")'),
        ("""chapter.say(f"it is {d['a']}, so")""", """chapter.say(f'it is "{d["a"]}", so')"""),
        ('chapter.say(f"${{x}}^2$ is {n}")', 'chapter.say(f"${{x}}^{{2}}$, squared, is {n}")'),
        ("chapter.say(f'a {n:{n}}')", "chapter.say(f'b {n:{n}}')"),
        ('chapter.say(f"gains {minus}, -0.5")', 'chapter.say(f"loses {minus} (not -0.75)")'),
        ('chapter.say(f"with `{name}` and $-1$")', 'chapter.say(f"and `{name}`, with $-2$")'),
        ('chapter.say("No values.")', 'chapter.say("None *at all*, -0.5.")'),
        ('chapter.say("On "\n  f"{n} users")', 'chapter.say(f"Of {n}"\n  " users")'),
        ('# a\nchapter.say(f"It {word}.")  # why', 'chapter.say(f"It is {word}.")'),
        ('x = 1\nif n > 1:\n    chapter.say(f"many: {n}")\nelse:\n    chapter.say(f"few: {n}")',
         'x = 1\nif n > 1:\n    chapter.say(f"lots, {n}")\nelse:\n    chapter.say(f"hardly, {n}")'),
        ('chapter.say(f"a {n}")\nchapter.say(f"b {word}")',
         'chapter.say(f"{n} a")\nchapter.say(f"{word} b")'),
        ('for i in (3, 4):\n    chapter.say(f"row {i}")', 'for i in (3, 4):\n    chapter.say(f"line {i}")'),
    ],
)  # fmt: skip
def test_new_words_stand_around_the_same_values(before, after):
    assert without_words(before) == without_words(after)
    made = reworded(ran(before), before, after)
    assert made == ran(after)
    assert made != ran(before) or prose(before) != prose(after)


def test_what_is_not_said_is_kept():
    figure = {"output_type": "display_data", "data": {"image/svg+xml": "<svg/>"}, "metadata": {"a": 1}}
    stream = {"output_type": "stream", "name": "stdout", "text": "x"}
    before, after = 'chapter.say(f"It {word}.")', 'chapter.say(f"So: {word}.")'
    (said,) = ran(before)
    lines = {**said, "data": {**said["data"], "text/markdown": ["It ", "ahead."]}}  # as some write a notebook
    assert reworded([figure, lines, stream], before, after) == [figure, *ran(after), stream]
    assert reworded([figure], "plot()", "plot()") == [figure]


@pytest.mark.parametrize(
    ("before", "after", "values"),
    [
        ('chapter.say(f"{name} and {word}")', 'chapter.say(f"{name}, {word}")', {"name": "a and b"}),
        ('chapter.say(f"{name}{word}")', 'chapter.say(f"{name} {word}")', {}),  # where does one end?
        ('chapter.say(f"It is {word}.")', 'chapter.say(f"`{word}` it is")', {"word": "-1"}),
        ('chapter.say(f"It is {word}.")', 'chapter.say(f"a{word}")', {"word": "-1"}),
        ('chapter.say(f"It is -{word}.")', 'chapter.say(f"Is it -{word}?")', {"word": "0"}),
        ('chapter.say(f"It is {word}.")', 'chapter.say(f"So {word}")', {"word": "a\n\nb"}),
        ('if 0:\n    chapter.say(f"{n}")\nelse:\n    chapter.say(f"all {n}")',
         'if 0:\n    chapter.say(f"x {n}")\nelse:\n    chapter.say(f"y {n}")', {}),
        ('chapter.say(f"It is {word}.")', 'chapter.say(f"It is {word}, {{n}}.")', {}),  # no sentence any more
        ('chapter.say(f"It is {word}.")', 'chapter.say(f" ")', {}),
    ],
)  # fmt: skip
def test_in_doubt_the_chapter_is_run(before, after, values):
    assert reworded(ran(before, **values), before, after) is None


def letters(outputs):
    """The text of an output but for its spaces: a line loses those that an empty value leaves at its edge."""
    (output,) = outputs
    return output["data"]["text/markdown"].replace(" ", "")


def test_whatever_the_words_and_the_values_a_wrong_text_is_never_made():
    """Against running the cell, for words and values that are easily taken for each other."""
    draw = random.Random(0)
    words = ["", " ", "a", " a ", "-", " -", "(", ".", "`", "$", " `b` ", "$b$ ", "5", "\n\n", "a, b"]
    values = ["", "a", "-0.5", "-0.0", "5", "a a", "a, b", "-5 a", "−2", "(", "b"]
    certain = 0
    for _ in range(6000):
        n = draw.randint(0, 3)
        before, after = (
            f"chapter.say(f{''.join(word + mark for word, mark in zip(text, marks, strict=True))!r})"
            for marks in [[*(f"{{v{i}}}" for i in range(n)), ""]]
            for text in (draw.choices(words, k=n + 1), draw.choices(words, k=n + 1))
        )
        given = {f"v{i}": draw.choice(values) for i in range(n)}
        try:
            outputs = ran(before, **given)
            made = reworded(outputs, before, after)
        except ValueError:
            continue  # nothing is said
        if made is not None:
            certain += 1
            assert letters(made) == letters(ran(after, **given)), (before, after, given)
    assert certain > 300
