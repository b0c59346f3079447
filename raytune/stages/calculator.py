"""An example environment: a calculator that the policy calls by writing <calc>3*(4+5)</calc>.

Use it with `environment: raytune.stages.calculator:Calculator`, and let an answer's turn end at the stop string
</calc> besides the end of turn.
"""

import ast
import operator
import re
from collections.abc import Callable

from raytune.stages.environment import Reply
from raytune.stages.samples import Ids, Prompt

# The token that ends a call may reach beyond it: vocabularies have "><".
_CALL = re.compile(r"<calc>([^<]*)</calc>\s*(<?)\Z")
_BINARY: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_LONGEST = 64


class Calculator:
    """Answers each call with <result>...</result>; an answer that does not end with a call is the last.

    Args: max_calls: after so many calls the conversation ends.
    """

    def __init__(self, max_calls: int = 4) -> None:
        self._left = max_calls

    async def reset(self, prompt: Prompt) -> None:
        """Nothing of the prompt matters to it."""

    async def step(self, text: str, ids: Ids) -> Reply:
        call = _CALL.search(text)
        if call is None or self._left == 0:
            return Reply(done=True)
        self._left -= 1
        expression, begun = call.groups()
        return Reply(f"<result>{calculate(expression)}</result>".removeprefix(begun))


def calculate(expression: str) -> str:
    """The value of + - * / over numbers, as short as it can be written, or "error"."""
    if len(expression) > _LONGEST:
        return "error"
    try:
        return f"{_value(ast.parse(expression.strip(), mode='eval').body):g}"
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError):
        return "error"


def _value(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("only + - * / over numbers")
