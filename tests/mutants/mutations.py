"""The mutants of a module: copies of it that differ in one place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import unified_diff
from functools import cached_property
from hashlib import sha256

import libcst as cst
from libcst import matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# What does nothing when the program runs, or is read by people alone: their words may change.
_SKIPPED = (
    m.Annotation()
    | m.Decorator()
    | m.Import()
    | m.ImportFrom()
    | m.Raise()
    | m.Assign(targets=[m.AssignTarget(m.Name("__slots__"))])
    | m.Expr(m.SimpleString())
    | m.Call(m.Name("Fact"))
    | m.Call(m.Attribute(m.Name("_log")))
    | m.Call(m.Attribute(attr=m.Name("log_failure_once")))
)


def _without_call(node: cst.Expr) -> Iterable[cst.Pass]:
    """A statement that calls something does nothing."""
    if m.matches(node.value, m.Call() | m.Await(m.Call())):
        yield cst.Pass()


def _one_operand(node: cst.BooleanOperation) -> Iterable[cst.BaseExpression]:
    """One of two conditions is forgotten."""
    yield from (node.left, node.right)


def _negated(node: cst.If) -> Iterable[cst.If]:
    """An ``if`` takes the other way."""
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


# Those of mutmut, without its way to run them: it takes functions apart, and neither signals nor
# frames, slots nor memory are then as they are in the package.
_OPERATORS = [
    *mutation_operators,
    (cst.Expr, _without_call),
    (cst.BooleanOperation, _one_operand),
    (cst.If, _negated),
]


@dataclass(frozen=True)
class Mutant:
    """One change of one module, ``file`` within the package."""

    file: str
    line: int
    original: str
    module: cst.Module
    node: cst.CSTNode
    mutated: cst.CSTNode

    def rank(self, seed: int) -> str:
        """A random order that a change elsewhere does not alter."""
        texts = [self.module.code_for_node(each) for each in (self.node, self.mutated)]
        around = self.original.splitlines()[self.line - 1]
        return sha256(repr((seed, self.file, around, *texts)).encode()).hexdigest()

    @cached_property
    def code(self) -> str:
        changed = self.module.deep_replace(self.node, self.mutated)
        assert isinstance(changed, cst.Module)
        return changed.code

    @cached_property
    def change(self) -> tuple[str, str]:
        """The lines that differ, before and after."""
        texts = (self.original.splitlines(), self.code.splitlines())
        # Without the two lines that name the files.
        lines = list(unified_diff(*texts, n=0, lineterm=""))[2:]
        old, new = (
            "\n".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
        )
        return old, new


def mutants_of(file: str, code: str) -> Iterator[Mutant]:
    """All of one module that are still Python."""
    wrapper = MetadataWrapper(cst.parse_module(code), unsafe_skip_copy=True)
    positions = wrapper.resolve(PositionProvider)
    waiting: list[cst.CSTNode] = [wrapper.module]
    while waiting:
        node = waiting.pop()
        if m.matches(node, _SKIPPED):
            continue
        waiting += node.children
        for kind, operator in _OPERATORS:
            if isinstance(node, kind):
                line = positions[node].start.line if node in positions else 1
                for mutated in operator(node):
                    yield Mutant(file, line, code, wrapper.module, node, mutated)
