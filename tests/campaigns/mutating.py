"""A mutator of good files: bytes that are damaged, and headers that are odd but can be read."""

import json
import struct
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from campaigns.world import record_of

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9),
    st.sampled_from([[], {}, "", -1, 2**64, 10**400, 1e308, "nan", "null", "\x00", "../../x"]),
    st.just("a" * 300),
    st.lists(st.integers(), max_size=3), 
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2),
)  # fmt: skip
"""Values of the wrong type or size."""


@st.composite
def mutated(draw: Callable[..., Any], content: bytes, other: bytes = b"\x80PK") -> bytes:
    """A file that something has happened to."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    how = draw(
        st.sampled_from(["flip", "cut", "head", "put in", "zeros", "swap", "other", "twice"])
    )
    if how == "flip" and content:
        early = draw(st.booleans())  # the header is where most of the reading is
        changed = bytearray(content)
        for _ in range(draw(st.integers(1, 3))):
            place = draw(st.integers(0, min(len(content), 400 if early else 1 << 30) - 1))
            changed[place] ^= 1 << draw(st.integers(0, 7))
        return bytes(changed)
    if how == "cut":
        return content[:at]
    if how == "head":
        return content[at:]
    if how == "put in":
        return content[:at] + draw(st.binary(min_size=1, max_size=40)) + content[at:]
    if how == "zeros":
        return content[:at] + bytes(min(64, len(content) - at)) + content[at + 64 :]
    if how == "swap":
        return content[at:] + content[:at]
    if how == "other":
        return draw(st.sampled_from([other, b"", b"{}", other[:100] + content[100:]]))
    return content + content


@st.composite
def other_header(draw: Callable[..., Any], content: bytes, other: bytes) -> bytes:
    """A safetensors file whose header is odd but can be read, with the tensors as they are."""
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = draw(st.sampled_from(["value", "value", "value", "drop", "swap", "dtype", "text"]))
    metadata = header.get("__metadata__", {})
    entry = draw(st.sampled_from(sorted(metadata) or ["expunge"]))
    if how == "swap":
        header["__metadata__"] = record_of(other)["__metadata__"]  # type: ignore[index]
    elif how == "text":
        metadata[entry] = draw(
            st.sampled_from(["", "[]", "{", "null", "3", '"x"', "[" * 5000, "{}"])
        )
    elif how == "dtype":
        name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
        header[name]["dtype"] = draw(st.sampled_from(["F16", "BF16", "I32", "BOOL", "F8_E4M3"]))
    elif metadata.get(entry, "").startswith("{"):
        record = json.loads(metadata[entry])
        path = draw(st.sampled_from(list(paths(record))))
        change(record, path, draw(ODD), drop=how == "drop")
        metadata[entry] = json.dumps(record)
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + data


def paths(tree: Any, before: tuple[Any, ...] = ()) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from paths(value, (*before, key))


def change(tree: Any, path: tuple[Any, ...], value: Any, *, drop: bool) -> None:
    for key in path[:-1]:
        tree = tree[key]
    if drop:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


def same_file(one: bytes, two: bytes, entry: str) -> bool:
    """Whether two safetensors files say the same, whatever the order and space in their headers."""
    first, second = _said(one, entry), _said(two, entry)
    return first is not None and first == second


def _said(content: bytes, entry: str) -> object:
    header = record_of(content)
    if not isinstance(header, dict):
        return None
    try:
        size = int.from_bytes(content[:8], "little")
        data = content[8 + size :]
        tensors = {
            name: (about["dtype"], about["shape"], data[slice(*about["data_offsets"])])
            for name, about in header.items()
            if name != "__metadata__"
        }
        record = json.loads(header["__metadata__"][entry])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return None
    known = {"format", "id", "components", "metadata", "done", "run", "steps", "log", "key"}
    if isinstance(record, dict) and record.keys() & known:
        record = {key: value for key, value in record.items() if key in known}
    return json.dumps(record, sort_keys=True), tensors
