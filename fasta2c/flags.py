"""The verbs' flags: read from the command line into a dataclass, every error a line that says what to do.

tyro makes flags of fields and writes the help; what it reports late or in boxes of its own is found here before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fasta2c.errors import UserError, did_you_mean, reason

# tyro is imported where it is used: a misspelt flag needs none of it.
if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

T = TypeVar("T")
# That tyro writes completions for.
SHELLS = ("bash", "zsh", "tcsh")


@dataclass
class Given:
    """A flag found on the command line."""

    flag: str
    """As the help spells it."""
    tokens: list[str]
    """What follows it up to the next flag; for a flag that takes no value, these belong elsewhere."""

    @property
    def value(self) -> str | None:
        """The first token, None where there is none."""
        return self.tokens[0] if self.tokens else None


def scan(argv: Sequence[str], cls: type) -> dict[str, Given]:
    """The flags in `argv`, by field of `cls`.

    tyro would take the last of repeated flags, and reports a misspelt one only at the end of its work; the
    base configuration is needed before that work.

    Raises:
        UserError: a flag that is unknown (the nearest named), repeated, or has no value, an empty one, one too many.
    """
    fields = {k: hint for k, hint in _fields(cls).items() if not _is_positional(cls, k)}
    known = {_flag(name): (name, hint) for name, hint in fields.items()}
    known |= {f"--no-{_flag(name)[2:]}": (name, hint) for name, hint in fields.items() if hint is bool}
    given: dict[str, Given] = {}
    last = Given("", [])
    for token in argv:
        if not _is_flag(token):
            last.tokens.append(token)
            continue
        flag, equals, value = token.partition("=")
        if token in ("-h", "--help"):
            last = Given(token, [])
            continue
        flag = flag.replace("_", "-")
        if flag not in known:
            raise UserError(f"unknown flag {flag}.{did_you_mean(flag, known, 2) or ' See --help.'}")
        name, hint = known[flag]
        if name in given:
            raise UserError(f"{flag} is given more than once.")
        if equals and hint is bool:
            raise UserError(f"{flag} takes no value; write {_flag(name)} or --no-{_flag(name)[2:]}.")
        last = given[name] = Given(flag, [value] if equals else [])
    for name, found in given.items():
        if fields[name] is not bool and not found.value:
            raise UserError(f"{found.flag}: its value is {'missing' if found.value is None else 'empty'}.")
    return given


def _is_flag(token: str) -> bool:
    """Whether tyro would take `token` for a flag; a negative number, -inf and -nan are values."""
    return token[:1] == "-" and token.lstrip("-")[:1].isalpha() and token.lower() not in ("-inf", "-infinity", "-nan")


def parse(
    cls: type[T],
    verb: str,
    argv: Sequence[str],
    given: Mapping[str, Given],
    default: T | None = None,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
) -> T:
    """An instance of `cls` from `argv`, unset fields taken from `default`; --help prints and exits."""
    import tyro
    from tyro import _errors  # private, and so tyro's version is pinned: its public way out is a boxed message

    tokens = {g.flag: g.tokens for g in given.values()}

    def refuse(event: _errors.ParseErrorEvent) -> None:
        raise UserError(_reason(event, tokens))

    with _errors.on_parse_error(refuse):
        return tyro.cli(
            cls,
            prog=f"fasta2c {verb}",
            args=list(argv),
            default=tyro.MISSING_NONPROP if default is None else default,
            config=_config(),
            registry=_registry(env_kwargs or {}),
        )


@contextlib.contextmanager
def flags_of(cls: type[T], verb: str, argv: Sequence[str]) -> Iterator[T]:
    """An instance of `cls` from `argv`; inside, a `UserError` that starts with a field starts with its flag instead."""
    given = scan(argv, cls)
    with errors_named({name: g.flag for name, g in given.items()}):
        yield parse(cls, verb, argv, given)


def write_completion(verbs: Mapping[str, type], argv: Sequence[str]) -> None:
    """Do what `--tyro-write-completion SHELL FILE` or `--tyro-print-completion SHELL` in `argv` asks for.

    Args:
        verbs: the flags of each.
        argv: nothing else.

    Raises:
        UserError: another shell, or a file that cannot be written.
    """
    import tyro

    counts = {"--tyro-write-completion": 3, "--tyro-print-completion": 2}
    if counts.get(argv[0]) != len(argv) or argv[1] not in SHELLS:
        raise UserError(f"write fasta2c --tyro-write-completion {'|'.join(SHELLS)} FILE, or --tyro-print-completion.")
    every: Any = typing.Union[  # noqa: UP007 - made of a list
        tuple(typing.Annotated[cls, tyro.conf.subcommand(name)] for name, cls in verbs.items())
    ]
    try:
        tyro.cli(every, prog="fasta2c", args=list(argv), config=_config(), registry=_registry({}))
    except OSError as error:
        raise UserError(f"{argv[-1]} cannot be written ({reason(error)}).") from None


def _config() -> tuple[Any, ...]:
    from tyro import conf

    return conf.OmitArgPrefixes, conf.PositionalRequiredArgs


def _reason(event: Any, tokens: Mapping[str, list[str]]) -> str:
    """tyro's parse error in a line of ours."""
    from tyro import _errors

    if isinstance(event, _errors.UnrecognizedArgs):
        token = event.tokens[0]
        flag = next((flag for flag, following in tokens.items() if token in following), None)
        return f"unexpected argument {token!r}{f' after {flag}' if flag else ''}; see {event.prog} --help."
    if isinstance(event, _errors.MissingArgs):
        names = ", ".join(_spelling(a.arg) for a in event.missing_arguments)
        return f"{names} is missing; see {event.prog} --help."
    if isinstance(event, _errors.InvalidChoice):
        hint = did_you_mean(event.value, event.choices)
        return f"{_spelling(event.argument)}: {event.value!r} is not one of {', '.join(event.choices)}.{hint}"
    if isinstance(event, _errors.InstantiationFailure) and event.argument is not None:
        flag, metavar = _spelling(event.argument), str(event.argument.lowered.metavar)
        value = _short(" ".join(tokens.get(flag, [])[: None if "..." in metavar else 1]))
        kinds = {"...": "whole numbers separated by spaces", "FLOAT": "a number", "INT": "a whole number"}
        kind = next((words for mark, words in kinds.items() if mark in metavar), None)
        if kind and (word := re.search(r"{(\w+)}", metavar)):
            return f"{flag}: {value} is neither {kind} nor {word[1]}."
        return f"{flag}: {value} is not {kind}." if kind else f"{flag}: {event.message}"
    return f"the command line cannot be read ({type(event).__name__}); see {event.prog} --help."


