"""Arithmetic as Python does it, where it does it; bounded, and nothing else of Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentshell.tool.builtin import calculator
from agentshell.tool.builtin.calculator import MAX_BITS, MAX_CHARACTERS, evaluate

NUMBERS = st.one_of(st.integers(0, 10**6).map(str), st.floats(0, 1e6, allow_nan=False, allow_subnormal=False).map(repr))


def combine(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    small = st.integers(0, 9).map(str)
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(" ".join),
        st.tuples(inner, small).map(lambda of: f"({of[0]}) ** {of[1]}"),
        inner.map(lambda it: f"-{it}"),
        inner.map(lambda it: f"({it})"),
        inner.map(lambda it: f"abs({it})"),
        st.tuples(inner, inner).map(lambda of: f"max({of[0]}, min({of[1]}, pi))"),
    )


def by_python(expression: str) -> Any:
    names: dict[str, Any] = {"abs": abs, "min": min, "max": max, "pi": math.pi, "__builtins__": {}}
    try:
        return eval(expression, names)  # noqa: S307 - of this test's own making
    except ArithmeticError:
        return None


def within_limits(value: Any) -> bool:
    return value.bit_length() <= MAX_BITS if isinstance(value, int) else math.isfinite(value)


@given(st.recursive(NUMBERS, combine, max_leaves=8))
@settings(max_examples=200)
def test_it_comes_to_what_python_says_or_refuses(expression: str) -> None:
    expected = by_python(expression)
    try:
        value = evaluate(expression)
    except ValueError as error:
        # On the way to a small number there may be a large one: `0 * 9 ** 9 ** 9`.
        assert expected is None or not within_limits(expected) or "larger than" in str(error)  # noqa: PT017
        return
    assert (type(value), value) == (type(expected), expected)


@given(st.text(alphabet="0123456789.+-*/%()e,_ aijnpo'[]{}:=<>^\0\n", max_size=60))
@settings(max_examples=300)
def test_any_text_comes_to_a_number_or_is_refused(text: str) -> None:
    try:
        value = evaluate(text)
    except ValueError:
        return
    assert type(value) in (int, float)
    assert within_limits(value)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 ** 4095", 2**4095),
        ("10 ** 1000 // 10 ** 999", 10),
        (" -2 ** 2 ", -4),
        ("2 ** -1", 0.5),
        ("round(2.675, 2) + round(2.5)", 4.67),
        ("round(1234, -2)", 1200),
        ("log(8, 2) + log10(1000) + sqrt(16)", 10.0),
        ("floor(2.7) + ceil(2.1) + min(1) + max(1, 3, 2)", 9),
        ("cos(pi) + sin(0) + tan(0) + exp(0) + log(e)", 1.0),
        ("+".join("1" * 500), 500),
        ("(" * 60 + "1" + ")" * 60, 1),
    ],
)
def test_it_works_out(expression: str, value: float) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("1 / 0", "division by zero, at character 1"),
        ("2 * (3 - 1j)", "'1j' is nothing known here, at character 10"),
        ("(-8) ** 0.5", "no real number, at character 1"),
        ("log(0)", "math domain error, at character 1"),
        ("1e999", "larger than a decimal number can be, at character 1"),
        ("1e300 * 1e300", "larger than a decimal number can be, at character 1"),
        ("2 ** 4096", "larger than 2 ** 4096, at character 1; use decimals, such as 2.0 ** 500"),
        ("9 ** 9 ** 9 ** 9", "larger than 2 ** 4096, at character 6"),
        ("10 ** 400 / 3.0", "int too large to convert to float, at character 1"),
        ("round(7, -1000000000)", "round takes a whole number of digits, up to 100, at character 1"),
        ("2 ^ 3", "an operator that is not there, at character 1: there are + - * / // % and ** for powers"),
        ("True + 1", "'True' is nothing known here, at character 1"),
        ("x", "'x' is nothing known here, at character 1"),
        ("__import__('os').getcwd()", "\"__import__('os').getcwd()\" is nothing known here, at character 1"),
        ("(1).__class__", "'1 .__class__' is nothing known here, at character 1"),
        ("abs(*[1])", "'*[1]' is nothing known here, at character 5"),
        ("max(1, key=abs)", "'max(1, key=abs)' is nothing known here, at character 1"),
        ("[1][0]", "'[1][0]' is nothing known here, at character 1"),
        ("1 if 1 else 2", "'1 if 1 else 2' is nothing known here, at character 1"),
        ("(a := 1)", "'(a := 1)' is nothing known here, at character 2"),
        ("-" * 100 + "1", f"nested deeper than {calculator.MAX_DEPTH} levels; work it out in parts"),
        ("1" * (MAX_CHARACTERS + 1), "longer than 1000 characters; work it out in parts"),
    ],
)
def test_what_it_does_not_do_is_named_with_its_place(expression: str, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        evaluate(expression)
    assert str(caught.value) == problem


@pytest.mark.parametrize(
    "expression", ["1 +", "", "1; 2", "1or 2", "(" * 300 + ")" * 300, "\0", "a = 1", "lambda: 1 :"]
)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"^not an expression"):
        evaluate(expression)
