"""Expressions of whole numbers with + - * / and brackets: read, valued, written.

What is read is a model's answer, hence hostile: the parser is one loop over the tokens with two
stacks, bounded in length, nesting and digits, and knows nothing but the four operators. Values are
exact: whole numbers as long as they are whole, else `fractions.Fraction`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from random import Random
from typing import Final, NamedTuple, TypeAlias

LONGEST: Final = 200
"""Characters of an expression; a longer text is none."""
DEEPEST: Final = 16
"""Brackets inside one another."""
MOST_DIGITS: Final = 6
"""Digits of one number."""

Number: TypeAlias = int | Fraction


class NotAnExpressionError(ValueError):
    """A text is no expression, or its value is undefined; the message says why in a few words."""


class Operation(NamedTuple):
    """Two expressions and what is done with them. `operate` makes one: it knows the value."""

    operator: str
    left: Expression
    right: Expression
    value: Number


Expression: TypeAlias = int | Operation

_PRECEDENCE: Final = {"+": 1, "-": 1, "*": 2, "/": 2}
# Anything else than a number, an operator or a bracket is a token too, which the parser refuses.
# A number too long or with a leading zero falls apart into two, which it refuses as well.
_TOKEN: Final = re.compile(rf"0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}}|\S")
_PLAIN: Final = str.maketrans("×·⋅∗＊÷／∕−–－＋（）＝", "*****///---+()=")
_LATEX: Final = {r"\times": "*", r"\cdot": "*", r"\div": "/"}
_LATEX_OPERATOR: Final = re.compile(r"\\(?:times|cdot|div)(?![a-zA-Z])")


def ascii_operators(text: str) -> str:
    """``text`` with the operators × ÷ − · ∗ ／, full-width brackets, signs and LaTeX's
    ``\\times``, ``\\cdot``, ``\\div`` in ASCII. Digits stay as they are."""
    if not text.isascii():
        text = text.translate(_PLAIN)
    if "\\" in text:
        text = _LATEX_OPERATOR.sub(lambda found: _LATEX[found[0]], text)
    return text


def value_of(expression: Expression) -> Number:
    """What an expression comes to."""
    return expression if isinstance(expression, int) else expression.value


def operate(operator: str, left: Expression, right: Expression) -> Operation:
    """``left operator right``; raises NotAnExpressionError for a division by zero."""
    a = left if isinstance(left, int) else left.value
    b = right if isinstance(right, int) else right.value
    result: Number
    if operator == "+":
        result = a + b
    elif operator == "-":
        result = a - b
    elif operator == "*":
        result = a * b
    elif not b:
        raise NotAnExpressionError("divides by zero")
    else:
        result = Fraction(a, b) if a % b else a // b
    if not isinstance(result, int) and result.denominator == 1:
        result = result.numerator
    return Operation(operator, left, right, result)


def parse(text: str) -> Expression:
    """The one expression that ``text`` is (after `ascii_operators`); raises NotAnExpressionError.

    No signs, no implied multiplication, no decimal points, no powers. Linear in the length.
    """
    if len(text) > LONGEST:
        raise NotAnExpressionError("too long")
    values: list[Expression] = []
    pending: list[str] = []
    number_next, depth = True, 0
    for token in _TOKEN.findall(text):
        if number_next:
            if "0" <= token < ":":  # begins with a digit
                values.append(int(token))
                number_next = False
            elif token == "(" and depth < DEEPEST:
                pending.append(token)
                depth += 1
            else:
                raise NotAnExpressionError("not one expression")
        elif binding := _PRECEDENCE.get(token):
            if pending:
                _reduce(values, pending, binding)
            pending.append(token)
            number_next = True
        elif token == ")" and depth:
            _reduce(values, pending, 1)
            pending.pop()
            depth -= 1
        else:
            raise NotAnExpressionError("not one expression")
    if number_next or depth:
        raise NotAnExpressionError("not one expression")
    _reduce(values, pending, 1)
    return values[0]


def _reduce(values: list[Expression], pending: list[str], binding: int) -> None:
    """Carry out the pending operators, back to a bracket, that bind as strongly or stronger."""
    while pending and _PRECEDENCE.get(pending[-1], 0) >= binding:
        right = values.pop()
        values[-1] = operate(pending.pop(), values[-1], right)


def operands(expression: Expression) -> list[int]:
    """Its numbers from left to right."""
    found: list[int] = []
    waiting = [expression]
    while waiting:
        one = waiting.pop()
        if isinstance(one, int):
            found.append(one)
        else:
            _, left, right, _ = one
            waiting += (right, left)
    return found


def operations(expression: Expression) -> Iterator[Operation]:
    """Its operations in an order to carry them out in: inner ones first, from the left."""
    if isinstance(expression, Operation):
        yield from operations(expression.left)
        yield from operations(expression.right)
        yield expression


def write(expression: Expression) -> str:
    """In ASCII, spaces around operators, brackets only where the value needs them."""
    if isinstance(expression, int):
        return str(expression)
    operator, left, right, _ = expression
    binding = _PRECEDENCE[operator]
    left_text = write(left)
    if not isinstance(left, int) and _PRECEDENCE[left.operator] < binding:
        left_text = f"({left_text})"
    right_text = write(right)
    if not isinstance(right, int):
        inner = _PRECEDENCE[right.operator]
        if inner < binding or (inner == binding and operator in "-/"):
            right_text = f"({right_text})"
    return f"{left_text} {operator} {right_text}"


def standard(expression: Expression) -> str:
    """The same text for all expressions that differ only in the order of terms or of factors or
    in brackets that do not matter: "2 + 3 * 5 - 4" and "5 * 3 - 4 + 2" give "-4+2+3*5"."""
    if isinstance(expression, int):
        return str(expression)
    direct, inverse = "+-" if expression.operator in "+-" else "*/"
    parts = []
    waiting: list[tuple[Expression, bool]] = [(expression, False)]
    while waiting:
        one, turned = waiting.pop()
        if isinstance(one, int):
            text = str(one)
        else:
            operator, left, right, _ = one
            if operator in (direct, inverse):
                waiting.append((left, turned))
                waiting.append((right, turned ^ (operator == inverse)))
                continue
            text = standard(one) if direct == "+" else f"({standard(one)})"
        parts.append((inverse if turned else direct) + text)
    parts.sort()
    return "".join(parts) if direct == "+" else "".join(parts).removeprefix("*")


def between(rng: Random, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``, drawn evenly (`Random.randint` takes three times as
    long)."""
    return low + int(rng.random() * (high - low + 1))


def miscalculated(value: int, rng: Random) -> int:
    """What a person who errs takes a whole number for: one near it, above 0 unless it is not."""
    offsets = (-10, -2, -1, 1, 2, 10) if value > 10 else (1, 2, 10)
    return value + rng.choice(offsets)


def write_number(number: Number) -> str:
    """A number as an operand: a fraction or a negative one in brackets, "(8/3)", "(-2)"."""
    return str(number) if isinstance(number, int) and number >= 0 else f"({number})"


def write_calculation(operation: Operation, result: Number | None = None) -> str:
    """ "55 - 36 = 19": the operation on the values of its two sides. ``result`` replaces its value
    (for a thought that miscalculates)."""
    left, right = write_number(value_of(operation.left)), write_number(value_of(operation.right))
    shown = operation.value if result is None else result
    return f"{left} {operation.operator} {right} = {shown}"
