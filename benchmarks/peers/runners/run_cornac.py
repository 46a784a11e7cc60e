"""Cornac: popularity, neighbors, EASE, BPR, the variational autoencoder, and rating models."""

import common

common.one_thread()

import cornac.models  # noqa: E402
import numpy as np  # noqa: E402
from cornac.data import Dataset  # noqa: E402


class Prepared:
    """A Cornac data set numbers users and items in the order in which they come."""

    def __init__(self, events):
        self.events = events
        rows = zip(events.users.tolist(), events.items.tolist(), events.ratings.tolist(), strict=True)
        self.data = Dataset.build(rows, seed=0)
        self.user = np.full(events.n_users, -1)
        self.item = np.array([self.data.iid_map.get(i, -1) for i in range(events.n_items)])
        for user, row in self.data.uid_map.items():
            self.user[user] = row

    def spread(self, of_user):
        """A function of its user to scores of its items, as one of our users to scores of our catalog."""
        known = self.item >= 0

        def scores(users):
            found = np.full((len(users), self.events.n_items), -np.inf, np.float32)
            for row, user in enumerate(users):
                if self.user[user] >= 0:
                    found[row, known] = np.ravel(of_user(int(self.user[user])))[self.item[known]]
                else:
                    found[row] = 0
            # What it does not know comes last; a score of its own below that would be a surprise.
            finite = found[np.isfinite(found)]
            return np.where(np.isfinite(found), found, finite.min() - 1 if len(finite) else 0)

        return scores

    def pairs(self, model):
        """Ratings of pairs; what it does not know gets its default."""

        def predict(users, items):
            found = np.empty(len(users), np.float32)
            for place, (user, item) in enumerate(zip(self.user[users], self.item[items], strict=True)):
                found[place] = model.rate(
                    int(user) if user >= 0 else self.events.n_users + 1,
                    int(item) if item >= 0 else self.events.n_items + 1,
                    clipping=True,
                )
            return found

        return predict


def fitted(prepared, model):
    model.fit(prepared.data)
    return common.Fitted(prepared.spread(model.score), predict=prepared.pairs(model))


def plain(make, seeded=False):
    """A model without epochs."""

    def fit(prepared, seed, look, epochs, every, **options):
        extra = {"seed": seed} if seeded else {}
        return fitted(prepared, make(verbose=False, **extra, **options))

    return fit


def popularity(prepared, seed, look, epochs, every):
    return fitted(prepared, cornac.models.MostPop())


def in_epochs(make, name, **always):
    """A model whose number of epochs is an option: each look is a training of its own, from the start.

    BPR could go on from the vectors that it has, but draws the same pairs again each time.
    """

    def fit(prepared, seed, look, epochs, every, **options):
        for n in range(every, epochs, every) if every else ():
            with_n = make(verbose=False, seed=seed, **{name: n}, **always, **options)
            look.again(n, lambda with_n=with_n: fitted(prepared, with_n).scores)
        model = make(verbose=False, seed=seed, **{name: epochs}, **always, **options)
        found = fitted(prepared, model)
        if every:
            look(epochs, found.scores)
        return found

    return fit


if __name__ == "__main__":
    models = {
        "Popularity": popularity,
        "ItemKNN": plain(cornac.models.ItemKNN, True),
        "UserKNN": plain(cornac.models.UserKNN, True),
        "EASE": plain(cornac.models.EASE, True),
        "BPR": in_epochs(cornac.models.BPR, "max_iter"),
        "MultVAE": in_epochs(cornac.models.VAECF, "n_epochs"),
        "MF": in_epochs(cornac.models.MF, "max_iter"),
    }
    common.run(models, Prepared, ("cornac", "numpy", "scipy", "torch"))
