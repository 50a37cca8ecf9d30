"""A flat dataclass as command-line flags and as a YAML file: one converter, one message for a wrong value.

YAML scalars are read as they are written (`1e-3` is a number, a column named `yes` stays `yes`): the field's type
decides their type, not YAML's rules.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import shutil
import textwrap
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml

from nanonet.config.describe import describe, sections
from nanonet.config.presets import CHOICES, expand, flags_of, presets_of, require_texts
from nanonet.errors import InputError

Config = TypeVar("Config")

MAX_BYTES = 1_000_000  # of a YAML file
METAVAR = {int: "N", float: "X", str: "TEXT"}
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
NULL = "tag:yaml.org,2002:null"
NONE = ("none", "null")  # an optional number that is left out; a text may be `none`


class _Parser(argparse.ArgumentParser):
    """argparse, whose own errors (a flag without its value) are InputErrors too."""

    def error(self, message: str) -> NoReturn:
        what = message.removeprefix("argument ")
        flag, _, rest = what.partition(": ")
        if rest == "expected one argument":  # also where it came, but looks like a flag
            what = f"{flag}: needs a value, written {flag}=VALUE where it begins with a hyphen"
        raise InputError(f"{what.replace('ignored explicit argument', 'takes no value, not')}; see {self.prog} --help")


class _Help(argparse.HelpFormatter):
    """Lines that break at spaces only: a name with hyphens can be copied."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wrap = textwrap.TextWrapper(width, break_on_hyphens=False, break_long_words=False)
        wrap.initial_indent, wrap.subsequent_indent = indent, indent + "    "
        return "\n".join(map(wrap.fill, text.splitlines()))


def parse(config: type[Config], argv: Sequence[str], prog: str, summary: str, positional: str = "") -> Config:
    """A `config` from the flags in `argv`, which override the file that --config names, which overrides the
    preset that either names, which overrides the defaults.

    positional: the field that is also taken without a flag.
    Prints the help and raises SystemExit(0) for --help.

    Raises:
        InputError: an unknown flag or key, a value of the wrong type, or a YAML file that cannot be read.
    """
    parser = _flags(config, prog, summary, positional)
    given, unknown = parser.parse_known_args([_hyphens(word) for word in argv])
    kinds = _kinds(config)
    if unknown:
        flag = unknown[0].split("=")[0]
        if not flag.startswith("-"):
            raise InputError(f"{flag}: not a flag, and no flag before it takes it; see {prog} --help")
        raise InputError(f"{flag}: no such flag{_nearest(flag, [_flag(name) for name in kinds])}; see {prog} --help")
    values = dict(vars(given))
    path = values.pop("config", None)
    settings = read_yaml(config, path) if path is not None else {}
    for name, value in values.items():
        flag = name.upper() if name == positional else _flag(name)
        if isinstance(value, list):
            settings[name] = tuple(_convert(_item(kinds[name]), item, f"{flag} {item}") for item in value)
        else:
            settings[name] = value if isinstance(value, bool) else _convert(kinds[name], value, f"{flag} {value}")
    if presets_of(config) and (preset := settings.pop("preset", None)) is not None:
        settings = expand(preset, settings)
        require_texts(preset, settings)
    return config(**settings)


def read_yaml(config: type, path: str) -> dict[str, Any]:
    """The settings of a YAML file, as values for the fields of `config`.

    Raises:
        InputError: names the file, the line and the key.
    """
    file = Path(path).expanduser()
    if file.exists() and not file.is_file() and not file.is_dir():
        raise InputError(f"--config {path} is a pipe, socket or device; give a YAML file of flags and values")
    if file.is_file() and file.stat().st_size > MAX_BYTES:
        raise InputError(f"--config {path} has more than {MAX_BYTES} bytes; give a YAML file of flags and values")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"--config {path}: there is no such file; give a YAML file of flags and values") from None
    except IsADirectoryError:
        raise InputError(f"--config {path} is a folder; give the file in it, such as {path}/config.yaml") from None
    except UnicodeDecodeError as error:
        raise InputError(f"--config {path}: not utf-8 (byte {error.start + 1}); save it as utf-8 text") from error
    except OSError as error:
        raise InputError(f"--config {path}: cannot be read ({error.strerror}); check its permissions") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}:" if mark else ""
        raise InputError(f"{path}:{place} not YAML ({error.problem}); write lines such as `steps: 200`") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not YAML ({reason}); write lines such as `steps: 200`") from error
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path}, line {node.start_mark.line + 1}: no settings; write lines such as `steps: 200`")
    kinds = _kinds(config)
    settings: dict[str, Any] = {}
    for key, value in node.value:
        name, where = str(key.value).replace("-", "_"), f"{path}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode) or name not in kinds:
            shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise InputError(f"{where}: no such key {shown!r}{_nearest(name, kinds)}; delete it or spell it right")
        if name in settings:
            raise InputError(f"{where}: {name} stands there twice; keep one")
        item = _item(kinds[name])
        nodes = value.value if item and isinstance(value, yaml.SequenceNode) else [value]
        if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
            takes = _takes(item or kinds[name])
            raise InputError(f"{where}: {name} is a list or mapping; give {takes}, in quotes if need be")
        given = [None if node.tag == NULL else node.value for node in nodes]
        if item:
            settings[name] = tuple(_convert(item, one, f"{where}: {name} {one}") for one in given if one is not None)
        else:
            settings[name] = _convert(kinds[name], given[0], f"{where}: {name} {value.value}".rstrip())
    return settings


