"""The options of a model, each stated once: its name, type, default, range and meaning.

::

    class EASE(RecencyWeighted):
        l2: float = option("regularization, in the unit of item counts", default=200.0, above=0)

That line is the argument of the constructor, its check, its entry in ``help(EASE)``, and its place in the
saved configuration. A subclass inherits the options of its parents; ``option(default=50.0)`` gives one of
them another default, and ``preset(default=50.0)`` settles it.
"""

import dataclasses
import inspect
import math
import numbers
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["check_options", "data", "declare", "learned", "option", "option_values", "options_of", "preset"]

_KIND = "recsys_lib"  # marks our fields among those of any other dataclass


@dataclasses.dataclass(frozen=True)
class _Option:
    """What is known of an option beside its name, type and default."""

    meaning: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[Any, ...] | None = None
    saved: bool = True


def option(
    meaning: str | None = None,
    *,
    default: Any,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[Any] | None = None,
) -> Any:
    """Declares an option.

    Args:
        meaning: what it does, in a phrase. Left out for another default of an inherited option, whose meaning
            and range stay.
        default: its default.
        at_least: the smallest value allowed.
        above: values must be larger than this.
        at_most: the largest value allowed.
        below: values must be smaller than this.
        choices: the values allowed.
    """
    known = None
    if meaning is not None:
        chosen = None if choices is None else tuple(choices)
        known = _Option(meaning, at_least, above, at_most, below, chosen)
    return dataclasses.field(default=default, kw_only=True, metadata={_KIND: known})


def preset(*, default: Any, init: Literal[False] = False) -> Any:
    """Settles an inherited option: it is no argument of this class and of those derived from it."""
    return dataclasses.field(default=default, init=init, metadata={_KIND: "preset"})


def data(meaning: str, *, default: None = None, kw_only: bool = True) -> Any:
    """Declares an argument that is data rather than a setting: it is not saved with the configuration.

    Args:
        meaning: what it is, with its shape.
        default: None, with which a model that was saved after ``fit`` must be complete.
        kw_only: False lets it be given without its name.
    """
    # A factory leaves no class attribute, in whose place a buffer of that name could not stand.
    known = _Option(meaning, saved=False)
    return dataclasses.field(default_factory=lambda: default, kw_only=kw_only, metadata={_KIND: known})


def learned(meaning: str, *, init: Literal[False] = False) -> Any:
    """Declares what ``fit`` makes: as a rule a parameter or a buffer, which is saved with the weights.

    Args:
        meaning: what it holds; of a tensor its shape and type.
        init: it is no argument of the constructor.
    """
    return dataclasses.field(init=init, metadata={_KIND: meaning})


def declare(cls: type) -> None:
    """Makes the constructor, the signature and the documentation of a class from its options.

    Raises:
        TypeError: the class writes a constructor of its own, an option has no meaning, or an annotation is
            none of the above.
    """
    if "__init__" in cls.__dict__:
        raise TypeError(
            f"{cls.__name__} defines __init__; declare its arguments with option() or data() instead, so "
            f"that they are checked and saved, and do other work in build() or _fit()"
        )
    inherited = {f.name: f for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {}
    own = inspect.get_annotations(cls)
    for name, hint in own.items():
        field = cls.__dict__.get(name)
        if not isinstance(field, dataclasses.Field) or _KIND not in field.metadata:
            if "ClassVar" in str(hint):
                continue
            raise TypeError(
                f"{cls.__name__}.{name} must be option(), data(), preset(), learned() or a ClassVar"
            )
        if field.metadata[_KIND] is None:
            if name not in inherited:
                raise TypeError(f"{cls.__name__}.{name}: an option needs its meaning in a phrase")
            field.metadata = inherited[name].metadata
    dataclasses.dataclass(eq=False, repr=False)(cls)
    options = options_of(cls)
    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY if field.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None if field.default is dataclasses.MISSING else field.default,
            annotation=field.type,
        )
        for name, field in options.items()
    ]
    parameters.sort(key=lambda parameter: parameter.kind)
    # Said explicitly: a class that defines __new__ shows the signature of that one otherwise.
    cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    if "__doc__" in cls.__dict__ and cls.__doc__ and options:
        cls.__doc__ = inspect.cleandoc(cls.__doc__) + "\n\nArgs:\n" + "\n".join(map(_entry, options.values()))


