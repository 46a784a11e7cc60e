"""The models, one family a file, all behind :class:`recsys_lib.models.base.Recommender`."""

from recsys_lib.models.base import HistoryReader, NotFittedError, Recommender
from recsys_lib.models.bpr import BPR, MatrixFactorization
from recsys_lib.models.content import TfidfContent
from recsys_lib.models.ease import EASE
from recsys_lib.models.knn import ItemKNN, UserKNN
from recsys_lib.models.markov import MarkovChain
from recsys_lib.models.mf import BiasedMF
from recsys_lib.models.popularity import Popularity
from recsys_lib.models.sequential import BERT4Rec, SASRec

__all__ = [
    "BPR",
    "EASE",
    "BERT4Rec",
    "BiasedMF",
    "HistoryReader",
    "ItemKNN",
    "MarkovChain",
    "MatrixFactorization",
    "NotFittedError",
    "Popularity",
    "Recommender",
    "SASRec",
    "TfidfContent",
    "UserKNN",
]
