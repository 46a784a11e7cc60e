"""Recommenders in worlds whose truth is known: what they do to their own data, and what a log can say.

- ``world``: people, items, appeal, attention; who clicks on what;
- ``policies``: from scores to lists, with the chances of what is shown;
- ``log``: impressions; ``learners``: what learns from them;
- ``loop``: show, click, log, retrain;
- ``off_policy``: what another policy would have earned, from a log;
- ``taste``: people whose true taste is about pictures, names, both or neither;
- ``questions``: what of their choices is known, and what is asked.
"""

from recsys_lib.simulation.learners import ClickRate, FromClicks, ImpressionFactors, InversePropensityRate
from recsys_lib.simulation.log import Log
from recsys_lib.simulation.loop import FeedbackLoop
from recsys_lib.simulation.off_policy import (
    PolicyValue,
    doubly_robust,
    ips,
    list_weights,
    naive,
    replay,
    snips,
)
from recsys_lib.simulation.policies import (
    Boltzmann,
    EpsilonGreedy,
    Greedy,
    Policy,
    Shown,
    ThompsonSampling,
    UniformLists,
)
from recsys_lib.simulation.questions import Asked, ask, warm_and_cold
from recsys_lib.simulation.taste import TasteWorld, TrueTaste
from recsys_lib.simulation.world import World, looks

__all__ = [
    "Asked",
    "Boltzmann",
    "ClickRate",
    "EpsilonGreedy",
    "FeedbackLoop",
    "FromClicks",
    "Greedy",
    "ImpressionFactors",
    "InversePropensityRate",
    "Log",
    "Policy",
    "PolicyValue",
    "Shown",
    "TasteWorld",
    "ThompsonSampling",
    "TrueTaste",
    "UniformLists",
    "World",
    "ask",
    "doubly_robust",
    "ips",
    "list_weights",
    "looks",
    "naive",
    "replay",
    "snips",
    "warm_and_cold",
]
