"""Surprise: rating prediction by factors."""

import common

common.one_thread()

import numpy as np  # noqa: E402
import surprise  # noqa: E402


def prepare(events):
    rows = zip(events.users.tolist(), events.items.tolist(), events.ratings.tolist(), strict=True)
    reader = surprise.Reader(rating_scale=(1, 5))
    return surprise.Dataset(reader).construct_trainset([(*row, None) for row in rows])


def of(make):
    def fit(data, seed, look, epochs, every, **options):
        model = make(n_epochs=epochs, random_state=seed, **options).fit(data)

        def predict(users, items):
            pairs = zip(users.tolist(), items.tolist(), strict=True)
            return np.array([model.predict(user, item).est for user, item in pairs], np.float32)

        return common.Fitted(predict=predict)

    return fit


if __name__ == "__main__":
    models = {"SVD": of(surprise.SVD), "SVD++": of(surprise.SVDpp)}
    common.run(models, prepare, ("scikit-surprise", "numpy"))
