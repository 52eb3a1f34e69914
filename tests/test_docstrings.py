"""Whoever calls a function of three arguments reads what they are."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "sedd_jax"
FEW = 2  # arguments that a name and a sentence explain


def public_functions(tree):
    """The public functions of a module, and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node)
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def undescribed(function):
    """Whether a docstring leaves out the arguments of a function that has many."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [each for each in (arguments.vararg, arguments.kwarg) if each]
    count = sum(each.arg not in ("self", "cls") for each in named)
    docstring = ast.get_docstring(function)
    return count > FEW and docstring is not None and "Args:" not in docstring


def test_functions_of_three_arguments_say_what_they_are():
    found = [
        f"{path.relative_to(PACKAGE)}:{function.lineno} {function.name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for function in public_functions(ast.parse(path.read_text()))
        if undescribed(function)
    ]
    assert found == []


def test_one_that_leaves_them_out_is_found():
    first = "def f(a, b, c):\n    '''Returns a.'''"
    second = "class A:\n    def f(self, a, b, *c):\n        '''Returns a.\n\n        Args:\n'''"
    third = "class A:\n    def f(self, a, *, b):\n        '''Returns a.'''"
    cases = [next(public_functions(ast.parse(text))) for text in (first, second, third)]
    assert [undescribed(function) for function in cases] == [True, False, False]
