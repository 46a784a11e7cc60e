"""Made-up events of any size, shaped as MovieLens is: who is active, and what is popular."""

from functools import cache

import numpy as np
import pandas as pd

from recsys_lib.data import Interactions, load_movielens

DAY = 86_400


@cache
def _profiles() -> tuple[np.ndarray, np.ndarray]:
    """The events of MovieLens-100K's users and items, in rising order, each with mean one."""
    events = load_movielens("100k", progress=False).interactions
    counts = (np.sort(np.bincount(of.numpy())) for of in (events.users, events.items))
    users, items = (of / of.mean() for of in counts)
    return users, items


def _stretched(profile: np.ndarray, n: int) -> np.ndarray:
    """(n,) shares that sum to one: the profile's quantiles."""
    places = (np.arange(n) + 0.5) / n * (len(profile) - 1)
    shares = np.interp(places, np.arange(len(profile)), profile)
    return shares / shares.sum()


def like_movielens(n_users: int, n_items: int, n_events: int, seed: int = 0) -> Interactions:
    """Distinct pairs of a user and an item, drawn by the activity of one and the popularity of the other.

    Activity and popularity have the quantiles of MovieLens-100K; nothing else is like it: who likes what is
    chance. Ratings are the whole numbers from 1 to 5, times spread over three years.

    Args:
        n_users: users.
        n_items: items.
        n_events: distinct pairs; at most half of all that there are.
        seed: of the draws.

    Returns:
        Exactly ``n_events`` events.

    Raises:
        ValueError: more events than half of all pairs; drawing them would take for ever.
    """
    if n_events > n_users * n_items / 2:
        raise ValueError(
            f"{n_events:,} distinct events of {n_users:,} users and {n_items:,} items are too many"
        )
    rng = np.random.default_rng(seed)
    users, items = _profiles()
    of_user, of_item = _stretched(users, n_users).cumsum(), _stretched(items, n_items).cumsum()
    shuffled = rng.permutation(n_items)  # an item's number says nothing of its popularity
    keys = np.empty(0, np.int64)
    while len(keys) < n_events:
        more = int(1.2 * (n_events - len(keys))) + 100
        user = np.minimum(np.searchsorted(of_user, rng.random(more)), n_users - 1)
        item = shuffled[np.minimum(np.searchsorted(of_item, rng.random(more)), n_items - 1)]
        keys = np.unique(np.concatenate([keys, user * n_items + item]))
    keys = np.sort(rng.permutation(keys)[:n_events])
    frame = pd.DataFrame(
        {
            "user_id": keys // n_items,
            "item_id": keys % n_items,
            "rating": rng.integers(1, 6, n_events).astype(np.float32),
            "timestamp": rng.integers(0, 1_000 * DAY, n_events),
        }
    )
    return Interactions.from_frame(frame, user_ids=range(n_users), item_ids=range(n_items))
