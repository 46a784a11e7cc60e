"""Towers that are made to be small: prefixes that were trained, and students of larger ones."""

import pandas as pd
import pytest
import torch

from recsys_lib.data import Interactions
from recsys_lib.devices import seed_generator
from recsys_lib.models import DistilledTwoTower, MatryoshkaTwoTower, TwoTower
from recsys_lib.quantization import truncated

ITEMS = 30


@pytest.fixture(scope="module")
def events() -> Interactions:
    """Forty people choose eight of the ten items of one of three kinds, in an order of their own."""
    rows = []
    for user in range(40):
        kind, order = user % 3, torch.randperm(10, generator=torch.Generator().manual_seed(user)).tolist()
        rows += [(user, 10 * kind + item, time) for time, item in enumerate(order[:8])]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    return Interactions.from_frame(frame, timestamp="timestamp", item_ids=range(ITEMS))


def fit(cls, events, teacher=None, **options):
    settings = {"dim": 16, "epochs": 15, "batch_size": 64, "seed": 1}
    model = cls(**settings | options)
    if teacher is not None:
        model.taught_by(teacher)
    return model.fit(events, device="cpu", progress=False)


def first_loss(model: TwoTower, events: Interactions, seed: int = 0) -> torch.Tensor:
    """The loss of the first batch, of the model as it is."""
    generator = seed_generator(seed, torch.device("cpu"))
    return next(iter(model.losses(model.prepare(events, generator), generator)))[0]


def own_kind(vectors: torch.Tensor, users: torch.Tensor) -> float:
    """The share of people whose nearest item is of their kind."""
    nearest = (users @ vectors.mT).argmax(dim=1)  # (U,)
    return float((nearest // 10 == torch.arange(len(users)) % 3).float().mean())


def test_the_loss_is_the_mean_of_the_losses_of_the_prefixes(events):
    model = fit(MatryoshkaTwoTower, events, smallest=4, epochs=2)
    assert model.widths == [4, 8, 16]
    users, items = model.user.source.table.weight, model.item.table.weight
    losses = []
    for width in model.widths:
        plain = TwoTower(dim=width, batch_size=64, seed=1, epochs=1).fit(events, device="cpu", progress=False)
        with torch.no_grad():
            plain.user.source.table.weight.copy_(users[:, :width])
            plain.item.table.weight.copy_(items[:, :width])
        losses.append(first_loss(plain, events))
    torch.testing.assert_close(first_loss(model, events), torch.stack(losses).mean())


def test_one_width_is_plain_training(events):
    plain = fit(TwoTower, events)
    for smallest in (16, 99):  # beyond the vectors there is no shorter one
        alone = fit(MatryoshkaTwoTower, events, smallest=smallest)
        torch.testing.assert_close(alone.item_vectors, plain.item_vectors)


def test_a_short_prefix_keeps_what_was_learned(events):
    users = torch.arange(40)
    nested = fit(MatryoshkaTwoTower, events, smallest=2)
    short = truncated(nested.encode_items(), 2), truncated(nested.encode_users(users), 2)
    assert own_kind(*short) > 0.95
    assert own_kind(nested.encode_items(), nested.encode_users(users)) > 0.95
    assert nested.encode_items().shape == (ITEMS, 16)  # all of them, after training


def test_prefixes_come_back_from_their_files(events, tmp_path):
    model = fit(MatryoshkaTwoTower, events, smallest=4, epochs=1)
    model.save_pretrained(tmp_path)
    again = MatryoshkaTwoTower.from_pretrained(tmp_path)
    assert again.widths == model.widths
    torch.testing.assert_close(again.score(torch.arange(5)), model.score(torch.arange(5)))


@pytest.fixture(scope="module")
def teacher(events) -> TwoTower:
    return fit(TwoTower, events, dim=32)


def test_the_students_loss_is_the_divergence_from_the_teacher(events, teacher):
    student = fit(DistilledTwoTower, events, dim=4, teacher=teacher, share=1.0, epochs=1)
    generator = seed_generator(0, torch.device("cpu"))
    examples = student.prepare(events, generator)
    loss, n = next(iter(student.losses(examples, generator)))
    generator = seed_generator(0, torch.device("cpu"))
    student.prepare(events, generator)  # draws what is drawn before the batches
    batch = torch.randperm(len(examples.users), generator=generator)[:n]
    catalog = torch.arange(ITEMS)
    expected = []
    for example in batch.tolist():
        begin, length = examples.starts[example], examples.lengths[example]
        history = [examples.read[begin : begin + length]]
        thinks = (teacher.score_histories(history)[0] / teacher.temperature).softmax(0)
        user = student.scaled(student.user(history[0], torch.tensor([0]), length[None]))  # (1, d)
        ours = (user @ student.scaled(student.item(catalog)).mT)[0] / student.temperature
        expected.append((thinks * (thinks.log() - ours.log_softmax(0))).sum())
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


def test_a_student_follows_its_teacher_and_not_the_events(events):
    wrong = fit(TwoTower, events)
    with torch.no_grad():  # says of each person what is true of those of the next kind
        wrong.item.table.weight.copy_(wrong.item.table.weight.roll(10, dims=0))
        wrong.item_vectors.copy_(wrong.item_vectors.roll(10, dims=0))
    before, users = wrong.item.table.weight.clone(), torch.arange(40)
    told = fit(DistilledTwoTower, events, wrong, share=1.0)
    assert own_kind(told.encode_items(), told.encode_users(users)) < 0.05
    next_kind = told.encode_items().roll(-10, dims=0)
    assert own_kind(next_kind, told.encode_users(users)) > 0.95
    assert torch.equal(wrong.item.table.weight, before)  # it does not learn itself
    assert not any("teacher" in name for name in told.state_dict())


def test_without_a_teacher_it_is_plain_training(events, teacher):
    plain = fit(TwoTower, events, dim=4)
    torch.testing.assert_close(fit(DistilledTwoTower, events, dim=4).item_vectors, plain.item_vectors)
    unheard = fit(DistilledTwoTower, events, dim=4, teacher=teacher, share=0.0)
    torch.testing.assert_close(unheard.item_vectors, plain.item_vectors)


def test_teachers_that_do_not_fit_are_refused(events, teacher):
    frame = pd.DataFrame([(0, 0, 0), (0, 1, 1)], columns=["user_id", "item_id", "timestamp"])
    other = Interactions.from_frame(frame, timestamp="timestamp", item_ids=range(31))
    with pytest.raises(ValueError, match="the teacher knows 30 items, and the events are of 31"):
        fit(DistilledTwoTower, other, teacher=teacher)
    with pytest.raises(ValueError, match="both read histories"):
        fit(DistilledTwoTower, events, teacher=teacher, user_tower="id")
    with pytest.raises(ValueError, match="not attention"):
        fit(DistilledTwoTower, events, teacher=teacher, user_tower="history_attention")


def test_a_teacher_on_another_device_reads_there(events):
    read = []

    class Elsewhere(TwoTower):
        """Says that it is on a device on which nothing can be computed."""

        device = property(lambda self: torch.device("meta"))

        def history_side(self, *stretches):
            read.extend(x.device.type for x in stretches)
            return torch.zeros(len(stretches[1]), self.dim)

    teacher = fit(TwoTower, events, epochs=1)
    teacher.__class__ = Elsewhere
    assert fit(DistilledTwoTower, events, teacher, dim=8, epochs=1).device.type == "cpu"
    assert set(read) == {"meta"}
