"""The expression parser against Python's own, and against hostile texts."""

import ast
import contextlib
import operator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.problems.expression import (
    DEEPEST,
    LONGEST,
    Expression,
    NotAnExpressionError,
    ascii_operators,
    operands,
    operate,
    operations,
    parse,
    value_of,
    write,
    write_calculation,
)

PYTHON_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def python_value(text: str) -> Fraction:
    """The value by Python's own grammar, exactly."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        assert isinstance(node, ast.BinOp)
        return PYTHON_OPERATORS[type(node.op)](walk(node.left), walk(node.right))

    return walk(ast.parse(text.strip(), mode="eval").body)


quick = settings(max_examples=60, deadline=None)


def grown(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    joined = st.builds(
        "{}{}{}{}{}".format,
        children,
        st.sampled_from(["", " "]),
        st.sampled_from("+-*/"),
        st.sampled_from(["", " "]),
        children,
    )
    return joined | st.builds("({})".format, joined)


expressions = st.recursive(st.integers(0, 120).map(str), grown, max_leaves=8)


@quick
@given(expressions)
def test_value_and_operands_are_those_of_python(text: str):
    try:
        expected = python_value(text)
    except ZeroDivisionError:
        with pytest.raises(NotAnExpressionError, match="zero"):
            parse(text)
        return
    found = parse(text)
    assert value_of(found) == expected
    numbers = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert sorted(operands(found)) == sorted(numbers)


@quick
@given(expressions)
def test_written_expression_has_the_same_value_and_no_bracket_too_many(text: str):
    try:
        found = parse(text)
    except NotAnExpressionError:
        return
    written = write(found)
    assert value_of(parse(written)) == value_of(found)
    assert operands(parse(written)) == operands(found)
    assert write(parse(written)) == written
    for at, char in enumerate(written):
        if char == "(":
            end = closing(written, at)
            without = f"{written[:at]}{written[at + 1 : end]}{written[end + 1 :]}"
            assert shape(parse(without)) != shape(found), written


def closing(text: str, at: int) -> int:
    depth = 0
    for place in range(at, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if not depth:
            return place
    raise AssertionError(text)


def shape(found: Expression) -> object:
    """An expression as a sum of products with signs: equal shapes mean equal whatever the
    numbers are."""
    if isinstance(found, int):
        return found
    if found.operator in "+-":
        terms = []
        waiting = [(found, 1)]
        while waiting:
            one, sign = waiting.pop()
            if not isinstance(one, int) and one.operator in "+-":
                waiting.append((one.left, sign))
                waiting.append((one.right, -sign if one.operator == "-" else sign))
            else:
                terms.append((sign, repr(shape(one))))
        return "sum", sorted(terms)
    factors = []
    waiting = [(found, 1)]
    while waiting:
        one, sign = waiting.pop()
        if not isinstance(one, int) and one.operator in "*/":
            waiting.append((one.left, sign))
            waiting.append((one.right, -sign if one.operator == "/" else sign))
        else:
            factors.append((sign, repr(shape(one))))
    return "product", sorted(factors)


@quick
@given(st.text(alphabet="0123456789+-*/() ", max_size=40))
def test_any_mess_of_its_characters_is_read_or_refused(text: str):
    try:
        found = parse(text)
    except NotAnExpressionError:
        return
    assert value_of(found) == python_value(text)


@quick
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str):
    with contextlib.suppress(NotAnExpressionError):
        parse(ascii_operators(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "+",
        "-5",
        "+5",
        "5-",
        "3 - -2",
        "3 + +2",
        "2**3",
        "7//2",
        "2^3",
        "7%2",
        "5!",
        "(3)(4)",
        "3(4)",
        "(3)4",
        "3 4",
        "1 000",
        "007",
        "00",
        "1.0",
        "1.",
        ".5",
        "1_000",
        "1,000",
        "1e3",
        "0x10",
        "4２",
        "٤٢",
        "²",
        "x",
        "()",
        "(",
        ")",
        "(3",
        "3)",
        ")3(",
        "3 + (4",
        "1234567",
        "3 + 4; 5",
        "3 + 4 # 5",
        "3 ++ 4",
        "3 */ 4",
        "3 = 3",
        "__import__('os')",
        "3 +\u200b4",
        "(" * (DEEPEST + 1) + "1" + ")" * (DEEPEST + 1),
        "(" * 100_000,
        "1+" * 100_000 + "1",
        "9" * 100_000,
    ],
)
def test_what_is_no_expression(text: str):
    with pytest.raises(NotAnExpressionError):
        parse(text)


@pytest.mark.parametrize("text", ["1 / 0", "1 / (2 - 2)", "0 / 0", "(1 / 3) / (1 - 1)"])
def test_division_by_zero_is_no_value(text: str):
    with pytest.raises(NotAnExpressionError, match="zero"):
        parse(text)


def test_bounds_are_reached_exactly():
    deepest = "(" * DEEPEST + "1" + ")" * DEEPEST
    assert parse(deepest) == 1
    longest = "+".join(["1"] * (LONGEST // 2))
    assert value_of(parse(longest)) == LONGEST // 2
    assert len(list(operations(parse(longest)))) == LONGEST // 2 - 1
    assert parse("999999") == 999999


@pytest.mark.parametrize(
    "text",
    [
        "（8 － 2）× 3 ÷ 6 ＋ 1",
        "(8 − 2) · 3 ／ 6 + 1",
        "(8 – 2) ∗ 3 / 6 + 1",
        r"(8 - 2) \times 3 \div 6 + 1",
        r"(8-2)\cdot3\div6+1",
    ],
)
def test_other_signs_for_the_operators(text: str):
    assert value_of(parse(ascii_operators(text))) == 4


def test_digits_of_other_scripts_and_other_commands_stay():
    assert ascii_operators("４２") == "４２"
    assert ascii_operators(r"\timesx \divide") == r"\timesx \divide"


def test_operations_can_be_carried_out_in_their_order():
    found = parse("(8 - 2) * 3 + 10 / (1 + 4)")
    assert [write_calculation(one) for one in operations(found)] == [
        "8 - 2 = 6",
        "6 * 3 = 18",
        "1 + 4 = 5",
        "10 / 5 = 2",
        "18 + 2 = 20",
    ]


def test_a_calculation_with_fractions_and_with_another_result():
    third = operate("-", 3, operate("/", 8, 3))
    assert write(operate("/", 8, third)) == "8 / (3 - 8 / 3)"
    assert write_calculation(operate("/", 8, third)) == "8 / (1/3) = 24"
    assert write_calculation(operate("+", 2, 3), 6) == "2 + 3 = 6"


def test_whole_numbers_stay_whole():
    assert isinstance(value_of(parse("6 / 3")), int)
    assert isinstance(value_of(parse("1 / 3 * 3")), int)
    assert isinstance(value_of(parse("1 / 3 + 2 / 3")), int)
    assert write_calculation(operate("*", operate("/", 1, 3), 3)) == "(1/3) * 3 = 1"
