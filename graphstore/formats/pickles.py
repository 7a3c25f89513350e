"""Read the pickle inside a PyTorch file as data, executing nothing.

A pickle is a program for a stack machine whose instructions can import any name and call it. This
machine runs the few instructions that plain data needs. A name that the program asks for is looked
up in a list and becomes an inert record of this file; there is no import and no call anywhere, so
there is nothing to escape to. Whatever else a program asks for is refused by name.

The instruction set is that of ``pickletools``; what PyTorch writes is protocol 2 (``torch.save``).
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tracer.errors import FormatError

__all__ = ["Record", "Storage", "Tensor", "read_pickle"]

_REMEDY: Final = (
    "Such a file can run programs when opened by other tools: do not open it with them unless you "
    "trust its maker. circuitbase has run nothing of it"
)

# What PyTorch calls its storages, and what their bytes are.
_STORAGES: Final[Mapping[str, str]] = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
}
_DTYPES: Final = frozenset(
    {
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
        "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128",
    }
)  # fmt: skip
# Classes whose objects are taken as records of their fields; their code is never looked at.
_RECORDS: Final = (
    re.compile(r"circuit_tracer\.utils\.tl_nnsight_mapping UnifiedConfig"),
    re.compile(r"circuit_tracer\.attribution\.targets (LogitTarget|CustomTarget)"),
    re.compile(
        r"transformer_lens(\.config)?(\.(HookedTransformerConfig|hooked_transformer_config|"
        r"TransformerBridgeConfig|transformer_bridge_config|TransformerLensConfig|"
        r"transformer_lens_config))? "
        r"(HookedTransformerConfig|TransformerBridgeConfig|TransformerLensConfig)"
    ),
    re.compile(r"transformers\.models\.\w+\.configuration_\w+ \w+Config"),
)


@dataclass(frozen=True)
class Name:
    """A global that a program asked for: only its name."""

    text: str  # "module qualified.name"


@dataclass
class Record:
    """An object of an allowed class: its class's name, its arguments and its fields."""

    type: str
    arguments: tuple[Any, ...]
    fields: dict[str, Any]


@dataclass(frozen=True)
class Storage:
    """Where a tensor's bytes lie in the archive."""

    key: str
    dtype: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage: in elements, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class NumberType:
    """NumPy's type of a single number, as found in configurations."""

    code: str
    order: str = "<"


class _Mark:
    """Where a group of values begins on the stack."""


_MARK: Final = _Mark()


def read_pickle(data: bytes, name: str, opcodes: int) -> Any:
    """Run a pickle on the inert machine and return what it describes.

    Parameters
    ----------
    data
        The program.
    name
        File it came from, for messages.
    opcodes
        Number of instructions after which it is refused.

    Returns
    -------
    object
        Plain Python data, with :class:`Tensor` and :class:`Record` for the rest.

    Raises
    ------
    FormatError
        If it asks for a name or an instruction that plain data does not need, or is damaged.
    """
    return _Machine(name, opcodes).run(data)


