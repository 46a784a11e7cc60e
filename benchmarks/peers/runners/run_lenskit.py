"""LensKit: popularity, neighbors, EASE, alternating least squares, BPR, and rating models."""

import common

common.one_thread()

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import torch  # noqa: E402
from lenskit.als import BiasedMFScorer, ImplicitMFScorer  # noqa: E402
from lenskit.basic import PopScorer  # noqa: E402
from lenskit.data import ItemList, RecQuery, from_interactions_df  # noqa: E402
from lenskit.flexmf import FlexMFImplicitScorer  # noqa: E402
from lenskit.knn import EASEScorer, ItemKNNScorer, UserKNNScorer  # noqa: E402
from lenskit.parallel import initialize  # noqa: E402
from lenskit.training import TrainingOptions  # noqa: E402

torch.set_num_threads(1)
initialize(processes=1, threads=1, backend_threads=1, child_threads=1)


class Prepared:
    """A LensKit data set with all users and items, in their order."""

    def __init__(self, events):
        frame = pd.DataFrame(
            {
                "user_id": events.users,
                "item_id": events.items,
                "rating": events.ratings,
                "timestamp": events.timestamps,
            }
        )
        users, items = range(events.n_users), range(events.n_items)
        self.events = events
        self.data = from_interactions_df(frame, users=list(users), items=list(items))
        if not np.array_equal(self.data.items.ids(), items) or not np.array_equal(
            self.data.users.ids(), users
        ):
            raise ValueError("LensKit numbers users and items in another order")
        self.catalog = ItemList(item_nums=np.arange(events.n_items), vocabulary=self.data.items)

    def query(self, user):
        """A user with the history."""
        return RecQuery(user_id=user, history_items=self.data.user_row(user))

    def scores(self, model):
        """By the component itself, one user after another, with the user's history as the query."""

        def found(users):
            rows = [model(self.query(int(user)), self.catalog).scores() for user in users]
            scores = np.array(rows, np.float32)
            known = np.isfinite(scores)
            return np.where(known, scores, scores[known].min() - 1 if known.any() else 0)

        return found

    def pairs(self, model, otherwise):
        """Ratings of pairs, user by user."""

        def predict(users, items):
            found = np.empty(len(users), np.float32)
            for user in np.unique(users):
                rows = np.flatnonzero(users == user)
                asked = ItemList(item_nums=items[rows], vocabulary=self.data.items)
                found[rows] = model(self.query(int(user)), asked).scores()
            # The component leaves a rating out where it knows the user or the item too little.
            return np.where(np.isfinite(found), found, otherwise).clip(1, 5)

        return predict


def component(make, dense=None):
    """A component that is trained in one go; ``dense`` gives the scores of many users at once, if it can."""

    def fit(prepared, seed, look, epochs, every, **options):
        model = make(**options)
        model.train(prepared.data, TrainingOptions(rng=seed, device="cpu"))
        scores = dense(prepared, model) if dense else prepared.scores(model)
        return common.Fitted(scores, predict=prepared.pairs(model, float(prepared.events.ratings.mean())))

    return fit


def popularity_scores(prepared, model):
    row = model(prepared.catalog).scores()
    return lambda users: np.tile(np.asarray(row, np.float32), (len(users), 1))


def ease_scores(prepared, model):
    history = prepared.events.csr()
    return lambda users: history[users] @ model.weights


def product(prepared, model):
    """The scores of factors without biases, many users at once."""
    users, items = (part.weight.detach().numpy() for part in (model.model.u_embed, model.model.i_embed))
    return lambda rows: users[rows] @ items.T


def in_epochs(make, finish=lambda trainer: None, dense=None, **always):
    def fit(prepared, seed, look, epochs, every, **options):
        model = make(epochs=epochs, **always, **options)
        trainer = model.create_trainer(prepared.data, TrainingOptions(rng=seed, device="cpu"))
        for epoch in range(1, epochs + 1):
            trainer.train_epoch()
            if every and epoch % every == 0:
                with look.clock.stopped():
                    finish(trainer)
                look(epoch, dense(prepared, model) if dense else prepared.scores(model))
        trainer.finalize()
        return common.Fitted(
            dense(prepared, model) if dense else prepared.scores(model),
            predict=prepared.pairs(model, float(prepared.events.ratings.mean())),
        )

    return fit


if __name__ == "__main__":
    models = {
        "Popularity": component(PopScorer, popularity_scores),
        "ItemKNN": component(lambda **options: ItemKNNScorer(feedback="implicit", **options)),
        "UserKNN": component(lambda **options: UserKNNScorer(feedback="implicit", **options)),
        "EASE": component(EASEScorer, ease_scores),
        "ALS": in_epochs(ImplicitMFScorer, lambda trainer: trainer._save_user_otor()),
        "BPR": in_epochs(FlexMFImplicitScorer, dense=product, preset="bpr", embedding_size=64),
        "BiasedMF": in_epochs(BiasedMFScorer),
    }
    common.run(models, Prepared, ("lenskit", "numpy", "scipy", "torch"))
