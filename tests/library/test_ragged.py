"""Rows of unequal length: against plain lists."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.data.ragged import (
    distinct_events,
    offsets,
    row_blocks,
    row_of_each,
    run_starts,
    sort_by,
    take_rows,
    within_rows,
)

quick = settings(max_examples=50, deadline=None)
rows_of_numbers = st.lists(st.lists(st.integers(0, 9), max_size=4), min_size=1, max_size=6)


def lengths(rows) -> torch.Tensor:
    return torch.tensor([len(row) for row in rows])


@quick
@given(rows_of_numbers)
def test_offsets_rows_and_places(rows):
    crow = offsets(lengths(rows))
    assert crow.tolist() == [sum(map(len, rows[:i])) for i in range(len(rows) + 1)]
    assert row_of_each(crow).tolist() == [r for r, row in enumerate(rows) for _ in row]
    assert within_rows(crow).tolist() == [i for row in rows for i in range(len(row))]


@quick
@given(rows_of_numbers, st.data())
def test_take_rows_gathers_any_rows_in_any_order(rows, data):
    crow = offsets(lengths(rows))
    values = torch.tensor([v for row in rows for v in row], dtype=torch.int64)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=5))
    place, row = take_rows(crow, torch.tensor(wanted, dtype=torch.int64))
    expected = [(n, v) for n, r in enumerate(wanted) for v in rows[r]]
    assert list(zip(row.tolist(), values[place].tolist(), strict=True)) == expected


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12))
def test_runs_begin_where_some_key_changes(pairs):
    pairs = sorted(pairs)
    a, b = (torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in (0, 1))
    expected = [i == 0 or pairs[i] != pairs[i - 1] for i in range(len(pairs))]
    assert run_starts(a, b).tolist() == expected


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)), max_size=12))
def test_sort_by_is_the_stable_sort_by_all_keys(triples):
    first, second, _ = (torch.tensor([t[i] for t in triples], dtype=torch.int64) for i in range(3))
    expected = sorted(range(len(triples)), key=lambda i: triples[i][:2])
    assert sort_by(first, second).tolist() == expected


@quick
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(-5, 5)), max_size=15))
def test_distinct_events_keep_the_latest_time(events):
    users, items, times = (torch.tensor([e[i] for e in events], dtype=torch.int64) for i in range(3))
    found = distinct_events(users, items, times, 5, 5)
    latest: dict[tuple[int, int], int] = {}
    for user, item, time in events:
        latest[user, item] = max(time, latest.get((user, item), time))
    pairs = sorted(latest)
    assert list(zip(found.users.tolist(), found.items.tolist(), strict=True)) == pairs
    assert found.timestamps.tolist() == [latest[pair] for pair in pairs]
    assert found.crow.tolist() == [sum(u < n for u, _ in pairs) for n in range(6)]


@quick
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 12))
def test_row_blocks_are_all_rows_in_order_and_few_entries(lengths, budget):
    blocks = row_blocks(torch.tensor(lengths, dtype=torch.int64), budget)
    assert [row for block in blocks for row in range(len(lengths))[block]] == list(range(len(lengths)))
    for block in blocks:
        assert lengths[block]
        assert sum(lengths[block][:-1]) < budget + max(lengths)  # the last row may stand over
    assert len(blocks) <= sum(lengths) // budget + 1
