"""A method and its options as one word: te_fusion:readout=mean:temporal_position=sincos. Pruners are named so too."""

import inspect
import re
from collections.abc import Mapping

from tefusion.choices import brief, nearest

SIZES = ("width", "embed_dim", "depth", "heads", "grid")  # of the neighbours, for the methods that ask
WRITTEN = {
    bool: ("true or false", "true|false"),
    int: ("a whole number", r"-?\d{1,9}"),
    float: ("a number", r"-?(\d{1,9}\.?\d{0,9}|\.\d{1,9})(e-?\d{1,2})?"),
    str: ("text", ".*"),
}


def defaults(method: type) -> dict[str, object]:
    """A method's own settings, in the order of its constructor."""
    parameters = inspect.signature(method).parameters
    return {name: p.default for name, p in parameters.items() if name not in ("k", *SIZES)}


def split(word: str, methods: Mapping[str, type], kind: str = "compressor") -> tuple[str, dict[str, object]]:
    """The method's name and the options that the word sets, typed by their defaults. Raises ValueError with one line
    on an unknown name or option, one that comes twice, and a value of the wrong type."""
    name, *settings = word.split(":")
    if name not in methods:
        raise ValueError(f"{kind} {brief(name)} is unknown{nearest(name, methods)}")
    known, options = defaults(methods[name]), {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"{name}: {brief(setting)} is not of the form option=value")
        check_option(name, option, known)
        if option in options:
            raise ValueError(f"{name}: {option!r} is given twice")
        options[option] = typed(name, option, value, type(known[option]))
    return name, options


def check_option(name: str, option: str, known: Mapping[str, object]) -> None:
    if option not in known:
        raise ValueError(f"{name} has no option {brief(option)}{nearest(option, known)}")


def typed(name: str, option: str, value: str, kind: type) -> object:
    said, pattern = WRITTEN[kind]
    if not re.fullmatch(pattern, value, re.ASCII):
        raise ValueError(f"{name}: {option} must be {said}, got {brief(value)}")
    return value == "true" if kind is bool else kind(value)


def spelled(word: str, methods: Mapping[str, type], kind: str = "compressor") -> str:
    """The one spelling of a method: options at their defaults are left out, the others come in the constructor's
    order."""
    name, options = split(word, methods, kind)
    changed = [
        (option, options[option])
        for option, value in defaults(methods[name]).items()
        if options.get(option, value) != value
    ]
    return ":".join(
        [name, *(f"{option}={str(value).lower() if isinstance(value, bool) else value}" for option, value in changed)]
    )