def _convert(kind: Any, value: str | None, source: str) -> Any:
    """`value` as `kind`; `source` names it in a message, with what was given."""
    plain, optional = _plain(kind), isinstance(kind, types.UnionType)
    if value is None or (optional and plain is not str and value.lower() in NONE):
        if optional:
            return None
    elif typing.get_origin(plain) is Literal:
        if value in typing.get_args(plain):
            return value
    elif plain is str:
        return value
    elif plain is bool:
        if value.lower() in TRUE + FALSE:
            return value.lower() in TRUE
    else:
        try:
            return plain(value)
        except ValueError:
            pass
    raise InputError(f"{source}: give {_takes(plain)}")


def _item(kind: Any) -> Any:
    """The type of the values of a field that takes several; None of any other field."""
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _plain(kind: Any) -> Any:
    """The type of an optional field's value; another field's type as it is."""
    if isinstance(kind, types.UnionType):
        return next(k for k in typing.get_args(kind) if k is not types.NoneType)
    return kind


def _takes(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(typing.get_args(kind))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


def shown(default: Any) -> str:
    """A default as `--help` shows it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default in (None, "", ()) else str(default)


def _kinds(config: type) -> dict[str, Any]:
    """The type of every field, and of the key that names a preset."""
    return typing.get_type_hints(config) | ({"preset": CHOICES} if presets_of(config) else {})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _hyphens(word: str) -> str:
    """`--labels_per_class=3` as `--labels-per-class=3`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {near[0]}?" if near else ""


def _flags(config: type, prog: str, summary: str, positional: str) -> argparse.ArgumentParser:
    # as wide as the terminal, but no wider than is good to read
    width = min(shutil.get_terminal_size().columns, 110)
    parser = _Parser(
        prog=prog,
        description=summary,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: _Help(prog, max_help_position=30, width=width),
        usage=f"{prog} [flags]" + (f" [{positional.upper()}]" if positional else ""),
        epilog=_preset_lines(config),
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of these flags; flags given here win over it")
    if presets_of(config):
        text = (
            "a paper's system by one flag, as listed below; every flag and key of --config that is given wins over it"
        )
        parser.add_argument("--preset", metavar="{" + ",".join(presets_of(config)) + "}", help=text)
    help_of, section_of, kinds = describe(config), sections(config), _kinds(config)
    groups: dict[str, Any] = {"": parser}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        heading, kind = section_of[field.name], kinds[field.name]
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        group = groups[heading]
        text = f"{help_of[field.name]} (default: {shown(field.default)})".replace("%", "%%")
        if field.name == positional:
            group.add_argument(field.name, nargs="?", metavar=positional.upper(), help=text)
        elif kind is bool:
            group.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, help=text)
        else:
            plain, several = _item(kind) or _plain(kind), "+" if _item(kind) else None
            choice = typing.get_origin(plain) is Literal
            metavar = "{" + ",".join(typing.get_args(plain)) + "}" if choice else METAVAR[plain]
            group.add_argument(_flag(field.name), metavar=metavar, nargs=several, help=text)
    return parser


def _preset_lines(config: type) -> str:
    """What each preset sets, for the end of `--help`; "" where there is none."""
    lines = [f"{name} ({preset.paper}): {flags_of(name)}" for name, preset in presets_of(config).items()]
    return "\n".join(["presets:", *lines]) if lines else ""
