"""Small faults in Python source, one at a time, like typical programming errors.

A mutant is one change of one node of the syntax tree. Docstrings, annotations, imports, decorators and message texts are
left alone. Beside the usual operators there are two for this project: ``side`` swaps the chosen and rejected completion,
and ``axis`` reduces over pairs instead of references.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_COMPARISON: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
_FUNCTIONS = {
    "min": "max",
    "max": "min",
    "argmax": "argmin",
    "argmin": "argmax",
    "any": "all",
    "all": "any",
    "sum": "mean",
    "mean": "sum",
    "ones": "zeros",
    "ones_like": "zeros_like",
    "exp": "log",
    "log": "exp",
    "startswith": "endswith",
    "harmonic": "arithmetic",
    "arithmetic": "geometric",
    "geometric": "harmonic",
    "adaptive": "adaptive_official",
    "adaptive_official": "adaptive",
    "discrimination": "accuracy",
    "accuracy": "discrimination",
    "successes": "failures",
    "failures": "successes",
    "_log": "_logsumexp",
    "temper": "lift",
}
# Calls of one argument that keep its shape and type: dropping such a call is a fault that nothing else shows.
_DROPPED = {"abs", "square", "sign", "isfinite", "relu", "exp", "log", "logsigmoid", "detach", "double", "copy"}
# Their arguments are messages, or the order of their arguments does not matter.
_TEXTS = {"_one_of", "_number"}
_UNORDERED = {"isinstance", "isclose", "zip", "promote_types"}
# zip(strict=True) guards against what cannot happen after shapes were checked.
_GUARDS = {"strict", "stacklevel"}


@dataclass(frozen=True)
class Mutant:
    """One change to one file."""

    file: str
    """Relative to the repository."""
    line: int
    end_line: int
    """Of the statement that holds the change; those of a whole module where it is run once, at import."""
    operator: str
    key: str
    """What names it in the list of equivalent mutants: no line number, so that it survives edits elsewhere."""
    path: tuple[tuple[str, int | None], ...] = field(repr=False)
    """From the module to the node: fields, and the place in them where they are lists."""
    replacement: ast.AST = field(repr=False)

    def apply(self, tree: ast.Module) -> ast.Module:
        """The tree with the change; the given tree is changed too."""
        *way, (name, at) = self.path
        node: ast.AST = tree
        for step, place in way:
            value = getattr(node, step)
            node = value if place is None else value[place]
        if at is None:
            setattr(node, name, self.replacement)
        else:
            getattr(node, name)[at] = self.replacement
        return ast.fix_missing_locations(tree)


def mutants(root: Path, file: str) -> list[Mutant]:
    """Every mutant of one file, in line order."""
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for place in _places(tree, (), (), 0):
        for operator, replacement in _changes(place.node, place):
            before, after = (" ".join(ast.unparse(node).split()) for node in (place.node, replacement))
            if before == after:
                continue
            key = f"{file}: {'.'.join(place.scope) or 'module'}: {operator}: {_short(before)} -> {_short(after)}"
            seen[key] += 1
            key = f"{key} ({seen[key]})" if seen[key] > 1 else key
            found.append(Mutant(file, *place.lines, operator, key, place.path, replacement))
    return found


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]} … {text[-38:]}"


@dataclass(frozen=True)
class _Place:
    node: ast.AST
    path: tuple[tuple[str, int | None], ...]
    scope: tuple[str, ...]
    lines: tuple[int, int]
    parent: ast.AST | None
    name: str


def _places(
    node: ast.AST,
    path: tuple[tuple[str, int | None], ...],
    scope: tuple[str, ...],
    depth: int,
    lines: tuple[int, int] = (0, 0),
    parent: ast.AST | None = None,
    name: str = "",
) -> Iterator[_Place]:
    """Nodes that may be changed, outermost first. ``depth`` counts enclosing functions: at 0, code runs on import."""
    if isinstance(node, ast.stmt) and depth:
        compound = isinstance(node, (ast.If, ast.For, ast.While, ast.With, ast.FunctionDef, ast.Try))
        end = node.lineno if compound else node.end_lineno or node.lineno
        if isinstance(node, (ast.If, ast.While)):
            end = node.test.end_lineno or end
        elif isinstance(node, ast.For):
            end = node.iter.end_lineno or end
        lines = node.lineno, end
    if path:
        yield _Place(node, path, scope, lines, parent, name)
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return
    inner_depth, inner = depth, scope
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        inner = (*scope, node.name)
        inner_depth = depth + isinstance(node, ast.FunctionDef)
    for step, value in ast.iter_fields(node):
        if step in {
            "annotation",
            "returns",
            "decorator_list",
            "bases",
            "ctx",
            "op",
            "ops",
            "targets",
            "target",
            "cause",
        }:
            continue
        if isinstance(node, ast.Raise) or (
            isinstance(node, ast.Call) and _name(node.func) in _TEXTS and step == "args"
        ):
            continue
        # Default arguments are evaluated where the function is defined: on import, or whenever the outer function runs.
        deeper = inner_depth if step == "body" else depth
        below = lines if not isinstance(node, ast.FunctionDef) or step == "body" else (0, 0)
        for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_left_alone(child):
                yield from _places(child, (*path, (step, at)), inner, deeper, below, node, step)


def _is_left_alone(node: ast.AST) -> bool:
    """A docstring, or the list of a package's names."""
    if isinstance(node, ast.Assign) and _name(node.targets[0]) == "__all__":
        return True
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _changes(node: ast.AST, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.expr):
        yield from _condition(node, place)
    if isinstance(node, ast.BinOp):
        yield from _binary(node)
    elif isinstance(node, ast.UnaryOp):
        yield "unary", node.operand
    elif isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            for other in _COMPARISON[type(operator)]:
                changed = copy.deepcopy(node)
                changed.ops[at] = other()
                yield "comparison", changed
    elif isinstance(node, ast.BoolOp):
        changed_bool = copy.deepcopy(node)
        changed_bool.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "boolean", changed_bool
        for value in node.values:
            rest = [other for other in node.values if other is not value]
            yield "boolean", rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.Constant):
        yield from _constant(node, place)
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.Slice):
        yield from _slice(node)
    elif isinstance(node, (ast.Tuple, ast.List)):
        yield from _sequence(node, place)
    elif isinstance(node, ast.Dict):
        for at in range(len(node.keys)):
            yield "element", ast.Dict(node.keys[:at] + node.keys[at + 1 :], node.values[:at] + node.values[at + 1 :])
    elif isinstance(node, (ast.Name, ast.Attribute)):
        yield from _named(node)
    elif isinstance(node, (ast.For, ast.comprehension)):
        changed_loop = copy.deepcopy(node)
        changed_loop.iter = ast.Tuple([], ast.Load())
        yield "loop", changed_loop
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.Raise)):
        yield "statement", ast.Pass()
    elif isinstance(node, ast.With):
        yield "statement", ast.If(ast.Constant(True), node.body, [])


