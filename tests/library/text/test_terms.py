"""TF-IDF vectors, against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer

from recsys_lib.similarity import tfidf
from recsys_lib.text import TextVectors, TfidfEncoder
from recsys_lib.text.terms import term_counts

TEXTS = ["a dark dark film", "a light film", "dark light", "", "nothing shared here", "film film film"]
OTHERS = ["a film in the dark", "unheard of", "light light light dark"]


@pytest.mark.parametrize("sublinear", [False, True])
@pytest.mark.parametrize("min_count", [1, 2])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_scikit_learn(sublinear: bool, min_count: int, normalize: bool) -> None:
    theirs = TfidfVectorizer(min_df=min_count, sublinear_tf=sublinear, norm="l2" if normalize else None)
    expected = theirs.fit_transform(TEXTS).toarray()
    encoder = TfidfEncoder(TEXTS, min_count, sublinear, normalize, device="cpu")
    assert encoder.words == theirs.get_feature_names_out().tolist()
    assert encoder.dim == expected.shape[1]
    found = encoder.encode(TEXTS)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    # Other texts are seen through the words and the rarity of those that it was made of.
    np.testing.assert_allclose(encoder.encode(OTHERS).numpy(), theirs.transform(OTHERS).toarray(), atol=1e-6)


def test_vectors_are_those_of_the_content_model() -> None:
    encoder = TfidfEncoder(TEXTS, device="cpu")
    torch.testing.assert_close(encoder.encode(TEXTS), tfidf(term_counts(TEXTS)[0]).to_dense())


def test_texts_that_are_missing_or_none() -> None:
    with pytest.warns(UserWarning, match="1 of 3 texts are missing"):
        encoder = TfidfEncoder(["dark film", None, "film"], device="cpu")
    assert encoder.words == ["dark", "film"]
    with pytest.warns(UserWarning, match="1 of 1 texts are missing"):
        assert encoder.encode([float("nan")]).abs().sum() == 0
    assert encoder.encode([]).shape == (0, 2)
    with pytest.raises(TypeError, match="got one str"):
        encoder.encode("film")
    with pytest.raises(ValueError, match="none of the 2 texts has a word that 2 of them share"):
        TfidfEncoder(["dark", "light"], min_count=2, device="cpu")


def test_it_is_text_vectors() -> None:
    assert isinstance(TfidfEncoder(TEXTS, device="cpu"), TextVectors)
    assert not isinstance(object(), TextVectors)
