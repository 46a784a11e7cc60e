"""RecBole: popularity, neighbors, EASE, BPR, the variational autoencoder."""

import common

common.one_thread()

import logging  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset  # noqa: E402
from recbole.data.interaction import Interaction  # noqa: E402
from recbole.data.utils import create_samplers, get_dataloader  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)


class Prepared:
    """RecBole reads a file and numbers users and items in the order in which they come, from 1."""

    def __init__(self, events):
        self.events = events
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "events" / "events.inter"
        path.parent.mkdir()
        rows = zip(events.users.tolist(), events.items.tolist(), events.timestamps.tolist(), strict=True)
        lines = "".join(f"{user}\t{item}\t{time}\n" for user, item, time in rows)
        path.write_text("user_id:token\titem_id:token\ttimestamp:float\n" + lines, "utf8")
        self.made = {}

    def config(self, model, seed, epochs, options):
        """All events are for training."""
        sys.argv = sys.argv[:1]  # it would read the command line
        values = {
            "data_path": self.folder.name,
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"RS": [1, 0, 0]}, "group_by": None, "order": "RO", "mode": "full"},
            "use_gpu": False,
            "gpu_id": "",
            "show_progress": False,
            "seed": seed,
            "epochs": epochs,
            "checkpoint_dir": self.folder.name,
            "log_wandb": False,
            **({"train_neg_sample_args": None} if model in ("MultiVAE", "EASE", "ItemKNN") else {}),
        }
        return Config(model=model, dataset="events", config_dict=values | options)

    def data(self, config):
        """The training part as RecBole has it, made once: it holds no options."""
        if "data" not in self.made:
            dataset = create_dataset(config)
            built = dataset.build()
            of_user, of_item = (dataset.field2token_id[name] for name in ("user_id", "item_id"))
            events = self.events
            self.user = np.array([of_user.get(str(user), 0) for user in range(events.n_users)])
            self.item = np.array([of_item.get(str(item), 0) for item in range(events.n_items)])
            self.made["data"] = dataset, built
        return self.made["data"]

    def scores(self, model):
        """Scores of our users and items."""

        def found(users):
            model.eval()
            asked = Interaction({"user_id": torch.as_tensor(self.user[users])})
            with torch.no_grad():
                block = model.full_sort_predict(asked).numpy().reshape(len(users), -1)
            scores = np.asarray(block, np.float32)[:, self.item]
            # Row and column 0 are its padding: what it does not know comes last.
            scores[:, self.item == 0] = scores.min() - 1
            scores[self.user[users] == 0] = 0
            return scores

        return found


def model_of(name):
    def fit(prepared, seed, look, epochs, every, **options):
        with look.clock.stopped():  # configuring and reading are not training
            config = prepared.config(name, seed, epochs, options)
            init_seed(seed, True)
            dataset, built = prepared.data(config)
            samplers = create_samplers(config, dataset, built)
        model = get_model(name)(config, built[0]).to("cpu")
        if name in ("ItemKNN", "EASE"):
            return common.Fitted(prepared.scores(model))  # all is done where they are made
        train = get_dataloader(config, "train")(config, built[0], samplers[0], shuffle=True)
        trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
        for epoch in range(1 if name == "Pop" else epochs):
            trainer._train_epoch(train, epoch, show_progress=False)
            if every and (epoch + 1) % every == 0:
                look(epoch + 1, prepared.scores(model))
        return common.Fitted(prepared.scores(model))

    return fit


if __name__ == "__main__":
    names = {"Popularity": "Pop", "ItemKNN": "ItemKNN", "EASE": "EASE", "BPR": "BPR", "MultVAE": "MultiVAE"}
    models = {ours: model_of(theirs) for ours, theirs in names.items()}
    models["UserKNN"] = lambda *args, **options: models["ItemKNN"](*args, knn_method="user", **options)
    common.run(models, Prepared, ("recbole", "numpy", "scipy", "torch"))
