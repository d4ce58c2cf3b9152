"""Tiny ONNX erasers, written byte by byte: the `onnx` package is not needed to run or to test one.

Each paints the mean colour of what is known into the hole. `tiny_eraser` takes the form of a published one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

Form = Literal["pipeline", "lama", "lama255", "generator"]
Value = int | str | bytes
_TYPES = {"float32": 1, "uint8": 2, "int64": 7}


def tiny_eraser(path: Path, form: Form, side: int = 64) -> Path:
    """Write an eraser of a form; `side` is that of its fixed size, where the form has one."""
    size: tuple[Any, ...] = (side, side)
    if form == "pipeline":  # bytes of any size, 255 is kept
        nodes = [
            _node("Cast", ["image"], "pixels", to=1),
            _node("Cast", ["mask"], "levels", to=1),
            _node("Div", ["levels", "white"], "keep"),
            *_MEAN,
            _node("Cast", ["filled"], "result", to=2),
        ]
        given = [_value("image", "uint8", 1, 3, "h", "w"), _value("mask", "uint8", 1, 1, "h", "w")]
        return _write(path, nodes, given, _value("result", "uint8", 1, 3, "h", "w"))
    if form == "generator":  # mask - 0.5 (1 is kept) and the kept pixels, all from -1 to 1
        nodes = [
            _node("Slice", ["input", "0", "1", "channels"], "shifted"),
            _node("Slice", ["input", "1", "4", "channels"], "pixels"),
            _node("Add", ["shifted", "half"], "keep"),
            *_MEAN,
            _node("Identity", ["filled"], "result"),
        ]
        return _write(path, nodes, [_value("input", "float32", 1, 4, *size)], _result(side))
    scale = "white" if form == "lama255" else "one"
    nodes = [  # from 0 to 1, 1 in the mask is the hole
        _node("Identity", ["image"], "pixels"),
        _node("Sub", ["one", "mask"], "keep"),
        *_MEAN,
        _node("Mul", ["filled", scale], "result"),
    ]
    given = [_value("image", "float32", "batch", 3, *size), _value("mask", "float32", "batch", 1, *size)]
    return _write(path, nodes, given, _result(side))


def _node(kind: str, inputs: list[str], output: str, **attributes: Any) -> bytes:
    parts = [(1, name) for name in inputs] + [(2, output), (4, kind)]
    for name, value in attributes.items():
        many = isinstance(value, list)
        values: list[tuple[int, Value]] = [(8, each) for each in value] if many else [(3, value)]
        parts.append((5, _message((1, name), *values, (20, 7 if many else 2))))
    return _message(*parts)


def _value(name: str, kind: str, *shape: int | str) -> bytes:
    dims = [(1, _message((2, each) if isinstance(each, str) else (1, each))) for each in shape]
    tensor = _message((1, _TYPES[kind]), (2, _message(*dims)))
    return _message((1, name), (2, _message((1, tensor))))


def _result(side: int) -> bytes:
    return _value("result", "float32", 1, 3, side, side)


def _constant(name: str, values: Any, kind: str) -> bytes:
    array = np.asarray(values, dtype=kind)
    dims = [(1, length) for length in array.shape]
    return _message(*dims, (2, _TYPES[kind]), (8, name), (9, array.tobytes()))


def _write(path: Path, nodes: list[bytes], given: list[bytes], result: bytes) -> Path:
    constants = [_constant(name, value, "float32") for name, value in _NUMBERS.items()]
    constants += [_constant(name, [int(name)], "int64") for name in ("0", "1", "4")]
    constants.append(_constant("channels", [1], "int64"))
    graph = _message(
        *((1, node) for node in nodes),
        (2, "tiny"),
        *((5, constant) for constant in constants),
        *((11, value) for value in given),
        (12, result),
    )
    path.write_bytes(_message((1, 7), (7, graph), (8, _message((2, 12)))))
    return path


def _message(*fields: tuple[int, Value]) -> bytes:
    """Return a message of protobuf: whole numbers as varints, everything else with its length."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += _varint(number << 3) + _varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


_NUMBERS = {"one": 1, "half": 0.5, "white": 255, "least": 1e-6}
_OVER_PIXELS = {"axes": [2, 3], "keepdims": 1}
_MEAN = [  # "pixels" and "keep" -> "filled"
    _node("Mul", ["pixels", "keep"], "known"),
    _node("ReduceSum", ["known"], "sum", **_OVER_PIXELS),
    _node("ReduceSum", ["keep"], "count", **_OVER_PIXELS),
    _node("Max", ["count", "least"], "some"),
    _node("Div", ["sum", "some"], "mean"),
    _node("Sub", ["one", "keep"], "hole"),
    _node("Mul", ["mean", "hole"], "painted"),
    _node("Add", ["known", "painted"], "filled"),
]