def _spelling(argument: Any) -> str:
    """The name by which a message calls one of tyro's arguments."""
    return str(argument.field.intern_name.upper() if argument.is_positional() else argument.lowered.name_or_flags[0])


def _registry(env_kwargs: Mapping[str, Any]) -> ConstructorRegistry:
    """tyro's rules for our types: a mapping is one JSON object, laid over `env_kwargs`; several paths are runs."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def run_directories(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[tuple[Path, ...]] | None:
        if info.type != tuple[Path, ...]:
            return None
        return PrimitiveConstructorSpec(
            nargs="*",
            metavar="RUN_DIR …",
            instance_from_str=lambda tokens: tuple(map(Path, tokens)),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [str(path) for path in value],
        )

    @registry.primitive_rule
    def options(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Any]] | None:
        if typing.get_origin(info.type) is not dict:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="JSON",
            instance_from_str=lambda tokens: {
                **env_kwargs,
                **json_object(tokens[0], "env_kwargs", '{"frame_skip": 4}'),
            },
            is_instance=lambda value: isinstance(value, dict),
            str_from_instance=lambda value: [json.dumps(value, default=str)],
        )

    return registry


def json_object(text: str, name: str, example: str) -> dict[str, Any]:
    """The JSON object in the value of the flag for `name`; raises `UserError`, with an `example`, where it is none."""
    advice = f"write a JSON object such as '{example}'"
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _each_once(pairs, name))
    except (ValueError, RecursionError) as error:
        where = f" ({error.msg} at character {error.pos + 1})" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{name}: {_short(text)} is not JSON{where}; {advice}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{name}: {_short(text)} is not a JSON object; {advice}.")
    return value


def _each_once(pairs: list[tuple[str, Any]], name: str) -> dict[str, Any]:
    """The object that JSON's `pairs` are of; raises `UserError` for a key that stands twice."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise UserError(f"{name}: {next(key for key in keys if keys.count(key) > 1)!r} stands there twice.")
    return values


@contextlib.contextmanager
def errors_named(origins: Mapping[str, str]) -> Iterator[None]:
    """Inside, a `UserError` that starts with a field (`gamma: …`) starts with where the value came from instead.

    Args:
        origins: by field, the flag (`--gamma`) or the place in a file; read when an error comes.
    """
    try:
        yield
    except UserError as error:
        name, colon, rest = str(error).partition(":")
        if colon and name in origins:
            raise UserError(f"{origins[name]}:{rest}") from None
        raise


def _fields(cls: type) -> dict[str, Any]:
    """Types by field of a dataclass, those of a nested dataclass in its place."""
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for f in dataclasses.fields(cls):
        found |= _fields(hints[f.name]) if dataclasses.is_dataclass(hints[f.name]) else {f.name: hints[f.name]}
    return found


def _is_positional(cls: type, name: str) -> bool:
    """Whether the field has no default, which makes it a positional argument."""
    return any(
        f.name == name and f.default is f.default_factory is dataclasses.MISSING for f in dataclasses.fields(cls)
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _short(text: str) -> str:
    """`text` quoted, its middle left out if it is long."""
    return repr(text if len(text) <= 60 else f"{text[:40]}…{text[-15:]}")
