"""What the service takes and gives, with the limits of each field."""

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    StrictInt,
    StrictStr,
    Tag,
)

__all__ = [
    "Answer",
    "BatchAnswer",
    "BatchRequest",
    "EventsAnswer",
    "EventsRequest",
    "FieldProblem",
    "Found",
    "Health",
    "Listed",
    "ListedItem",
    "Problem",
    "RecommendRequest",
    "Similar",
]

MOST_LISTED, MOST_HISTORY, MOST_TEXT = 100, 1000, 500
MOST_IDS, MOST_BATCH, MOST_EVENTS = 5000, 32, 100
_LARGEST = 4 * 10**18  # of a whole number: within 64 bits, and exact in the description, where it is a float


def _whole(value: Any) -> Any:
    """To JSON 7.0 is the whole number 7; a text and a truth value are none."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_whole)  # stands behind the limits, which would not be in the description else

Number = Annotated[StrictInt, Field(ge=-_LARGEST, le=_LARGEST), _WHOLE]
Name = Annotated[StrictStr, Field(min_length=1, max_length=200)]
Id = Annotated[Number | Name, Field(description="an id of your own: a whole number or a text")]


class _Strict(BaseModel):
    """Refuses what it does not know: a misspelled field must not be passed over."""

    model_config = ConfigDict(extra="forbid")


class _Rules(_Strict):
    k: Annotated[StrictInt, Field(ge=1, le=MOST_LISTED, description="length of the list"), _WHOLE] = 10
    exclude: Annotated[list[Id], Field(max_length=MOST_IDS, description="items that may not be listed")] = []
    allowed: Annotated[
        list[Id] | None, Field(max_length=MOST_IDS, description="the only items that may; null allows all")
    ] = None
    at_most: Annotated[
        Annotated[StrictInt, Field(ge=1, le=MOST_LISTED), _WHOLE] | None,
        Field(description="items of one group, such as a genre"),
    ] = None
    diversity: Annotated[
        float | None,
        Field(ge=0, le=1, allow_inf_nan=False, strict=True, description="weight of unlikeness"),
    ] = None
    repeat: Annotated[bool, Field(strict=True, description="list again what the person has had")] = False


class ForUser(_Rules):
    """For someone whom the model or the events know."""

    user: Id


class ForHistory(_Rules):
    """For someone with these items, oldest first; without any it is what is popular."""

    history: Annotated[list[Id], Field(max_length=MOST_HISTORY)]


class ForText(_Rules):
    """For a description, such as "a slow Japanese drama"."""

    text: Annotated[StrictStr, Field(min_length=1, max_length=MOST_TEXT)]


def _kind(value: Any) -> str | None:
    """Which of the three it is; the model of that one then refuses the other two."""
    given = value if isinstance(value, dict) else vars(value) if isinstance(value, BaseModel) else {}
    return next((name for name in ("user", "history", "text") if name in given), None)


class RecommendRequest(RootModel[Any]):
    """Whom a list is for: exactly one of ``user``, ``history`` and ``text``; and its rules."""

    root: Annotated[
        Annotated[ForUser, Tag("user")]
        | Annotated[ForHistory, Tag("history")]
        | Annotated[ForText, Tag("text")],
        Discriminator(
            _kind,
            custom_error_type="whom",
            custom_error_message="give exactly one of user, history and text",
        ),
    ]


class BatchRequest(_Strict):
    """Several requests at once; each gets its answer or its error."""

    requests: Annotated[list[RecommendRequest], Field(min_length=1, max_length=MOST_BATCH)]


class NewEvent(_Strict):
    """Someone chose something."""

    user: Id
    item: Id
    timestamp: Annotated[
        Annotated[StrictInt, Field(ge=0, le=2**40), _WHOLE] | None,
        Field(description="seconds since 1970 UTC; null is now"),
    ] = None
    key: Annotated[
        StrictStr | None,
        Field(min_length=1, max_length=100, description="your name of the event: sent twice, it counts once"),
    ] = None


class EventsRequest(_Strict):
    """Events; all are kept, or none."""

    events: Annotated[list[NewEvent], Field(min_length=1, max_length=MOST_EVENTS)]


class Listed(BaseModel):
    """An item of a list."""

    rank: int
    item: int | str
    score: float
    about: dict[str, Any]


class Answer(BaseModel):
    """A list, what it was made of, and where its time went."""

    model: str
    basis: Annotated[str, Field(description='"user", "history", "text" or "popular"')]
    new_events: Annotated[int, Field(description="events since the fit that were read")]
    items: list[Listed]
    milliseconds: dict[str, float]


class FieldProblem(BaseModel):
    """What is wrong with a field."""

    field: str
    message: str


class Problem(BaseModel):
    """Why there is no answer."""

    code: str
    message: str
    fields: list[FieldProblem] = []


class BatchEntry(BaseModel):
    """An answer, or why there is none."""

    answer: Answer | None = None
    error: Problem | None = None


class BatchAnswer(BaseModel):
    """One entry a request, in their order."""

    answers: list[BatchEntry]


class EventsAnswer(BaseModel):
    """Sent when the events are on the disk."""

    kept: int
    known_before: int


class Similar(BaseModel):
    """The items most like one."""

    model: str
    items: list[Listed]


class ListedItem(BaseModel):
    """An item of the catalog."""

    item: int | str
    about: dict[str, Any]


class Found(BaseModel):
    """Items whose titles hold the words that were asked for."""

    items: list[ListedItem]


class Health(BaseModel):
    """Whether it can answer, and with what."""

    status: str
    model: str
    users: int
    items: int
    events: int
    reads_histories: bool
    reads_text: bool
    last_reload_failed: bool
