"""What every training loop needs: a device, reproducible random numbers, batches, negatives, early stopping.

Random numbers come from a ``torch.Generator`` that the caller seeds. Nothing here reads or moves the global
random state, so a result does not depend on what ran before, and leaves no trace in what runs after.
"""

import copy
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

__all__ = [
    "EarlyStopping",
    "NegativeSampler",
    "batches",
    "isolated_rng",
    "progress",
    "resolve_device",
    "seed_generator",
]

T = TypeVar("T")

# Weights of a non-uniform sampler are rounded to integers that sum to about this. Integers make the exclusion
# of positives exact; at 2**31 the rounding of a probability is below 5e-10, and keys of user times mass stay
# below 2**63 for four billion users.
_TOTAL_WEIGHT = 2**31


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """Turns a name into a device that exists here.

    Args:
        device: ``"auto"`` takes CUDA, then Apple's MPS, then the CPU; anything else is what torch
            understands.

    Raises:
        ValueError: the name is not a device's, or that device is not on this machine.
    """
    if isinstance(device, str) and device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f'device {device!r} is not one that torch knows; use "auto", "cpu" or "cuda"'
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f'device "{resolved}" was asked for, but no CUDA device is here; use "auto" or "cpu"'
        )
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f'device "{resolved}" was asked for, but only {torch.cuda.device_count()} are here')
    if resolved.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('device "mps" was asked for, but this is no machine with MPS; use "auto" or "cpu"')
    return resolved


