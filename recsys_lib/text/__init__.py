"""Texts to vectors.

``TextEncoder`` is one adapter over published encoders: it tokenizes, batches texts of like length, runs the
model, pools its tokens into one vector a text, and remembers the vectors on disk. Without a name it takes
all-MiniLM-L6-v2 from a package, checked by its hash, so no model hub is needed.

``TfidfEncoder`` counts words, and ``StaticEncoder`` takes the mean of token vectors that were cut out of a
language model. All three are ``TextVectors``: ``encode`` gives one vector a text.

``from_bert_state`` puts the published weights of a BERT or RoBERTa into this library's own
``attention.TransformerEncoder``, and ``load_minilm`` does so for all-MiniLM-L6-v2: the same numbers, from
code that can be read on one screen.

``CausalLM`` asks a language model how likely a text is after another, with no vector between.

``TextWords`` keeps a text's words apart, each with a vector.

``pairs`` joins two texts into one sequence, for models that read both at once.

Only safetensors files are read, never pickles; code that comes with a model is never run.
"""

from recsys_lib.text.bert import from_bert_state, load_minilm
from recsys_lib.text.encoder import TextEncoder
from recsys_lib.text.gemma import gemma_folder
from recsys_lib.text.interface import TextVectors
from recsys_lib.text.likelihood import CausalLM, Likelihoods
from recsys_lib.text.pooling import pool
from recsys_lib.text.pretrained import minilm_folder
from recsys_lib.text.static import StaticEncoder
from recsys_lib.text.terms import TfidfEncoder
from recsys_lib.text.words import TextWords

__all__ = [
    "CausalLM",
    "Likelihoods",
    "StaticEncoder",
    "TextEncoder",
    "TextVectors",
    "TextWords",
    "TfidfEncoder",
    "from_bert_state",
    "gemma_folder",
    "load_minilm",
    "minilm_folder",
    "pool",
]
