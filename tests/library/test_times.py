import re
import warnings
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_lib.data import Interactions, check_seconds

APRIL_7 = 1_586_217_600  # 2020-04-07 00:00:00 UTC


def read(times: object) -> list[int]:
    """The times in the order given."""
    frame = pd.DataFrame({"user_id": 1, "item_id": 1, "timestamp": times})
    inter = Interactions.from_frame(frame)
    return inter.timestamps[inter.rows.argsort()].tolist()


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text",
    [
        "07/04/2020",
        "Tue 07/04/2020",
        "Tuesday, 07.04.2020",
        "10:00 07/04/2020",
        "10:00:30 07-04-2020",
        "10:00:30.5 07 04 2020",
        "07/04/2020 10:00",
        "07-04-2020T10:00:00",
        "07.04.2020 10:00:00+02:00",
        "10h30 07/04/2020",
        "5PM 07/04/2020",
        "5:30 p.m. 07/04/2020",
        "10:00 -07/04/2020",
        "10:00 -07 04 2020",
        "2020 07/04",
        "2020, 07/04",
        "07/04 2020",
        "07 04/2020",
        "07, 04, 2020",
        "07,04,2020",
        "04 07, 2020",
        "07_04_2020",
        "07\\04\\2020",
        "07:04:2020",
        "07 / 04 / 2020",
        "7th 4th 2020",
        "07T04T2020",
        "7/4/2020",
        "\uff17/\uff14/2020",
        "1/2/03 2020",
        "Apr 07 04 2020",
        "13/04/2020",
        "07 Apr 20 10:00 +0200",
        "2020-04-07-10-11",
    ],
)
def test_a_day_and_a_month_in_numbers_are_refused_wherever_they_stand(text: str) -> None:
    words = r'column "timestamp", row 1: the timestamp .* can be read in more than one way; .*format='
    with pytest.raises(ValueError, match=words):
        read(["2020-04-07", text])
    with pytest.raises(ValueError, match="more than one way"):
        read(pd.Series(["2020-04-07", text], dtype=object))


def test_a_prefix_does_not_make_a_date_certain() -> None:
    with pytest.raises(
        ValueError, match="row 0: the timestamp 'Tue 07/04/2020' can be read in more than one"
    ):
        read(["Tue 07/04/2020", "Mon 13/04/2020"])


SEPARATORS = st.sampled_from(["/", "-", ".", " ", ", ", "_", " / ", "\\", "th ", ":"])
BEFORE = st.sampled_from(["", "Tue ", "Tuesday, ", "10:00 ", "10:00:59 ", "5 PM ", "at 10:00 on "])
AFTER = st.sampled_from(["", " 10:00", " 23:59:59.123", "T10:00", " 5 PM", " Tue", " +0200", " UTC"])