def seed_generator(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own on ``device``, seeded; the global random state is neither read nor moved."""
    generator = torch.Generator(device=resolve_device(device))
    generator.manual_seed(int(seed))
    return generator


@contextmanager
def isolated_rng(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Runs a block on global random numbers seeded by ``seed``, then puts the global state back.

    For code that cannot take a generator: dropout, and the default initialization of layers. Covers the CPU
    and ``device``.
    """
    resolved = resolve_device(device)
    cpu_state = torch.get_rng_state()
    if resolved.type == "cuda":
        device_state = torch.cuda.get_rng_state(resolved)
    elif resolved.type == "mps":
        device_state = torch.mps.get_rng_state()
    try:
        # torch.manual_seed would also reseed every other device, whose state was not kept.
        torch.default_generator.manual_seed(int(seed))
        if resolved.type == "cuda":
            with torch.cuda.device(resolved):
                torch.cuda.manual_seed(int(seed))
        elif resolved.type == "mps":
            torch.mps.manual_seed(int(seed))
        yield
    finally:
        torch.set_rng_state(cpu_state)
        if resolved.type == "cuda":
            torch.cuda.set_rng_state(device_state, resolved)
        elif resolved.type == "mps":
            torch.mps.set_rng_state(device_state)


def batches(n: int, batch_size: int, generator: torch.Generator | None = None) -> Iterator[Tensor]:
    """Index tensors that cover 0..n-1 once, each of ``batch_size`` entries, the last one perhaps shorter.

    Args:
        n: number of examples.
        batch_size: examples in a batch.
        generator: shuffles, and says on which device the indices live; without one the order is 0..n-1, on
            the CPU.

    Yields:
        (b,) int64 indices.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if generator is None:
        order = torch.arange(n, device="cpu")  # (n,)
    else:
        order = torch.randperm(n, generator=generator, device=generator.device)  # (n,)
    yield from order.split(batch_size)


class NegativeSampler:
    """Draws items for users, never one that the user already has.

    Nothing is drawn twice and nothing is rejected, so the distribution is exact and the cost is known: two
    binary searches for each draw. Lay the catalog out on a line, item i taking w_i units (one each for
    uniform negatives). Cut out the user's own items; what is left has M_u units. Draw one of them, t, and
    find how many own items were cut out before it: own item p_j is, if what is left to the left of it is
    at most t,

        A_j = (sum of w_i over items before p_j) - (sum of w over own items before p_j) <= t

    A_j grows with j, so this is one binary search, in one array for all users when a user's number is put in
    front of A_j as the leading digit. Putting the cut-out units back gives the place on the full line.

    Args:
        crow: (n_users + 1,) int64, where each user's own items begin; as ``Interactions.csr()`` gives it.
        items: (E,) int64, each user's distinct own items in ascending order.
        n_items: size of the catalog.
        kind: ``"uniform"`` over the items that the user does not have, or ``"popularity"``: in proportion to
            (count + 1) ** exponent. The one keeps items without events in play: what is never drawn as a
            negative is never pushed down, and would float up the ranking.
        exponent: flattens popularity; 0.75 is word2vec's (Mikolov et al. 2013), 1 is plain, 0 is uniform.
        weights: (n_items,) positive weights of your own in place of the counts, raised to the exponent as
            they are.

    Raises:
        ValueError: arguments that do not describe a set of distinct sorted items for each user.
    """

    def __init__(
        self,
        crow: Tensor,
        items: Tensor,
        n_items: int,
        kind: str = "uniform",
        exponent: float = 0.75,
        weights: Tensor | None = None,
    ) -> None:
        if kind not in ("uniform", "popularity"):
            raise ValueError(f'kind must be "uniform" or "popularity", got {kind!r}')
        if weights is not None and kind == "uniform":
            raise ValueError('weights need kind="popularity"; uniform negatives have none')
        device = items.device
        self.n_users, self.n_items, self.kind = len(crow) - 1, int(n_items), kind
        self.crow, self.items = crow.to(device), items
        n_own = self.crow.diff()  # (n_users,)
        users = torch.repeat_interleave(torch.arange(self.n_users, device=device), n_own)  # (E,)
        keys = users * self.n_items + items  # (E,)
        if len(items) and (items.min() < 0 or items.max() >= n_items or (keys.diff() <= 0).any()):
            raise ValueError("each user's items must be distinct, ascending and below n_items")
        self._keys = keys

        if kind == "uniform":
            weight = torch.ones(self.n_items, dtype=torch.int64, device=device)  # (n_items,)
        else:
            mass = (
                torch.bincount(items, minlength=self.n_items) + 1 if weights is None else weights.to(device)
            )
            if mass.shape != (self.n_items,) or not bool((mass > 0).all()):
                raise ValueError(f"weights must be ({self.n_items},) and above zero")
            # float64 does not exist on every device; the CPU has it, and this is done once.
            share = mass.cpu().double() ** exponent
            share = share / share.sum() * _TOTAL_WEIGHT
            weight = share.round().long().clamp(min=1).to(device)  # (n_items,)
        self._weight = weight
        self._upper = weight.cumsum(0)  # (n_items,) where each item's units end
        own = weight[items]  # (E,)
        before = own.cumsum(0) - own  # (E,) own units before this event, of all users so far
        start = torch.cat([before, own.sum()[None]])[self.crow]  # (n_users + 1,)
        self._removed = torch.cat([before, own.sum()[None]])  # (E + 1,)
        self._start = start
        self._left = self._upper[-1] - start.diff()  # (n_users,) units that remain, M_u
        a = (self._upper - weight)[items] - (before - start[users])  # (E,)
        self._digit = int(self._upper[-1]) + 1
        self._search = users * self._digit + a  # (E,)

    def sample(self, users: Tensor, k: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``k`` items for each user, with replacement, none of them the user's own.

        Args:
            users: (B,) int64.
            k: draws a user.
            generator: on the users' device; without one the global random state is used.

        Returns:
            (B, k) int64 on the users' device.

        Raises:
            ValueError: one of the users has every item of the catalog.
        """
        left = self._left[users]  # (B,)
        if bool((left == 0).any()):
            user = int(users[(left == 0).nonzero()[0, 0]])
            raise ValueError(f"user {user} has all {self.n_items} items, so there is no negative to draw")
        # The remainder of a 62-bit number is uniform to within 2**-30; a float could round up to M_u.
        draw = torch.randint(0, 2**62, (len(users), k), generator=generator, device=users.device)  # (B, k)
        t = draw % left[:, None]  # (B, k)
        found = torch.searchsorted(self._search, users[:, None] * self._digit + t, right=True)  # (B, k)
        if self.kind == "uniform":  # one unit an item: the place on the line is the item
            return t + (found - self.crow[users][:, None])
        place = t + (self._removed[found] - self._start[users][:, None])  # (B, k)
        return torch.searchsorted(self._upper, place, right=True)

    def log_probability(self, items: Tensor, users: Tensor | None = None) -> Tensor:
        """Logarithm of the probability that one draw gives these items, for the logQ correction.

        Args:
            items: any shape, int64; (B, k) with ``users``.
            users: (B,) whose own items are excluded from the draw: the probability is then of ``sample``,
                and -inf for an own item. Without users, of a draw from the whole catalog.

        Returns:
            Like ``items``, float32.
        """
        log_weight = self._weight[items].float().log()
        if users is None:
            return log_weight - self._upper[-1].float().log()
        keys = users[:, None] * self.n_items + items  # (B, k)
        place = torch.searchsorted(self._keys, keys).clamp(max=max(len(self._keys) - 1, 0))  # (B, k)
        own = self._keys[place] == keys if len(self._keys) else torch.zeros_like(keys, dtype=torch.bool)
        return (log_weight - self._left[users].float().log()[:, None]).masked_fill(own, -torch.inf)  # (B, k)


class EarlyStopping:
    """Watches a figure that should grow, keeps the best state, says when to stop.

    Args:
        patience: checks without improvement after which to stop.
        min_delta: what counts as an improvement.

    Attributes:
        best: the best value so far; -inf before the first.
        best_step: the number given with it.
    """

    def __init__(self, patience: int = 5, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"patience must be 1 or more, got {patience}")
        self.patience, self.min_delta = patience, min_delta
        self.best, self.best_step, self.waited = -float("inf"), 0, 0
        self._state: dict[str, Any] | None = None

    def step(self, value: float, step: int, module: nn.Module) -> bool:
        """Takes one check's value; returns True when training should stop. NaN never counts as better."""
        if value > self.best + self.min_delta:
            self.best, self.best_step, self.waited = value, step, 0
            # A copy: state_dict() alone would go on changing with the weights.
            self._state = {
                name: copy.deepcopy(tensor.detach()) for name, tensor in module.state_dict().items()
            }
            return False
        self.waited += 1
        return self.waited >= self.patience

    def restore(self, module: nn.Module) -> None:
        """Puts the best state back into the module.

        Raises:
            RuntimeError: no check gave a finite value, so there is no best state.
        """
        if self._state is None:
            raise RuntimeError("no check of the validation figure was above -inf: training has diverged")
        module.load_state_dict(self._state)


def progress(iterable: Iterable[T], description: str, *, enabled: bool, **options: Any) -> Iterable[T]:
    """A progress bar on standard error that vanishes when done; the bare iterable when not ``enabled``."""
    if not enabled:
        return iterable
    # The delay keeps short work silent.
    return tqdm(iterable, desc=description, leave=False, delay=1.0, file=sys.stderr, **options)
