"""Wrong lines to plant: small changes of the syntax tree, one at a time, of which a good suite notices every one.

Strings, annotations, docstrings and decorators stay as they are: what they say is judged by reading.
"""

import ast
import copy
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PACKAGES = ("lora_variants", "experiments/training", "experiments/studies/protocol", "experiments/studies/search",
            "analysis/stats")  # fmt: skip
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "argmin": "argmax", "argmax": "argmin",
         "minimum": "maximum", "maximum": "minimum", "zeros": "ones", "ones": "zeros", "zeros_like": "ones_like",
         "ones_like": "zeros_like", "zeros_": "ones_", "mean": "sum", "floor": "ceil", "ceil": "floor",
         "exp": "log1p", "cumsum": "cumprod"}  # fmt: skip
UNSEEN = {
    "strict",
    "device",
    "description",
}  # keywords that change nothing: of a correct zip, without a GPU, for readers


@dataclass(frozen=True)
class Mutant:
    """One changed node of a file: `number` counts the changes that the file allows, in the order of its tree."""

    package: str
    path: str
    number: int
    line: int
    last_line: int  # of the smallest statement around the node
    was: str
    now: str

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:12]


def mutants_of(package: str, path: str, source: str) -> list[Mutant]:
    """All changes that a file allows."""
    found = []
    for number, (statement, node, new) in enumerate(_changes(ast.parse(source))):
        was, now = _shown(node), _shown(new)
        found.append(Mutant(package, path, number, statement.lineno, _last_line(statement), was, now))
    return found


def mutated(source: str, number: int) -> str:
    """The file with the change of that number."""
    tree = ast.parse(source)
    for position, (_, node, new) in enumerate(_changes(tree)):
        if position == number:
            return ast.unparse(ast.fix_missing_locations(_Replaced(node, new).visit(tree)))
    raise IndexError(f"a change {number} of a file that allows fewer")


def sampled(root: Path, packages: Sequence[str], size: int, seed: int) -> list[Mutant]:
    """`size` mutants of each package, drawn without replacement, one of each package in turn."""
    drawn = []
    for package in packages:
        files = sorted((root / package).rglob("*.py"))
        pool = [
            mutant
            for file in files
            for mutant in mutants_of(package, str(file.relative_to(root)), file.read_text(encoding="utf-8"))
        ]
        drawn.append(random.Random(f"{seed} {package}").sample(pool, min(size, len(pool))))
    return [mutant for turn in range(size) for of_package in drawn for mutant in of_package[turn : turn + 1]]


class _Replaced(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _changes(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.AST, ast.AST]]:
    """(smallest statement around it, node, what to put there), in the order of the tree."""

    def walk(node: ast.AST, statement: ast.stmt) -> Iterator[tuple[ast.stmt, ast.AST, ast.AST]]:
        statement = node if isinstance(node, ast.stmt) else statement
        for new in _instead_of(node):
            yield statement, node, new
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases", "format_spec", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child, statement)

    for statement in tree.body:
        yield from walk(statement, statement)


def _instead_of(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Compare(ops=[operator]) | ast.BinOp(op=operator) | ast.BoolOp(op=operator):
            if (other := OPERATORS.get(type(operator))) is not None and not _of_types(node):
                new = copy.deepcopy(node)
                if isinstance(new, ast.Compare):
                    new.ops = [other()]  # type: ignore[list-item]
                else:
                    new.op = other()  # type: ignore[assignment]
                yield new
        case ast.Compare(ops=[first, *_]) if type(first) in OPERATORS:
            new = copy.deepcopy(node)
            new.ops[0] = OPERATORS[type(first)]()  # type: ignore[assignment]
            yield new
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            new = copy.deepcopy(node)
            new.op = OPERATORS[type(operator)]()  # type: ignore[assignment]
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Name(id=name, ctx=ast.Load()) if name in NAMES:
            yield ast.Name(NAMES[name], ast.Load())
        case ast.Attribute(value=value, attr=name, ctx=ast.Load()) if name in NAMES:
            yield ast.Attribute(value, NAMES[name], ast.Load())
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield ast.Pass()
        case ast.If(test=test) | ast.IfExp(test=test) if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
            new = copy.copy(node)
            new.test = ast.UnaryOp(ast.Not(), test)
            yield new
    if isinstance(node, ast.Call):
        for position, keyword in enumerate(node.keywords):
            if keyword.arg not in {None, *UNSEEN} and not isinstance(keyword.value, ast.JoinedStr):
                new = copy.copy(node)
                new.keywords = node.keywords[:position] + node.keywords[position + 1 :]
                yield new


def _of_types(node: ast.AST) -> bool:
    """Whether it is a union of types, `A | None`, outside an annotation."""
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and (
        isinstance(node.right, ast.Constant) or ast.unparse(node.right)[:1].isupper() or ast.unparse(node.right) in
        ("str", "int", "float", "bool", "dict", "list", "tuple")
    )  # fmt: skip


def _shown(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else text[:97] + "..."


def _last_line(statement: ast.stmt) -> int:
    """Of its head alone, where it has a body."""
    body = getattr(statement, "body", None)
    return max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno or statement.lineno