@given(st.integers(1, 12), st.integers(1, 12), SEPARATORS, SEPARATORS, BEFORE, AFTER, st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_short_pair_is_ever_read(
    day: int, month: int, one: str, two: str, before: str, after: str, padded: bool
) -> None:
    width = "02" if padded else ""
    with pytest.raises(ValueError, match=r"more than one way|names no month"):
        read([f"{before}{day:{width}}{one}{month:{width}}{two}2020{after}"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020-04-07", 0),
        ("2020-4-7", 0),
        ("2020/04/07", 0),
        ("2020.04.07", 0),
        ("2020 04 07", 0),
        ("20200407", 0),
        ("Tue 2020/04/07", 0),
        ("10:00 2020-04-07", 36_000),
        ("2020-04-07T10", 36_000),
        ("2020-04-07T12+02", 36_000),
        ("2020-04-07 10:00:00.123456789 +00:00", 36_000),
        ("20200407T1000", 36_000),
        ("20200407 10:00", 36_000),
        ("7 Apr 2020", 0),
        ("07-Apr-2020", 0),
        ("April 7, 2020 10:00 AM", 36_000),
        ("April 7, 2020, 10 am", 36_000),
        ("10 AM April 7 2020", 36_000),
        ("10:00 7 April 2020", 36_000),
        ("Tue Apr  7 10:00:00 2020", 36_000),
        ("Tue, 07 Apr 2020 12:00:00 +0200", 36_000),
        ("7 Apr 2020 12:00 +02", 36_000),
        ("2020-Apr-07", 0),
        ("2020, 7 April", 0),
    ],
)
def test_a_date_with_one_reading_is_read(text: str, seconds: int) -> None:
    assert read([text, text]) == [APRIL_7 + seconds] * 2


def test_a_month_alone_is_its_first_day_and_a_year_alone_is_no_date() -> None:
    first = APRIL_7 - 6 * 86_400
    assert read(["April 2020", "2020-04", "4/2020", "04 2020"]) == [first] * 4
    # pandas would take the present month
    with pytest.raises(
        ValueError, match=r"row 0: .*'10:00 2020' cannot be read as a date: it names no month"
    ):
        read(["10:00 2020"])
    for wrong in ("2020-13-04", "2020/13/04", "07042020", "Tue 2020/13/04"):  # no day before month
        with pytest.raises(ValueError, match="cannot be read as a date"):
            read([wrong])


# ---------------------------------------------------------------------- numbers

REFUSED = {
    "NaT": ([APRIL_7, -(2**63)], "row 1: the timestamp -9223372036854775808 is NaT, a missing date"),
    "NaT in seconds": ([APRIL_7, -(2**63) // 10**9], "row 1: .* is NaT, a missing date"),
    "NaT in seconds, cut": ([APRIL_7, -9_223_372_036], "row 1: .* is NaT, a missing date"),
    "NaT from milliseconds": ([-(2**63) // 10**3, APRIL_7], "row 0: .* is NaT, a missing date"),
    "NaT as float": ([APRIL_7, float(-(2**63))], "row 1: .* is NaT, a missing date"),
    "milliseconds before 1970": (
        [-315_619_200_000, 5],
        "row 0: .*before the year 1678 .*divide milliseconds",
    ),
    "milliseconds": ([APRIL_7 * 1000], "row 0: .* lies after the year 9999 .*divide milliseconds by 1000"),
    "nanoseconds": ([APRIL_7 * 10**9], "row 0: .* lies after the year 9999 "),
    "dates": ([20200407, 19991231], r'20200407 is a date written as a number.*format="%Y%m%d"\)'),
    "dates as floats": ([20200407.0, 19991231.0], r'20200407\.0 is a date written .*format="%Y%m%d"\)'),
    "leap day": ([20200229, 20000229], "is a date written as a number"),
    "hours": ([2020040723, 2020040800], r'format="%Y%m%d%H"\)'),
    "minutes": ([202004072359, 202004080000], r'format="%Y%m%d%H%M"\)'),
    "clock": ([20200407235959, 20200408000000], r'format="%Y%m%d%H%M%S"\)'),
}


@pytest.mark.parametrize(("times", "words"), REFUSED.values(), ids=REFUSED)
def test_numbers_that_nobody_means_as_seconds_are_refused(times: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(times)
    with pytest.raises(ValueError, match=words.replace("row", "event")):
        check_seconds(torch.tensor(times, dtype=torch.float64 if "." in str(times) else None), "here")


def test_a_missing_date_cast_to_an_integer_is_found() -> None:
    dates = pd.Series(pd.to_datetime(["2020-04-07", None]))
    for unit in ("s", "ms", "us", "ns"):
        with pytest.raises(ValueError, match=r'column "timestamp", row 1: .*NaT'):
            read(dates.astype(f"datetime64[{unit}]").to_numpy().view(np.int64))


def test_the_words_are_the_same_for_a_frame_and_for_a_tensor() -> None:
    with pytest.raises(ValueError, match="after the year") as frame:
        read([1, APRIL_7 * 1000])
    with pytest.raises(ValueError, match="after the year") as tensor:
        check_seconds(torch.tensor([1, APRIL_7 * 1000]), "EASE.score_histories")
    ours, theirs = (str(caught.value).partition(": ") for caught in (frame, tensor))
    assert ours[0] == 'column "timestamp", row 1'
    assert theirs[0] == "EASE.score_histories, event 1"
    assert ours[2] == theirs[2]


WARNED = {
    "one before 1970": ([APRIL_7, -633_437_445], "row 1: .* in the year 1949 .*1 of 2 lie before 1980"),
    "overflowed milliseconds": (
        ((np.arange(400) * 86_400_000 + APRIL_7 * 1000).astype(np.int32)),
        "row .*of 400 lie before 1980 or after 2100.*overflowed 32 bits",
    ),
    "minutes": ([APRIL_7 // 60, APRIL_7 // 60 + 5], "row 0: .* in the year 1970 .*2 of 2 lie before 1980"),
    "0 for missing": ([APRIL_7, APRIL_7, 0], "row 2: .* in the year 1970 .*1 of 3 .*a 0 for a missing date"),
    "after 2100": ([4_200_000_000], "row 0: .* in the year 2103 .*1 of 1"),
    "float32": (
        np.array([APRIL_7, APRIL_7 + 50], dtype=np.float32),
        "float32, which holds times as late as these only to 128 s; read them as int64 or float64",
    ),
    "float16": (np.array([1, 5000], dtype=np.float16), "float16, which holds .* only to 4 s"),
    "Float32": (pd.array([APRIL_7, APRIL_7], dtype="Float32"), "float32, which holds"),
    "float of Arrow": (pd.array([float(APRIL_7)] * 2, dtype="float[pyarrow]"), "float32, which holds"),
}


@pytest.mark.parametrize(("times", "words"), WARNED.values(), ids=WARNED)
def test_numbers_that_hardly_anyone_means_as_seconds_give_a_warning(times: object, words: str) -> None:
    frame = pd.DataFrame({"user_id": 1, "item_id": 1, "timestamp": times})
    with pytest.warns(UserWarning, match=words) as caught:
        Interactions.from_frame(frame)
    assert caught[0].filename == __file__
    if isinstance(times, (list, np.ndarray)):
        with pytest.warns(UserWarning, match=words.replace("row", "event")) as caught:
            check_seconds(torch.as_tensor(times), "here")
        assert caught[0].filename == __file__


SILENT = {
    "seconds": [APRIL_7, 874_724_710],
    "a counter": [0, 1, 2, 1_000_000],
    "a counter from 1": [1, 20_000_000],
    "a counter over the digits of dates": [*range(20_200_100, 20_200_140), 0],
    "seconds from the first event": [0, 3_600, 86_400 * 365],
    "before and after 0": [-2, 3],
    "days since 1970": [18_000, 18_359],
    "years": [1999, 2020],
    "floats": [APRIL_7 + 0.5],
    "small floats": np.array([0, 1, 2**24], dtype=np.float32),
    "Int64": pd.array([APRIL_7], dtype="Int64"),
    "Arrow": pd.array([APRIL_7], dtype="int64[pyarrow]"),
    "int8": np.array([1, -5, 127], dtype=np.int8),
    "uint64": np.array([1, APRIL_7 // 100], dtype=np.uint64),
}


@pytest.mark.parametrize("times", SILENT.values(), ids=SILENT)
def test_seconds_and_counters_pass_without_a_word(times: object) -> None:
    expected = np.floor(np.asarray(times, dtype=np.float64)).astype(int).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(times) == expected
        if not hasattr(times, "isna"):
            array = np.asarray(times)
            assert check_seconds(torch.as_tensor(array), "here").tolist() == expected


@given(st.lists(st.datetimes(datetime(1980, 1, 1), datetime(2099, 12, 31)), min_size=1, max_size=20))
@settings(max_examples=50, deadline=None)
def test_dates_in_digits_are_known_whatever_they_are_and_seconds_are_not_taken_for_them(
    moments: list[datetime],
) -> None:
    seconds = [int(moment.replace(tzinfo=UTC).timestamp()) for moment in moments]
    for form in ("%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S"):
        written = [int(moment.strftime(form)) for moment in moments]
        with pytest.raises(ValueError, match=re.escape(f'format="{form}")')):
            read(written)
    if max(seconds) < 1_900_000_000:  # up to 2030, seconds cannot be dates with the hour
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read(seconds) == seconds


def test_days_that_no_calendar_has_are_no_dates() -> None:
    for days in ([20200431], [20190229], [19000229], [20201301], [20200100], [20200407, 20200432]):
        with pytest.warns(UserWarning, match="in the year 1970"):
            assert read(days) == days


def test_tensors_of_seconds() -> None:
    half = check_seconds(torch.tensor([APRIL_7 + 0.5, -0.5], dtype=torch.float64)[:1], "here")
    assert half.dtype == torch.int64
    assert half.tolist() == [APRIL_7]
    assert check_seconds(torch.tensor([-0.5]), "here").tolist() == [-1]
    assert check_seconds(torch.tensor([], dtype=torch.int64), "here").tolist() == []
    assert check_seconds(torch.tensor([]), "here").dtype == torch.int64
    with pytest.raises(ValueError, match=r"here, event 1: the timestamp nan is missing"):
        check_seconds(torch.tensor([1, torch.nan]), "here")
    with pytest.raises(ValueError, match=r"here, event 0: the timestamp inf is infinite"):
        check_seconds(torch.tensor([torch.inf]), "here")
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="here: timestamps must be seconds, got torch"):
            check_seconds(torch.ones(2, dtype=dtype), "here")


# ---------------------------------------------------------------------- datetimes


def test_numbers_taken_for_nanoseconds_are_noticed() -> None:
    seconds = [APRIL_7, APRIL_7 + 86_400]
    with pytest.warns(UserWarning, match=r'every timestamp lies in January 1970.*unit="s"') as caught:
        Interactions.from_frame(
            pd.DataFrame({"user_id": 1, "item_id": 1, "timestamp": pd.to_datetime(seconds)})
        )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(pd.to_datetime(seconds, unit="s")) == seconds
        assert read(["1970-01-05"]) == [4 * 86_400]  # it says so itself
        assert read(pd.to_datetime(["1970-01-05", "2020-04-07"])) == [4 * 86_400, APRIL_7]


@pytest.mark.parametrize(
    "type_",
    [
        pa.timestamp("ns"),
        pa.timestamp("s"),
        pa.timestamp("us", "UTC"),
        pa.timestamp("ms", "America/Chicago"),
        pa.date32(),
        pa.date64(),
    ],
    ids=str,
)
def test_times_of_arrow(type_: pa.DataType) -> None:
    times = pd.Series(pd.to_datetime(["2020-04-08", "2020-04-07"], utc=True))
    if pa.types.is_timestamp(type_) and type_.tz:
        column = times.astype(pd.ArrowDtype(type_))
    else:
        column = times.dt.tz_localize(None).astype(pd.ArrowDtype(type_))
    assert read(column) == [APRIL_7 + 86_400, APRIL_7]
    gap = column.where([True, False], None)
    with pytest.raises(ValueError, match='column "timestamp", row 1: the timestamp is missing'):
        read(gap)


def test_texts_of_arrow_and_categories_of_times() -> None:
    for kind in ("string[pyarrow]", pd.ArrowDtype(pa.dictionary(pa.int8(), pa.string())), "category"):
        assert read(pd.Series(["2020-04-07", "2020-04-07"]).astype(kind)) == [APRIL_7] * 2
    assert read(pd.Series(pd.Categorical([APRIL_7, 5_000, APRIL_7])).iloc[[0, 2]]) == [APRIL_7] * 2
    assert read(pd.Series(pd.Categorical(pd.to_datetime(["2020-04-07"])))) == [APRIL_7]
    with pytest.raises(ValueError, match="row 1: the timestamp is missing"):
        read(pd.Series(pd.Categorical([APRIL_7, None])))
    with pytest.raises(ValueError, match="row 0: the timestamp True is neither"):
        read(pd.Series([True, False], dtype="bool[pyarrow]"))
    with pytest.raises(ValueError, match="row 0: the timestamp is a duration"):
        read(pd.Series(pd.to_timedelta([1], unit="s")).astype(pd.ArrowDtype(pa.duration("s"))))
    with pytest.raises(ValueError, match=r"row 0: .* is neither seconds nor a date"):
        read(pd.Series([5], dtype="int32").astype(pd.ArrowDtype(pa.time32("s"))))
