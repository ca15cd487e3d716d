"""Strategies of hypothesis for the contents of files."""

import io
import json
import zipfile

from hypothesis import strategies as st

PIECES = (
    *(b"\0", b"\xff", b"\x7f", b"\x80", b"\0" * 4, b"\xff" * 4, b"\0" * 8),
    *(b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\xff" * 7 + b"\x7f"),
    *(b"\0\0\0\x80", b"\x80\0\0\0", b"\x01\0\0\0", b"\0\0\0\x01"),
)
TEXT_PIECES = (
    *("\n", "\r\n", "\r", " ", "\t", ",", ";", '"', '""', "'", "\\", "/", "|"),
    *(
        "\0",
        "\ufeff",
        "\x85",
        "\u2028",
        "\xa0",
        "\x1b[31m",
        "é",
        "声",
        "\U0001f600",
    ),
    *("0", "1", "-1", "1e999", "nan", "inf", "٣", "9" * 30, "9" * 5000),
    *(
        "null",
        "true",
        "{}",
        "[]",
        "[",
        "{",
        "}",
        "]",
        ":",
        ": ",
        "#",
        "$",
        "$$",
    ),
    *(
        "<",
        ">",
        "=>",
        "target",
        "..",
        "a" * 140_000,
        "[" * 1500,
        "-",
        "*",
        "&a",
        "!",
    ),
)
TEXT = tuple(piece.encode() for piece in TEXT_PIECES)


def _place(draw, data):
    """Some byte, as often as not near the start or the end."""
    size = len(data)
    near = min(size, 120)
    number = draw(st.integers(-near, size + 3 * near))
    if number < 0:
        return size + number
    return number // 4 if number < 4 * near else number - 3 * near


def _part(draw, data):
    start = _place(draw, data)
    number = draw(st.integers(0, 100 + len(data) - start))
    return start, start + max(number - 100, min(number // 5, len(data) - start))


@st.composite
def mutated(draw, seeds, pieces=PIECES, most=5):
    """One of the seeds with parts of it changed; the first as it is."""
    data = draw(st.sampled_from(seeds))
    kinds = ("flip", "set", "insert", "delete", "repeat", "cut", "splice")
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=most)):
        start, end = _part(draw, data)
        if kind == "flip" and data[start:]:
            changed = data[start] ^ (1 << draw(st.integers(0, 7)))
            data = data[:start] + bytes([changed]) + data[start + 1 :]
        elif kind in ("set", "insert"):
            piece = draw(st.sampled_from(pieces) | st.binary(max_size=8))
            end = start + len(piece) if kind == "set" else start
            data = data[:start] + piece + data[end:]
        elif kind == "delete":
            data = data[:start] + data[end:]
        elif kind == "repeat":
            times = draw(st.sampled_from((2, 3, 500)))
            if times * (end - start) < 1_000_000:
                data = data[:start] + times * data[start:end] + data[end:]
        elif kind == "cut":
            data = data[:start]
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            data = data[:start] + other[_place(draw, other) :]
    return data


def text(*seeds, most=3):
    """Texts of the seeds, damaged, or bytes of any kind."""
    seeds = [seed.encode() for seed in seeds]
    return mutated(seeds, TEXT, most) | st.binary(max_size=60)


def shallow(inputs):
    """Inputs without deep nesting, for which YAML takes time squared."""
    return inputs.filter(lambda data: data.count(b"[") + data.count(b"{") < 600)


SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from((0, 1, -1, 10**400, -0.0, 1e308, "", "0", "a\nb"))
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def changed_value(draw, value):
    """A value of JSON in which one part is another, or is missing."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 5)):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = draw(st.sampled_from(keys))
        copy = value.copy()
        if draw(st.integers(0, 5)):
            copy[key] = draw(changed_value(value[key]))
        else:
            del copy[key]
        return copy
    return draw(VALUES)


def json_of(*values):
    """JSON of the values: right, with other parts, or damaged as a text."""
    right = [json.dumps(value).encode() for value in values]
    changed = st.sampled_from(values).flatmap(changed_value)
    return (
        st.sampled_from(right)
        | changed.map(lambda value: json.dumps(value).encode())
        | text(*(each.decode() for each in right))
    )


@st.composite
def repacked(draw, seeds):
    """Zip archives with a member that is damaged, but its checksum is right."""
    seed = draw(st.sampled_from(seeds))
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    members[name] = draw(mutated([members[name]]))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()