def _condition(node: ast.expr, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    if place.name == "test" or (isinstance(place.parent, ast.comprehension) and place.name == "ifs"):
        for value in (True, False):
            if not (isinstance(node, ast.Constant) and node.value is value):
                yield "condition", ast.Constant(value)


def _binary(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    other = _ARITHMETIC.get(type(node.op))
    if other is not None:
        yield "arithmetic", ast.BinOp(node.left, other(), node.right)
    yield "operand", node.left
    yield "operand", node.right
    if isinstance(node.op, (ast.Sub, ast.Div, ast.Pow)):
        yield "operand order", ast.BinOp(node.right, node.op, node.left)


def _constant(node: ast.Constant, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    value = node.value
    if isinstance(place.parent, ast.keyword) and place.parent.arg in _GUARDS:
        return
    if isinstance(value, bool):
        yield "constant", ast.Constant(not value)
    elif isinstance(value, (int, float)):
        kind = "axis" if isinstance(place.parent, ast.keyword) and place.parent.arg in {"axis", "dim"} else "constant"
        values = (
            (0, value + 1, value - 1) if isinstance(value, int) else (0.0, value + 1, value - 1, value * 2, value / 2)
        )
        for other in dict.fromkeys(values):
            if other != value:
                yield kind, ast.Constant(other)
    elif isinstance(value, str) and " " not in value and not value.startswith("method."):
        yield "string", ast.Constant(f"{value}~")


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = _name(node.func)
    if name in _TEXTS:
        return
    if name in _DROPPED:
        if len(node.args) == 1:
            yield "call", node.args[0]
        elif not node.args and isinstance(node.func, ast.Attribute):
            yield "call", node.func.value
    if name not in _UNORDERED and not any(isinstance(arg, ast.Starred) for arg in node.args):
        for at in range(len(node.args) - 1):
            yield "argument order", ast.Call(node.func, _swapped(node.args, at), node.keywords)
    for at, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in _GUARDS:
            yield "argument", ast.Call(node.func, node.args, node.keywords[:at] + node.keywords[at + 1 :])


def _slice(node: ast.Slice) -> Iterator[tuple[str, ast.AST]]:
    for side in ("lower", "upper"):
        bound = getattr(node, side)
        if bound is None:
            continue
        for other in (None, ast.BinOp(bound, ast.Add(), ast.Constant(1)), ast.BinOp(bound, ast.Sub(), ast.Constant(1))):
            if other is None or not isinstance(bound, ast.Constant):
                changed = copy.copy(node)
                setattr(changed, side, other)
                yield "slice", changed
    if node.step is not None:
        yield "slice", ast.Slice(node.lower, node.upper, None)


def _sequence(node: ast.Tuple | ast.List, place: _Place) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(place.parent, ast.Subscript) or not isinstance(node.ctx, ast.Load):
        return
    kind, items = type(node), node.elts
    for at in range(len(items) - 1):
        yield "element order", kind(_swapped(items, at), ast.Load())
    # A missing element of a result or shape would be noticed at once; one of a list of names may not be.
    if all(isinstance(item, (ast.Constant, ast.Starred)) for item in items):
        for at in range(len(items)):
            yield "element", kind(items[:at] + items[at + 1 :], ast.Load())


def _named(node: ast.Name | ast.Attribute) -> Iterator[tuple[str, ast.AST]]:
    if not isinstance(node.ctx, ast.Load):
        return
    name = _name(node)
    other = None
    if "chosen" in name:
        other, kind = name.replace("chosen", "rejected"), "side"
    elif "rejected" in name:
        other, kind = name.replace("rejected", "chosen"), "side"
    elif name in _FUNCTIONS:
        other, kind = _FUNCTIONS[name], "function"
    if other is not None:
        changed = copy.copy(node)
        setattr(changed, "id" if isinstance(node, ast.Name) else "attr", other)
        yield kind, changed


def _swapped(items: Sequence[ast.expr], at: int) -> list[ast.expr]:
    return [*items[:at], items[at + 1], items[at], *items[at + 2 :]]
