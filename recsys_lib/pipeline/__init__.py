"""Retrieve, then re-rank: the stages of a large recommender as one recommender.

::

    model = Pipeline(EASE(), reranker=SASRec(), items=catalog).fit(split.history)
    model.recommend_frame("C000588", k=10, exclude=bought, blocked=sold_out, at_most=3)
    model.recommend_histories({"a visitor": ["SKU-1", "SKU-7"]}, diversity=0.3)
    model.save_pretrained("models/shop")

A cheap model looks at the whole catalog, a dear one at what the first has found; then come the rules of the
house: what may be shown, how many of a kind, how different from each other.

- ``recommender``: the pipeline itself, and what it is asked.
- ``asked``: for whom, users, people with a history or texts, as what the stages need to know of them.
- ``candidates``: the two stages, and how their orders become one.
- ``groups`` and ``diversity``: how many of a kind, and how different from each other.
- ``latency``: where the time goes.
- ``folder``: what it is saved in.
"""

from recsys_lib.pipeline.diversity import maximal_marginal_relevance
from recsys_lib.pipeline.groups import at_most_of_a_group
from recsys_lib.pipeline.latency import Stages
from recsys_lib.pipeline.recommender import Pipeline

__all__ = ["Pipeline", "Stages", "at_most_of_a_group", "maximal_marginal_relevance"]
