"""Which of many vectors are most like a query: the first stage of a large recommender, behind one interface.

::

    index = ExactIndex(metric="cosine").build(model.encode_items(texts))
    ids, scores = index.search(model.encode_users(histories), k=100, exclude=histories)

:class:`ExactIndex` compares with every vector, :class:`FaissIndex` with fewer. Both are an :class:`Index`.
"""

from recsys_lib.retrieval.approximate import FaissIndex
from recsys_lib.retrieval.exact import ExactIndex
from recsys_lib.retrieval.index import Exclude, Index, Metric

__all__ = ["ExactIndex", "Exclude", "FaissIndex", "Index", "Metric"]