class _Machine:
    def __init__(self, name: str, opcodes: int) -> None:
        self.name, self.left = name, opcodes
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        try:
            for opcode, argument, _ in pickletools.genops(data):
                self.left -= 1
                if self.left < 0:
                    raise FormatError(
                        f"{self.name}: its pickle has too many instructions",
                        "Raise Limits.opcodes if you know its maker",
                    )
                if opcode.name == "STOP":
                    return self.stack.pop()
                self._step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{self.name}: its pickle is damaged ({error})", "Save the graph again"
            ) from error
        raise FormatError(f"{self.name}: its pickle does not end", "Save the graph again")

    def _step(self, opcode: str, argument: Any) -> None:
        if opcode in _VALUES:
            self.stack.append(argument)
        elif opcode in _MAKES:
            self.stack.append(_MAKES[opcode]())
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode not in ("PROTO", "FRAME"):
            raise FormatError(
                f"{self.name}: its pickle uses the instruction {opcode}, which data does not need",
                _REMEDY,
            )

    # Stack and memo

    def _group(self) -> list[Any]:
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise ValueError("no mark on the stack")
        group = self.stack[start + 1 :]
        del self.stack[start:]
        return group

    def _put(self, argument: Any) -> None:
        self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]

    def _get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    # Containers

    def _tuple(self, size: int | None) -> None:
        if size is None:
            self.stack.append(tuple(self._group()))
        else:
            parts = tuple(self.stack[len(self.stack) - size :])
            if len(parts) != size:
                raise ValueError("stack too short")
            del self.stack[len(self.stack) - size :]
            self.stack.append(parts)

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (list, set):
            raise ValueError("items for what is no list")
        if isinstance(target, list):
            target.extend(items)
        else:
            target.update(_hashable(item) for item in items)

    def _assign(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("items for what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_hashable(key)] = value

    # Names, and what a program wants to do with them

    def _name(self, text: str) -> None:
        module, _, attribute = text.partition(" ")
        known = (
            text in _CALLS
            or (module == "torch" and (attribute in _STORAGES or attribute in _DTYPES))
            or any(pattern.fullmatch(text) for pattern in _RECORDS)
        )
        if not known:
            raise FormatError(f"{self.name}: its pickle asks for {_dotted(text)}", _REMEDY)
        self.stack.append(attribute if module == "torch" and attribute in _DTYPES else Name(text))

    def _stack_name(self) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise TypeError("a name that is no text")
        self._name(f"{module} {attribute}")

    def _reduce(self) -> None:
        arguments, callable_ = self.stack.pop(), self.stack.pop()
        call = _CALLS.get(callable_.text) if isinstance(callable_, Name) else None
        if call is None or not isinstance(arguments, tuple):
            what = _dotted(callable_.text) if isinstance(callable_, Name) else "what is no name"
            raise FormatError(f"{self.name}: its pickle calls {what}", _REMEDY)
        self.stack.append(call(*arguments))

    def _new(self) -> None:
        arguments, class_ = self.stack.pop(), self.stack.pop()
        self.stack.append(self._record(class_, arguments))

    def _record(self, class_: Any, arguments: Any) -> Record:
        allowed = isinstance(class_, Name) and any(p.fullmatch(class_.text) for p in _RECORDS)
        if not allowed or not isinstance(arguments, tuple):
            what = _dotted(class_.text) if isinstance(class_, Name) else "what is no class"
            raise FormatError(f"{self.name}: its pickle makes an object of {what}", _REMEDY)
        return Record(class_.text, arguments, {})

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, NumberType) and isinstance(state, tuple) and len(state) > 1:
            target.order = ">" if state[1] == ">" else "<"
            return
        if not isinstance(target, Record) or not isinstance(state, dict):
            raise FormatError(f"{self.name}: its pickle changes what is no record", _REMEDY)
        target.fields.update({k: v for k, v in state.items() if isinstance(k, str)})

    def _storage(self) -> None:
        reference = self.stack.pop()
        if not (
            isinstance(reference, tuple)
            and len(reference) == 5
            and reference[0] == "storage"
            and isinstance(reference[1], Name)
            and isinstance(reference[2], str)
            and type(reference[4]) is int
        ):
            raise ValueError("a storage of an unknown kind")
        kind = reference[1].text.removeprefix("torch ")
        if kind not in _STORAGES:
            raise ValueError(f"a storage of the unknown kind {kind}")
        self.stack.append(Storage(reference[2], _STORAGES[kind], reference[4]))


def _hashable(key: Any) -> Any:
    if not isinstance(key, str | int | float | bool | None):
        raise TypeError("a key that is neither text nor number")
    return key


def _dotted(text: str) -> str:
    shown = text.replace(" ", ".")
    return shown if len(shown) <= 80 else f"{shown[:77]}…"


# The names that may be called, as functions of this file.


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or not all(
        type(number) is int and 0 <= number < 1 << 48 for number in numbers
    ):
        raise ValueError("a tensor of an unknown kind")
    if len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("a tensor whose shape and strides differ")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if all(shape) and last >= storage.numel:
        raise ValueError("a tensor that reaches past its storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter that is no tensor")
    return data


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return {_hashable(key): value for key, value in items}


def _device(*parts: Any) -> str:
    return ":".join(str(part) for part in parts if isinstance(part, str | int))


def _number_type(code: Any, *_: Any) -> NumberType:
    if code not in ("f4", "f8", "i4", "i8", "b1"):
        raise ValueError("a number of an unknown kind")
    return NumberType(code)


def _number(type_: Any, data: Any) -> float | int:
    if not isinstance(type_, NumberType) or not isinstance(data, bytes):
        raise TypeError("a number of an unknown kind")
    (value,) = np.frombuffer(data, dtype=type_.order + type_.code).tolist()
    return value  # type: ignore[no-any-return]


def _bytes(text: Any, encoding: Any) -> bytes:
    """Bytes as protocol 2 writes them: a text, each of whose characters is one byte."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("bytes of an unknown kind")
    return text.encode("latin1")


_CALLS: Final[Mapping[str, Callable[..., Any]]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter,
    "collections OrderedDict": _ordered,
    "torch device": _device,
    "numpy dtype": _number_type,
    "numpy.core.multiarray scalar": _number,
    "numpy._core.multiarray scalar": _number,
    "_codecs encode": _bytes,
}

_VALUES: Final = frozenset(
    {
        "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
        "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
        "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    }
)  # fmt: skip
_MAKES: Final[Mapping[str, Callable[[], Any]]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_ACTIONS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "PUT": _Machine._put,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._put,
    "GET": _Machine._get,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    "TUPLE": lambda machine, _: machine._tuple(None),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "APPEND": lambda machine, _: machine._extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine._extend(machine._group()),
    "ADDITEMS": lambda machine, _: machine._extend(machine._group()),
    "SETITEM": lambda machine, _: machine._assign([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine._assign(machine._group()),
    "GLOBAL": lambda machine, argument: machine._name(argument),
    "STACK_GLOBAL": lambda machine, _: machine._stack_name(),
    "REDUCE": lambda machine, _: machine._reduce(),
    "NEWOBJ": lambda machine, _: machine._new(),
    "BUILD": lambda machine, _: machine._build(),
    "BINPERSID": lambda machine, _: machine._storage(),
}