def options_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The options and data of a class by name: its own first, then its parents'."""
    found = {f.name: f for f in dataclasses.fields(cls) if f.init} if dataclasses.is_dataclass(cls) else {}
    order = [name for parent in cls.__mro__ for name in inspect.get_annotations(parent)]
    return {name: found[name] for name in dict.fromkeys(order) if name in found}


def option_values(model: Any) -> dict[str, Any]:
    """The values of a model's options, without its data."""
    return {
        name: getattr(model, name)
        for name, field in options_of(type(model)).items()
        if field.metadata[_KIND].saved
    }


def check_options(model: Any) -> None:
    """Checks the value of every option against its type and range; numbers of numpy become Python's.

    Raises:
        TypeError: a value of another type.
        ValueError: a value out of range, not finite, or none of the choices.
    """
    for name, field in options_of(type(model)).items():
        known: _Option = field.metadata[_KIND]
        if known.saved:
            hint = _hint(type(model), name)
            setattr(model, name, _checked(type(model), name, getattr(model, name), hint, known))


def _hint(cls: type, name: str) -> Any:
    """The type that an option was declared with, also where annotations are texts."""
    owner = next(parent for parent in cls.__mro__ if name in inspect.get_annotations(parent))
    bare = types.SimpleNamespace(__annotations__={name: owner.__annotations__[name]})
    return typing.get_type_hints(bare, vars(sys.modules[owner.__module__]))[name]


def _checked(cls: type, name: str, value: Any, hint: Any, known: _Option) -> Any:
    """The value, if it is one that the option can have."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    if known.choices is not None:
        if value not in known.choices:
            listed = ", ".join(map(str, known.choices))
            raise ValueError(f"{cls.__name__}: {name} must be one of {listed}, got {value!r}")
        return value
    truth = isinstance(value, bool) or type(value).__name__ == "bool"  # numpy's is no subclass
    if bool in kinds and truth:
        return bool(value)
    if int in kinds and isinstance(value, numbers.Integral) and not truth:
        value = int(value)
    elif float in kinds and isinstance(value, numbers.Real) and not truth:
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"{cls.__name__}: {name} must be finite, got {value}")
    elif not (str in kinds and isinstance(value, str)):
        raise TypeError(f"{cls.__name__}: {name} must be {_type_words(hint)}, got {value!r}")
    ranges = (
        (known.at_least, lambda x, limit: x >= limit),
        (known.above, lambda x, limit: x > limit),
        (known.at_most, lambda x, limit: x <= limit),
        (known.below, lambda x, limit: x < limit),
    )
    if any(limit is not None and not holds(value, limit) for limit, holds in ranges):
        alternative = " or None" if type(None) in kinds else ""
        raise ValueError(f"{cls.__name__}: {name} must be {_range(known)}{alternative}, got {value}")
    return value


def _type_words(hint: Any) -> str:
    """``int | None`` as "a whole number or None"."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
    return " or ".join(words.get(kind, "None") for kind in kinds)


def _range(known: _Option) -> str:
    """The range in words: "1 or more", "above 0 and below 1"."""
    parts = [
        *([] if known.at_least is None else [f"{known.at_least:g} or more"]),
        *([] if known.above is None else [f"above {known.above:g}"]),
        *([] if known.at_most is None else [f"{known.at_most:g} or less"]),
        *([] if known.below is None else [f"below {known.below:g}"]),
    ]
    return " and ".join(parts)


def _entry(field: dataclasses.Field[Any]) -> str:
    """An option's entry in the documentation of its class."""
    known: _Option = field.metadata[_KIND]
    if known.saved:
        limits = _range(known) if known.choices is None else "one of " + ", ".join(map(str, known.choices))
        notes = [limits] if limits else []
        notes.append(f"{field.default!r} by default")
        words = f"{known.meaning} ({'; '.join(notes)})."
    else:
        words = f"{known.meaning}; not saved."
    return textwrap.fill(
        f"{field.name}: {words}",
        100,
        initial_indent=" " * 4,
        subsequent_indent=" " * 8,
        break_long_words=False,
    )
