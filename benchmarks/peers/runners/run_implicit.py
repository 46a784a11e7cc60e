"""``implicit``: cosine neighbors, alternating least squares, BPR."""

import common

common.one_thread()

import implicit.als  # noqa: E402
import implicit.bpr  # noqa: E402
import implicit.nearest_neighbours  # noqa: E402
import numpy as np  # noqa: E402


def lists_of(model, matrix):
    """Its own function for many users; items in its rows that it could not fill are -1."""
    everyone = np.arange(matrix.shape[0])
    return lambda k: model.recommend(everyone, matrix, N=k, filter_already_liked_items=True)[0]


def cosine(matrix, seed, look, epochs, every, **options):
    model = implicit.nearest_neighbours.CosineRecommender(num_threads=1, **options)
    model.fit(matrix, show_progress=False)
    similarity = model.similarity
    return common.Fitted(lambda users: (matrix[users] @ similarity).toarray(), lists_of(model, matrix))


def factors(model, matrix, look, epochs, every):
    def scores(users):
        return np.asarray(model.user_factors)[users] @ np.asarray(model.item_factors).T

    def called(epoch, *_):
        if every and (epoch + 1) % every == 0:
            look(epoch + 1, scores)

    model.fit(matrix, show_progress=False, callback=called)
    return common.Fitted(scores, lists_of(model, matrix))


def als(matrix, seed, look, epochs, every, **options):
    model = implicit.als.AlternatingLeastSquares(
        iterations=epochs, num_threads=1, random_state=seed, **options
    )
    return factors(model, matrix, look, epochs, every)


def bpr(matrix, seed, look, epochs, every, factors_=64, **options):
    # One of its factors is the items' bias.
    model = implicit.bpr.BayesianPersonalizedRanking(
        factors=factors_ - 1, iterations=epochs, num_threads=1, random_state=seed, **options
    )
    return factors(model, matrix, look, epochs, every)


def ranking(job, out):
    """Everyone's list from given vectors, and what it takes."""
    with np.load(job["vectors"], allow_pickle=False) as arrays:
        users, items = arrays["users"], arrays["items"]  # (U, d), (N, d)
    seen = common.Events(job["events"]).csr()
    model = implicit.als.AlternatingLeastSquares(factors=users.shape[1], num_threads=1)
    model.user_factors, model.item_factors = users, items
    clock = common.Clock()
    found = model.recommend(np.arange(len(users)), seen, N=job["k"], filter_already_liked_items=True)[0]
    spent = clock.read()
    np.save(out / "lists.npy", found.astype(np.int64))
    return {"lists": spent}


if __name__ == "__main__":
    models = {"ItemKNN": cosine, "ALS": als, "BPR": bpr}
    common.run(models, lambda events: events.csr(), ("implicit", "numpy", "scipy"), {"ranking": ranking})
