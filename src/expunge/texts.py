"""Files of text and of YAML: whatever they hold, a wrong one is one sentence with its name."""

import codecs
import os
from collections.abc import Hashable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from expunge.errors import ExpungeError

DEEPEST = 50
"""Levels of a YAML file, one within the other, at most."""
MOST = 200_000
"""Entries of a YAML file at most, with each alias counted as what it stands for."""

_MARKED = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: str | os.PathLike[str] | Traversable, noun: str = "it") -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Args:
        path: the file.
        noun: what it holds, for the error, e.g. ``the policy``.

    Raises:
        ExpungeError: it can't be read, or isn't such text.
    """
    return decoded(read_bytes(path, noun), str(path))


def read_bytes(path: str | os.PathLike[str] | Traversable, noun: str = "it") -> bytes:
    """The bytes of a file.

    Raises:
        ExpungeError: it can't be read.
    """
    try:
        return Path(path).read_bytes() if isinstance(path, str | os.PathLike) else path.read_bytes()
    except OSError as error:
        raise ExpungeError(f"{path}: can't read {noun}: {error.strerror or error}") from None
    except ValueError as error:  # of a name that no file can have
        raise ExpungeError(f"{str(path)!r}: can't read {noun}: {error}") from None


def decoded(content: bytes, source: str) -> str:
    """The text of a file's bytes, which come from ``source``.

    Raises:
        ExpungeError: they are neither UTF-8 nor UTF-16 with a byte order mark.
    """
    encoding = next((name for mark, name in _MARKED if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ExpungeError(f"{source}: not UTF-8 text (line {line}); save it as UTF-8") from None


def read_yaml(path: str | os.PathLike[str] | Traversable, noun: str = "it") -> Any:
    """What a YAML file holds, as plain Python values.

    Raises:
        ExpungeError: as ``read_text`` and ``parse_yaml``.
    """
    return parse_yaml(read_text(path, noun), str(path))


def parse_yaml(text: str, source: str) -> Any:
    """What a YAML text holds, as plain Python values; ``source`` names it in errors.

    Raises:
        ExpungeError: it isn't YAML, a key stands in it twice, or it is too deep or too large.
    """
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct_document(node)
    except _Refused as error:
        raise ExpungeError(f"{source}: {error.problem}{_line(error)}") from None
    except yaml.MarkedYAMLError as error:
        problem = error.problem or error.context or "it can't be parsed"
        raise ExpungeError(f"{source}: not a YAML file: {problem}{_line(error)}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        # The last four come from values that aren't what their tag says, e.g. a 13th month.
        raise ExpungeError(f"{source}: not a YAML file: {' '.join(str(error).split())}") from None
    finally:
        if loader:
            loader.dispose()


def _line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f" (line {mark.line + 1})" if mark else ""


class _Refused(yaml.MarkedYAMLError):
    """A text that is YAML, but none that we read."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(None, None, problem, mark)


class _Loader(yaml.SafeLoader):
    """Refuses keys that stand twice, and what is too deep or too large to be meant."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes: dict[int, int] = {}
        """Entries of each finished node, by identity; nodes live as long as the document."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if self._depth >= DEEPEST:
            raise _Refused(f"more than {DEEPEST} levels within each other", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if id(node) not in self._sizes:
            if isinstance(event, yaml.AliasEvent):
                raise _Refused("an alias of what it stands in", mark)
            self._sizes[id(node)] = self._size(node, mark)
        return node

    def _size(self, node: Any, mark: Any) -> int:
        """Entries of a node.

        Raises:
            _Refused: they are too many, or a key stands twice.
        """
        size = 1 + sum(self._sizes[id(part)] for part in _parts(node))
        if size > MOST:
            raise _Refused(f"more than {MOST:,} entries, each alias counted", mark)
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return size

    def _check_keys(self, node: Any) -> None:
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)
            if value in seen:
                raise _Refused(f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(value)


def _parts(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
