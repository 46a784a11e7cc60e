"""Who is compared with whom, and with which settings offered.

Every contender gets the same number of trials on the validation part, drawn from its grid, and a second,
smaller grid where its best value lies at an end of the first. A grid's values are in rising order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RUNNERS = FOLDER / "runners"
OURS = "ours"


@dataclass(frozen=True)
class Library:
    """A library and where it lives.

    Attributes:
        name: as it is shown.
        environment: the name of its requirements file; several libraries may share one. None is the book's
            own.
        runner: the script that runs it.
    """

    name: str
    environment: str | None
    runner: Path


@dataclass(frozen=True)
class Contender:
    """A model of a library.

    Attributes:
        library: its name.
        model: the model's name, the same in every library that has it.
        space: for each option the values to try.
        fixed: options that every fit gets.
        epochs: the most that are tried; 1 for a model without.
        every: epochs between two looks at validation, which find the number of epochs.
        seeds: fits whose results are averaged; 1 for a model without randomness.
        limits: the least and greatest value that an option can have, where the second grid might leave them.
        budget: trials, where it is another than the plan's; the same for all that have the model.
        note: what has to be known, for the page.
    """

    library: str
    model: str
    space: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 1
    every: int = 0
    seeds: int = 1
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    budget: int | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """The name of its results."""
        return f"{self.library}/{self.model}"


@dataclass(frozen=True)
class Plan:
    """All that is measured.

    Attributes:
        libraries: by name.
        quality: contenders on the headline split, by NDCG@10.
        ratings: contenders on the random split, by RMSE.
        served: fitted and asked for everyone's list on both data sets: library, model, options.
        epochs: one epoch of BPR: library, options, among them the model where it has another name.
        evaluators: what each calls its task, by library.
        ranking: the libraries that rank a large catalog by a product of factors.
        faults: scripts by library.
        levels: of NDCG@10 on validation, that training should reach; the last is near a peer's best.
        budget: trials for each contender.
        second: trials of the second grid.
        repeats: processes for every time; in each what is quick is done thrice.
        limit: seconds that one process may take.
    """

    libraries: Mapping[str, Library]
    quality: Sequence[Contender] = ()
    ratings: Sequence[Contender] = ()
    served: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    epochs: Sequence[tuple[str, Mapping[str, Any]]] = ()
    evaluators: Mapping[str, str] = field(default_factory=dict)
    ranking: Sequence[str] = ()
    faults: Mapping[str, Path] = field(default_factory=dict)
    levels: Sequence[float] = (0.1413, 0.1517, 0.16)
    budget: int = 8
    second: int = 4
    repeats: int = 2
    limit: float = 900.0


_LIBRARIES = {
    OURS: (None, "run_ours.py"),
    "implicit": ("implicit-cornac-metrics", "run_implicit.py"),
    "Cornac": ("implicit-cornac-metrics", "run_cornac.py"),
    "LensKit": ("lenskit", "run_lenskit.py"),
    "RecBole": ("recbole", "run_recbole.py"),
    "RecTools": ("rectools", "run_rectools.py"),
    "Surprise": ("surprise", "run_surprise.py"),
    "ir-measures": ("implicit-cornac-metrics", "run_metrics.py"),
    "ranx": ("implicit-cornac-metrics", "run_metrics.py"),
    "numpy": (None, "run_numpy.py"),
}

_L2 = [50.0, 100.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1200.0]
_NEIGHBORS = [10, 20, 50, 100, 200]
# What is fitted in a blink may try every setting: a few that are drawn leave the choice to the draw.
_ALL: dict[str, int] = {"budget": 45}
_LONG: dict[str, int] = {"epochs": 100, "every": 5, "seeds": 3}
_ALTERNATING: dict[str, int] = {"epochs": 20, "every": 10, "seeds": 3, "budget": 36}

QUALITY = [
    Contender(OURS, "Popularity"),
    Contender("Cornac", "Popularity"),
    Contender("LensKit", "Popularity"),
    Contender("RecTools", "Popularity"),
    Contender("RecBole", "Popularity"),
    Contender(
        OURS,
        "ItemKNN",
        {"k": _NEIGHBORS, "shrink": [0.0, 10.0, 50.0], "power": [0.5, 0.8, 1.0]},
        limits={"power": (0.0, 1.0)},
        **_ALL,
    ),
    Contender("implicit", "ItemKNN", {"K": [10, 20, 50, 100, 200, 400, 800]}, **_ALL),
    Contender(
        "LensKit", "ItemKNN", {"max_nbrs": [5, *_NEIGHBORS, 400], "min_sim": [1e-6, 0.03, 0.1]}, **_ALL
    ),
    Contender("RecBole", "ItemKNN", {"k": _NEIGHBORS, "shrink": [0.0, 10.0, 50.0]}, **_ALL),
    Contender("Cornac", "ItemKNN", {"k": [20, 50, 100]}, **_ALL),
    Contender(
        OURS,
        "UserKNN",
        {"k": _NEIGHBORS, "shrink": [0.0, 10.0, 50.0], "power": [0.5, 0.8, 1.0]},
        limits={"power": (0.0, 1.0)},
        **_ALL,
    ),
    Contender(
        "LensKit", "UserKNN", {"max_nbrs": [10, 20, 30, 50, 100, 200], "min_sim": [1e-6, 0.1, 0.2]}, **_ALL
    ),
    Contender("RecBole", "UserKNN", {"k": _NEIGHBORS, "shrink": [0.0, 10.0, 50.0]}, **_ALL),
    Contender("Cornac", "UserKNN", {"k": [20, 50, 100]}, **_ALL),
    Contender(OURS, "EASE", {"l2": _L2}),
    Contender("Cornac", "EASE", {"lamb": _L2}, {"posB": False}),
    Contender("LensKit", "EASE", {"regularization": _L2}),
    Contender("RecBole", "EASE", {"reg_weight": _L2}),
    Contender("RecTools", "EASE", {"regularization": _L2}),
    Contender(
        OURS,
        "BPR",
        {"learning_rate": [0.003, 0.01, 0.03], "l2": [0.003, 0.01, 0.03]},
        {"gradient": "written"},
        **_LONG,
    ),
    Contender(
        OURS,
        "CompiledBPR",
        {"learning_rate": [0.1, 0.2, 0.4], "l2": [0.005, 0.01, 0.02], "n_negatives": [2, 4]},
        **_LONG,
    ),
    Contender(
        OURS,
        "MatrixFactorization",
        {"learning_rate": [0.02, 0.05, 0.1], "l2": [0.1, 0.2, 0.3, 0.5]},
        {"loss": "softmax", "whole_users": True, "batch_size": 4096},
        epochs=16,
        every=1,
        seeds=3,
    ),
    Contender(
        "Cornac",
        "BPR",
        {"learning_rate": [0.01, 0.03, 0.1], "lambda_reg": [0.003, 0.01, 0.03]},
        {"k": 64},
        **_LONG,
    ),
    Contender(
        "implicit",
        "BPR",
        {"learning_rate": [0.01, 0.03, 0.1], "regularization": [0.003, 0.01, 0.03]},
        {"factors_": 64},
        **_LONG,
    ),
    Contender(
        "LensKit",
        "BPR",
        {"learning_rate": [0.001, 0.003, 0.01], "regularization": [0.01, 0.1, 0.3]},
        **_LONG,
    ),
    Contender(
        "RecBole",
        "BPR",
        {"learning_rate": [0.0003, 0.001, 0.003], "weight_decay": [0.0001, 0.001, 0.01]},
        **_LONG,
    ),
    Contender(
        OURS,
        "ALS",
        {"dim": [16, 32, 64], "alpha": [0.1, 0.2, 0.4, 0.8], "l2": [0.005, 0.01, 0.02]},
        limits={"dim": (1, 128)},
        **_ALTERNATING,
    ),
    Contender(
        "implicit",
        "ALS",
        {"factors": [16, 32, 64], "alpha": [1.0, 5.0, 20.0], "regularization": [1.0, 10.0, 30.0, 100.0]},
        limits={"factors": (1, 128)},
        **_ALTERNATING,
    ),
    Contender(
        "LensKit",
        "ALS",
        {
            "embedding_size": [16, 32, 64],
            "weight": [1.0, 5.0, 20.0],
            "regularization": [1.0, 10.0, 30.0, 100.0],
        },
        limits={"embedding_size": (1, 128)},
        **_ALTERNATING,
    ),
    Contender(
        OURS,
        "MultVAE",
        {"learning_rate": [0.0005, 0.001, 0.002], "dropout": [0.3, 0.5, 0.7]},
        epochs=100,
        every=10,
        seeds=2,
        budget=4,
        limits={"dropout": (0.0, 0.9)},
    ),
    Contender(
        "RecBole",
        "MultVAE",
        {"learning_rate": [0.0005, 0.001, 0.002], "dropout_prob": [0.3, 0.5, 0.7]},
        {"train_batch_size": 128},
        epochs=100,
        every=10,
        seeds=2,
        budget=4,
        limits={"dropout_prob": (0.0, 0.9)},
    ),
    Contender(
        "Cornac",
        "MultVAE",
        {"learning_rate": [0.0005, 0.001, 0.002], "beta": [0.05, 0.2, 1.0]},
        {"k": 64, "autoencoder_structure": [200]},
        epochs=100,
        every=25,
        seeds=2,
        budget=4,
    ),
    Contender(
        OURS,
        "SASRec",
        {"learning_rate": [0.001, 0.002], "dropout": [0.2, 0.5]},
        {"dim": 64},
        epochs=60,
        every=5,
        budget=2,
    ),
    Contender(
        "RecTools",
        "SASRec",
        {"lr": [0.001, 0.002], "dropout_rate": [0.2, 0.5]},
        {"n_factors": 64, "n_blocks": 2, "n_heads": 2, "session_max_len": 100},
        epochs=25,
        every=5,
        budget=2,
    ),
]

RATINGS = [
    Contender(OURS, "BiasedMF", {"dim": [6, 8, 12, 16, 24]}, epochs=50, seeds=3),
    Contender(
        OURS,
        "RatingALS",
        {"dim": [4, 8, 16], "l2": [0.6, 1.2, 2.4], "bias_l2": [1.0, 3.0, 10.0]},
        epochs=20,
        seeds=3,
    ),
    Contender(
        "Surprise",
        "SVD",
        {"n_factors": [20, 50, 100], "reg_all": [0.02, 0.05, 0.1], "lr_all": [0.005, 0.01]},
        epochs=50,
        seeds=3,
    ),
    Contender(
        "LensKit",
        "BiasedMF",
        {"embedding_size": [8, 16, 32, 64], "regularization": [0.03, 0.1, 0.3]},
        epochs=20,
        seeds=3,
    ),
    Contender(
        "Cornac",
        "MF",
        {"k": [10, 50, 100], "lambda_reg": [0.02, 0.05, 0.1], "learning_rate": [0.005, 0.01]},
        epochs=50,
        seeds=3,
    ),
]

SERVED = [
    *((library, "EASE", options) for library, options in {
        OURS: {"l2": 400.0},
        "LensKit": {"regularization": 400.0},
        "RecTools": {"regularization": 400.0},
        "RecBole": {"reg_weight": 400.0},
        "Cornac": {"lamb": 400.0, "posB": False},
    }.items()),
    *((library, "ItemKNN", options) for library, options in {
        OURS: {"k": 100},
        "implicit": {"K": 100},
        "RecBole": {"k": 100},
        "LensKit": {"max_nbrs": 100},
    }.items()),
    *((library, "UserKNN", options) for library, options in {
        OURS: {"k": 100},
        "RecBole": {"k": 100},
        "LensKit": {"max_nbrs": 100},
    }.items()),
]  # fmt: skip

EPOCHS = [
    (OURS, {"model": "CompiledBPR", "n_negatives": 1}),
    (OURS, {"model": "CompiledBPR"}),
    (OURS, {"gradient": "written", "n_negatives": 1}),
    (OURS, {"gradient": "written"}),
    (OURS, {"n_negatives": 1}),
    ("Cornac", {"k": 64, "learning_rate": 0.03}),
    ("implicit", {"factors_": 64}),
    ("LensKit", {}),
    ("RecBole", {}),
]


def libraries(folder: Path = RUNNERS) -> dict[str, Library]:
    """All libraries, with their runners in a folder."""
    return {
        name: Library(name, environment, folder / runner)
        for name, (environment, runner) in _LIBRARIES.items()
    }


def full() -> Plan:
    """What ``make bench-peers`` measures."""
    return Plan(
        libraries=libraries(),
        quality=QUALITY,
        ratings=RATINGS,
        served=SERVED,
        epochs=EPOCHS,
        evaluators={
            OURS: "metrics",
            "RecTools": "metrics",
            "ir-measures": "metrics:ir-measures",
            "ranx": "metrics:ranx",
        },
        ranking=(OURS, "numpy", "implicit"),
        faults={
            "RecTools": FOLDER / "faults" / "rectools_ease.py",
            "RecBole": FOLDER / "faults" / "recbole_pop.py",
            "Cornac": FOLDER / "faults" / "cornac_knn.py",
        },
    )


def smoke() -> Plan:
    """The same, tiny, with the book's own library alone."""
    return Plan(
        libraries={name: library for name, library in libraries().items() if name == OURS},
        quality=[
            Contender(OURS, "Popularity"),
            Contender(OURS, "EASE", {"l2": [1.0, 10.0, 100.0]}),
            Contender(OURS, "BPR", {"learning_rate": [0.01, 0.03]}, {"dim": 4}, epochs=4, every=2, seeds=2),
        ],
        ratings=[Contender(OURS, "BiasedMF", {"dim": [2, 3]}, epochs=3)],
        served=[(OURS, "EASE", {"l2": 10.0})],
        epochs=[(OURS, {"n_negatives": 1, "dim": 4})],
        evaluators={OURS: "metrics"},
        levels=(0.01,),
        budget=2,
        second=1,
        repeats=2,
        limit=120.0,
    )
