"""Options stated once: the signature, the checks, the documentation and the saved configuration follow."""

import inspect
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.models import BPR, EASE, BERT4Rec, MarkovChain, MatrixFactorization, Recommender, TfidfContent
from recsys_lib.models.core.options import data, learned, option, preset

EVENTS = Interactions.from_frame(pd.DataFrame({"user_id": [0, 1], "item_id": [0, 1]}))


class Scaled(Recommender):
    """Scores are a number."""

    size: int = option("how large", default=2, at_least=1, at_most=9)
    share: float = option("how much", default=0.5, above=0, below=1)
    window: float | None = option("how long", default=None, above=0)
    kind: str = option("which", default="plain", choices=("plain", "fancy"))
    flag: bool = option("whether", default=False)
    table: torch.Tensor | None = data("(n_items,) anything", kw_only=False)

    fixed: ClassVar[int] = 7
    value: torch.Tensor = learned("()")

    def _fit(self, interactions, validation, progress):
        self._keep("value", torch.tensor(float(self.size)))

    def _score(self, users):
        return self.value.expand(len(users), self.n_items)


class Preset(Scaled):
    """Another default, and one that is settled."""

    size: int = option(default=5)
    kind: str = preset(default="fancy")


def test_the_signature_is_what_an_editor_shows():
    parameters = inspect.signature(Scaled).parameters
    assert list(parameters) == ["table", "size", "share", "window", "kind", "flag"]
    assert parameters["size"].default == 2
    assert parameters["size"].annotation is int
    assert parameters["size"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["table"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    # One's own options come first, then those of the parents.
    assert list(inspect.signature(EASE).parameters) == ["l2", "recency", "half_life_days"]
    assert list(inspect.signature(BERT4Rec).parameters)[:2] == ["mask_rate", "next_rate"]
    with pytest.raises(TypeError, match="positional"):
        Scaled(None, 3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sice'"):
        Scaled(sice=3)


def test_the_documentation_names_range_default_and_meaning():
    text = " ".join((Scaled.__doc__ or "").split())
    assert "Scores are a number." in text
    assert "size: how large (1 or more and 9 or less; 2 by default)." in text
    assert "kind: which (one of plain, fancy; 'plain' by default)." in text
    assert "table: (n_items,) anything; not saved." in text
    inherited = " ".join((Preset.__doc__ or "").split())
    assert "size: how large (1 or more and 9 or less; 5 by default)." in inherited
    assert "kind:" not in inherited
    assert "value" not in text


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("size", 0, ValueError, "Scaled: size must be 1 or more and 9 or less, got 0"),
        ("size", 10, ValueError, "got 10"),
        ("size", 2.0, TypeError, "Scaled: size must be a whole number, got 2.0"),
        ("size", True, TypeError, "whole number, got True"),
        ("size", None, TypeError, "whole number, got None"),
        ("size", "2", TypeError, "whole number, got '2'"),
        ("share", 0, ValueError, "share must be above 0 and below 1, got 0"),
        ("share", 1.0, ValueError, "above 0 and below 1"),
        ("share", float("nan"), ValueError, "share must be finite, got nan"),
        ("share", float("inf"), ValueError, "finite"),
        ("share", True, TypeError, "share must be a number, got True"),
        ("share", np.True_, TypeError, "share must be a number"),
        ("share", torch.tensor(0.5), TypeError, "share must be a number, got tensor"),
        ("window", -1, ValueError, "window must be above 0 or None, got -1"),
        ("window", "x", TypeError, "window must be a number or None"),
        ("kind", "odd", ValueError, "kind must be one of plain, fancy, got 'odd'"),
        ("flag", 1, TypeError, "flag must be True or False, got 1"),
    ],
)
def test_values_are_checked(name, value, error, message):
    with pytest.raises(error, match=message):
        Scaled(**{name: value})
    # A value that is set later is checked when it counts.
    model = Scaled()
    setattr(model, name, value)
    with pytest.raises(error, match=message):
        model.fit(EVENTS)


def test_the_ends_of_a_range_belong_to_it_where_it_says_so():
    assert [Scaled(size=size).size for size in (1, 9)] == [1, 9]


def test_numbers_of_numpy_become_plain_and_can_be_saved():
    model = Scaled(size=np.int64(3), share=np.float32(0.25), window=4, flag=np.bool_(True))
    assert model.config == {"size": 3, "share": 0.25, "window": 4.0, "kind": "plain", "flag": True}
    assert [type(v) for v in model.config.values()] == [int, float, float, str, bool]
    json.dumps(model.config, allow_nan=False)


def test_the_configuration_is_what_the_constructor_takes():
    assert EASE(l2=7.0, half_life_days=3).config == {"l2": 7.0, "recency": 0.0, "half_life_days": 3.0}
    found = TfidfContent(["a"], min_count=2).config
    assert found == {"min_count": 2, "recency": 0.0, "half_life_days": None}
    config = EASE().config
    config["l2"] = 1.0
    assert EASE().config["l2"] != 1.0
    assert MarkovChain().config == {"shrink": 50.0}  # what is settled is no option


def test_a_preset_with_another_default_comes_back_from_its_files(tmp_path):
    # The hub's mixin reads a signature early, and would keep the parent's default.
    class Large(Scaled):
        size: int = option(default=8)

    model = Large().fit(EVENTS)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["size"] == 8
    loaded = Large.from_pretrained(tmp_path)
    assert (loaded.size, loaded.value.item()) == (8, 8.0)
    assert Preset().kind == "fancy"
    with pytest.raises(TypeError, match="kind"):
        Preset(kind="plain")


def test_bpr_is_a_preset_of_matrix_factorization():
    assert BPR().loss == "bpr"
    shared = {k: v for k, v in MatrixFactorization().config.items() if k != "loss"}
    assert BPR().config == shared
    of_bpr, of_all = (inspect.signature(model).parameters for model in (BPR, MatrixFactorization))
    assert set(of_bpr) == set(of_all) - {"loss"}


def test_declarations_that_make_no_sense_are_refused():
    with pytest.raises(TypeError, match=r"Own defines __init__; declare its arguments with option\(\)"):

        class Own(Scaled):
            def __init__(self, size=3):
                pass

    with pytest.raises(TypeError, match=r"Bare\.width: an option needs its meaning"):

        class Bare(Scaled):
            width: int = option(default=3)

    with pytest.raises(TypeError, match=r"Loose\.width must be option\(\), data\(\)"):

        class Loose(Scaled):
            width: int = 3


def test_annotations_may_be_texts(tmp_path):
    """As in a module that starts with ``from __future__ import annotations``."""
    code = """
        from __future__ import annotations
        from typing import ClassVar
        from recsys_lib.models import Recommender
        from recsys_lib.models.core.options import option

        class Late(Recommender):
            width: int | None = option("of it", default=3, at_least=1)
            kind: ClassVar[str] = "late"
            def _fit(self, interactions, validation, progress): ...
            def _score(self, users): ...

        try:
            Late(width=0)
        except ValueError as error:
            print(error)
        print(Late(width=None).config)
        """
    (tmp_path / "late.py").write_text(textwrap.dedent(code))
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "late.py")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout == "Late: width must be 1 or more or None, got 0\n{'width': None}\n"
