"""Texts to vectors.

``TextEncoder`` is one adapter over published encoders: it tokenizes, batches texts of like length, runs the
model, pools its tokens into one vector a text, and remembers the vectors on disk. Without a name it takes
all-MiniLM-L6-v2 from a package, checked by its hash, so no model hub is needed.

``TfidfEncoder`` counts words, and ``StaticEncoder`` takes the mean of token vectors that were cut out of a
language model. All three are ``TextVectors``: ``encode`` gives one vector a text.

``from_bert_state`` puts the published weights of a BERT or RoBERTa into this library's own
``attention.TransformerEncoder``, and ``load_minilm`` does so for all-MiniLM-L6-v2: the same numbers, from
code that can be read on one screen.

``pairs`` joins two texts into one sequence, for models that read both at once.

Only safetensors files are read, never pickles; code that comes with a model is never run.
"""

from recsys_lib.text.bert import from_bert_state, load_minilm
from recsys_lib.text.encoder import TextEncoder
from recsys_lib.text.interface import TextVectors
from recsys_lib.text.pooling import pool
from recsys_lib.text.pretrained import minilm_folder
from recsys_lib.text.static import StaticEncoder
from recsys_lib.text.terms import TfidfEncoder

__all__ = [
    "StaticEncoder",
    "TextEncoder",
    "TextVectors",
    "TfidfEncoder",
    "from_bert_state",
    "load_minilm",
    "minilm_folder",
    "pool",
]
