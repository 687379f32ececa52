# SPDX-License-Identifier: Apache-2.0
"""Expands a xacro file in a process of its own: ``python -P expand_xacro.py FILE [COMMAND]``, to the standard output.

Expressions of a xacro file are Python, and xacro lets some of them run whatever they like. Here they get numbers, texts
and lists alone: no attribute that leads to the interpreter, no function that opens, imports or executes. Memory, time
and output are bounded. Where xacro is another interpreter's (``COMMAND``), the bounds count and the rest is left to it.
"""

import ast
import builtins
import os
import resource
import sys
from collections.abc import Mapping

MEMORY, SECONDS, OUTPUT = 2_000_000_000, 60, 8_000_000
FUNCTIONS = (
    "abs", "all", "any", "bool", "dict", "float", "int", "len", "list", "map", "max", "min", "range", "round", "sorted",
    "str", "sum", "tuple", "zip",
)  # fmt: skip
WITHHELD = ("type", "vars")  # of xacro's own, by which every class is reached
FRAMES = ("gi_", "cr_", "ag_", "f_", "tb_", "co_", "func_")  # attributes that lead from a generator to all else


def check(expression: str) -> None:
    """Refuse an expression with an attribute that leads beyond its value.

    Raises:
        ValueError: naming it.
    """
    for part in ast.walk(ast.parse(expression.strip(), mode="eval")):
        name = part.attr if isinstance(part, ast.Attribute) else part.id if isinstance(part, ast.Name) else ""
        hidden = name.startswith("_") if isinstance(part, ast.Attribute) else name.startswith("__")
        if hidden or (isinstance(part, ast.Attribute) and (name == "mro" or name.startswith(FRAMES))):
            raise ValueError(
                f"the expression {expression.strip()[:80]!r} uses {name}, which is not allowed in a robot description"
            )


def main() -> object:
    """Expand the file that the command line names."""
    for what, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_FSIZE, OUTPUT)):
        resource.setrlimit(what, (most, most))
    file, *command = sys.argv[1:]
    if command:
        os.execv(command[0], [command[0], file])
    import xacro  # type: ignore[import-untyped]
    from xacro import substitution_args

    evaluate = xacro.safe_eval

    def checked(expression: str, *tables: object) -> object:
        check(expression)
        return evaluate(expression, *tables)

    def bounded(expression: str, _: object, names: Mapping[str, object]) -> object:
        check(expression)
        return eval(expression, {"__builtins__": {name: getattr(builtins, name) for name in FUNCTIONS}}, names)

    xacro.safe_eval = checked
    substitution_args.eval = bounded  # of $(eval …), which has every builtin otherwise
    for table in (xacro._global_symbols, xacro._global_symbols["python"]):
        for name in WITHHELD:
            table.pop(name, None)
    return xacro.main()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
