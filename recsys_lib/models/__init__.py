"""The models, one a file, all behind :class:`recsys_lib.models.core.contract.Recommender`."""

from recsys_lib.models.als import ALS
from recsys_lib.models.attention_score import AttentionScore
from recsys_lib.models.autoencoder import MultDAE, MultVAE
from recsys_lib.models.autorec import AutoRec
from recsys_lib.models.bert4rec import BERT4Rec
from recsys_lib.models.biased_mf import BiasedMF
from recsys_lib.models.blend import Blend
from recsys_lib.models.collective_ease import CollectiveEASE
from recsys_lib.models.compiled_bpr import CompiledBPR
from recsys_lib.models.content import TfidfContent
from recsys_lib.models.contrastive import ContrastiveSASRec
from recsys_lib.models.core.contract import NotFittedError, Recommender
from recsys_lib.models.core.histories import HistoryReader
from recsys_lib.models.cross_attention import CrossAttentionRecommender
from recsys_lib.models.cross_encoder import CrossEncoder
from recsys_lib.models.ctr import ClickModel
from recsys_lib.models.denoising import SequenceDenoiser
from recsys_lib.models.din import DIN
from recsys_lib.models.distilled import DistilledTwoTower
from recsys_lib.models.ease import EASE
from recsys_lib.models.factorization import BPR, MatrixFactorization
from recsys_lib.models.history_head import HistoryHead
from recsys_lib.models.item_feature_ridge import ItemFeatureRidge
from recsys_lib.models.knn import ItemKNN, UserKNN
from recsys_lib.models.markov import MarkovChain
from recsys_lib.models.matryoshka import MatryoshkaTwoTower
from recsys_lib.models.multimodal import MultimodalRecommender
from recsys_lib.models.objectives import ObjectiveMF
from recsys_lib.models.pair_features import LinearListwise, PairNetwork
from recsys_lib.models.popularity import Popularity
from recsys_lib.models.rating_als import RatingALS
from recsys_lib.models.sasrec import SASRec
from recsys_lib.models.stacking import StackedLinear, StackedNetwork
from recsys_lib.models.text_prior import TextPriorMF
from recsys_lib.models.text_profile import TextProfile
from recsys_lib.models.two_tower import TwoTower
from recsys_lib.models.user_as_text import UserAsText

__all__ = [
    "ALS",
    "BPR",
    "DIN",
    "EASE",
    "AttentionScore",
    "AutoRec",
    "BERT4Rec",
    "BiasedMF",
    "Blend",
    "ClickModel",
    "CollectiveEASE",
    "CompiledBPR",
    "ContrastiveSASRec",
    "CrossAttentionRecommender",
    "CrossEncoder",
    "DistilledTwoTower",
    "HistoryHead",
    "HistoryReader",
    "ItemFeatureRidge",
    "ItemKNN",
    "LinearListwise",
    "MarkovChain",
    "MatrixFactorization",
    "MatryoshkaTwoTower",
    "MultDAE",
    "MultVAE",
    "MultimodalRecommender",
    "NotFittedError",
    "ObjectiveMF",
    "PairNetwork",
    "Popularity",
    "RatingALS",
    "Recommender",
    "SASRec",
    "SequenceDenoiser",
    "StackedLinear",
    "StackedNetwork",
    "TextPriorMF",
    "TextProfile",
    "TfidfContent",
    "TwoTower",
    "UserAsText",
    "UserKNN",
]
