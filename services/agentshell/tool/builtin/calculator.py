"""The tool that does arithmetic. It parses expressions by Python's own grammar, and never executes them."""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from agentshell.tool.arguments import ArgumentError

MAX_CHARACTERS = 1000
MAX_DEPTH = 64
MAX_BITS = 4096
MAX_ROUNDING_DIGITS = 100
_MAX_SHOWN_CHARACTERS = 40

_Number: TypeAlias = int | float

Expression = Annotated[
    str,
    Field(
        min_length=1,
        max_length=MAX_CHARACTERS,
        description=(
            "Such as (3 + 4) * 2 ** 0.5. There are + - * / // % ** and parentheses; abs, ceil, cos, exp, floor, log, "
            "log10, max, min, round, sin, sqrt and tan, in radians; pi and e."
        ),
    ),
]


class Answer(BaseModel):
    """The value of the expression."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    value: str
    """A whole number with all its digits, or a decimal one with as many as a double has."""


async def calculator(*, expression: Expression) -> Answer:
    """Works out an arithmetic expression. Whole numbers are exact, up to 1233 digits."""
    try:
        return Answer(value=repr(evaluate(expression)))
    except ValueError as error:
        raise ArgumentError("expression", str(error)) from None


def evaluate(expression: str) -> int | float:
    """Returns the value of an expression, in bounded time and memory. Raises ValueError: what is wrong, and where."""
    if len(expression) > MAX_CHARACTERS:
        raise ValueError(f"longer than {MAX_CHARACTERS} characters; work it out in parts")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Refuses `1or 2`, which only warns.
            body = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not an expression: {error.msg}, at character {error.offset or 1}") from None
    except (ValueError, MemoryError, RecursionError):  # A NUL, or too many parentheses for the parser.
        raise ValueError("not an expression that can be read; write a simpler one") from None
    return _value(body, 0)


def _value(node: ast.expr, depth: int) -> _Number:
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels; work it out in parts")
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _work_out(node, operator.pos, value)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as sign, operand=operand):
            return _work_out(node, _OPERATORS[type(sign)], _value(operand, depth + 1))
        case ast.BinOp():
            return _chain(node, depth)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _work_out(node, _FUNCTIONS[name], *(_value(argument, depth + 1) for argument in arguments))
        case _:
            raise ValueError(f"{ast.unparse(node)[:_MAX_SHOWN_CHARACTERS]!r} is not known here, {_place(node)}")


def _chain(node: ast.BinOp, depth: int) -> _Number:
    """Works out `a + b - c ...`, which nests to the left, from the left: a long sum does not count as deep."""
    links: list[ast.BinOp] = []
    first: ast.expr = node
    while isinstance(first, ast.BinOp):
        links.append(first)
        first = first.left
    value = _value(first, depth + 1)
    for link in reversed(links):
        if type(link.op) not in _OPERATORS:
            raise ValueError(f"an unknown operator, {_place(link)}: the operators are + - * / // % and ** for powers")
        value = _work_out(link, _OPERATORS[type(link.op)], value, _value(link.right, depth + 1))
    return value


def _work_out(node: ast.expr, operation: Callable[..., Any], *numbers: _Number) -> _Number:
    try:
        value = operation(*numbers)
    except (ArithmeticError, ValueError, TypeError) as error:
        raise ValueError(f"{error}, {_place(node)}") from None
    if isinstance(value, complex):
        raise ValueError(f"not a real number, {_place(node)}")
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ValueError(f"larger than 2 ** {MAX_BITS}, {_place(node)}; use decimals, such as 2.0 ** 500")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"larger than a decimal number can be, {_place(node)}")
    return value


def _place(node: ast.expr) -> str:
    return f"at character {node.col_offset + 1}"


def _power(base: _Number, exponent: _Number) -> _Number | complex:
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > MAX_BITS:
        raise ValueError(f"larger than 2 ** {MAX_BITS}")
    return base**exponent


def _round(number: _Number, digits: _Number = 0) -> _Number:
    if not isinstance(digits, int) or abs(digits) > MAX_ROUNDING_DIGITS:
        raise ValueError(f"round takes a whole number of digits, up to {MAX_ROUNDING_DIGITS}")
    return round(number, digits) if digits else round(number)


_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e}
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {  # pyright: ignore[reportUnknownVariableType] - floordiv's stub
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "max": lambda *numbers: max(numbers),  # Takes a single number too.
    "min": lambda *numbers: min(numbers),
    "round": _round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
