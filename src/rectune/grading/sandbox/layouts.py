"""Running tests in any layout: bare assertions, `check(candidate)`, pytest-style functions and classes, unittest.

The same code runs the tests apart from the program, whose functions are then proxies (`peer.py`), and in one
process with it. A run counts the assertions that held; which of the program's parts was used, its caller knows.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import io
import itertools
import os
import re
import symtable
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

Namespace = dict[str, Any]
"""Names and their values, of a module or of the arguments of a call."""
OWN_NAMES = ("solution", "candidate", "main", "your_module", "submission", "answer", "module", "my_module",
             "program")  # fmt: skip
"""Modules that tests import the program from, where no module of that name can be found."""
_STANDS_FOR_PROGRAM = ("candidate", "func", "function", "fn", "f", "solution", "method")
_ASSERTS = re.compile(r"_*assert|raises$", re.IGNORECASE)
_HELD = "__assertion_held__"
_BUILTINS = frozenset(dir(builtins))
_PURE = {"__future__", "abc", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
         "fractions", "functools", "heapq", "itertools", "json", "math", "numbers", "numpy", "operator", "pytest",
         "random", "re", "statistics", "string", "typing", "unittest"}  # fmt: skip
"""Modules through which tests and program share nothing, unless by one of these names."""
_SHARING = {"__builtins__", "capsys", "cache_info", "eval", "exec", "globals", "id", "input", "mock", "monkeypatch",
            "open", "patch", "seed", "tmp_path", "vars"}  # fmt: skip
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_MAIN = ("__name__ == '__main__'", "'__main__' == __name__")


class Fault(Exception):
    """The prompt or the tests are at fault, or do not test anything: nothing is known about the program."""


class Tests:
    """The tests of one problem.

    Args:
        source: Their text.
        entry_point: The function under test, "" where that is not known.
        find: Returns what the program has under a name; NameError where it has none.
        from_program: Whether the program raised an exception.
        prompt: Describes the program.

    Raises:
        Fault: They are no program, or assert nothing by mistake.
    """

    def __init__(
        self,
        source: str,
        entry_point: str,
        find: Callable[[str], Any],
        from_program: Callable[[BaseException], bool],
        prompt: str = "",
    ) -> None:
        self._prompt = prompt
        self.entry_point, self._find, self._from_program = entry_point, find, from_program
        self.held, self.failed = 0, 0
        self._may_skip = "skip" in source.lower()
        try:
            self._tree = ast.parse(source)
            table = symtable.symtable(source, "tests.py", "exec")
        except (SyntaxError, ValueError) as error:
            line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
            words = f"{type(error).__name__}: {getattr(error, 'msg', error)}{line}"
            raise Fault(f"the tests are no Python: {words}") from None
        for node in ast.walk(self._tree):
            if _always_holds(node):
                where = f"line {getattr(node, 'lineno', None)} of the tests"
                raise Fault(f"{where} asserts a tuple, or has the expected value as its message")
        self.wanted = free_names(table)
        self.are_pure = _are_pure(self._tree) and not bound_names(table) & _BUILTINS
        body = self._tree.body
        self._tree.body = []
        for statement in body:
            if isinstance(statement, ast.If) and ast.unparse(statement.test) in _MAIN:
                self._tree.body += statement.body
            else:
                self._tree.body.append(statement)
        self._explicit = {
            getattr(call.func, "id", "")
            for statement in self._tree.body
            if not isinstance(statement, (*_DEFINITIONS, ast.If))
            for call in ast.walk(statement)
            if isinstance(call, ast.Call)
        }
        self._called = {  # or handed to something that calls it, or used as a class
            getattr(used, "id", "")
            for node in ast.walk(self._tree)
            if isinstance(node, (ast.Call, ast.Attribute, ast.ExceptHandler))
            for used in (*getattr(node, "args", ()), *vars(node).values())
        }
        self._suites_ran = False
        self._names: Namespace = {}

    def run(self, module: types.ModuleType) -> None:
        """Run them in the namespace of `module`; raises what a test raises, or Fault where none can be run."""
        self._names = names = vars(module)
        names.update(__name__="tests", __file__="tests.py")
        sys.modules["tests"] = module
        before = set(names)
        self._give_modules()
        self._bind(names)
        self._adapt_frameworks()
        names[_HELD] = self._hold
        tree = ast.fix_missing_locations(_Counting().visit(self._tree))
        try:
            exec(compile(tree, "tests.py", "exec", dont_inherit=True), names)
        except SystemExit as end:
            file = os.path.basename(_trace(end)[-1][0])
            left = file in ("tests.py", "_sitebuiltins.py") and not self._from_program(end)
            if not left or end.code not in (None, 0, False):
                raise
        before -= {statement.name for statement in self._tree.body if isinstance(statement, _DEFINITIONS)}
        for test in self._collect({name: value for name, value in names.items() if name not in before}):
            self._run_one(test)

    def is_at_fault(self, error: BaseException, *, called: bool) -> bool:
        """Whether the tests are to blame for `error`, which ended them, and not the program.

        Args:
            called: Whether they had called the program by then.
        """
        if isinstance(error, Fault):
            return True
        if self._from_program(error) or (isinstance(error, (SystemExit, AssertionError)) and called):
            return False
        if isinstance(error, NameError):  # a built-in was there: the program has removed it
            return not (error.name in _BUILTINS or self._is_asked_for(error.name))
        if line_of(error) is None:  # not even raised in the tests: the program has broken what runs them
            return False
        if isinstance(error, ImportError):
            return error.name not in (*OWN_NAMES, "tests")
        if isinstance(error, AttributeError) and isinstance(error.obj, types.ModuleType):
            return error.obj.__name__ != "solution"
        return not called

    def blames(self, error: BaseException) -> bool:
        """Whether `error` shows that the program is wrong, if only data went between it and the tests."""
        if self._from_program(error):  # it may miss what the tests define, or have run out of room here
            return self.are_pure and not isinstance(
                error, (NameError, ImportError, RecursionError, MemoryError)
            )
        return self.are_pure and type(error) is AssertionError

    def _is_asked_for(self, name: str | None) -> bool:
        """Whether the program was to define `name`, and not a helper of the tests that is missing or misspelt."""
        if not name or (
            name in (*sys.stdlib_module_names, "np", "pd", "pytest") and name != self.entry_point
        ):
            return False
        # `assert_equal(f(2), 4)`: a helper, called with what the program returns
        for node in ast.walk(self._tree):
            if _called(node) == name != self.entry_point:
                inner = {
                    getattr(call.func, "id", "") for call in ast.walk(node) if isinstance(call, ast.Call)
                }
                if (inner - {name}) & set(self.wanted):
                    return False
        if name == self.entry_point or re.search(rf"\b{name}\b", self._prompt):
            return True
        return name in self._called and name in self.wanted and not (self.entry_point and self._prompt)

    def _hold(self, condition: Any, *result: Any) -> Any:
        """Count whether an assertion holds, and return that, or the result of the call that asserts."""
        holds = bool(condition)
        self.held += holds
        self.failed += not holds
        return result[0] if result else holds

    def _bind(self, names: Namespace) -> None:
        """Names that the tests use without defining them are the program's."""
        wanted = [name for name in self.wanted if not hasattr(builtins, name)]
        if self.entry_point.isidentifier():
            wanted = list(dict.fromkeys([*wanted, self.entry_point]))
        # built-ins are replaced only where one is the function under test
        elif not wanted and not self.entry_point:
            wanted = self.wanted
        for name in wanted:
            if name in names and name != self.entry_point:  # a helper of the prompt's
                continue
            try:
                names[name] = self._find(name)
            except NameError:
                if name == "candidate" and self.entry_point and self._has(self.entry_point):
                    names[name] = self._find(self.entry_point)

    def _give_modules(self) -> None:
        """Let the tests import the program, under the name that they expect."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ImportFrom):
                if node.level:
                    node.level, node.module = 0, node.module or "solution"
                wanted = [alias.name for alias in node.names]
                if self._is_program(str(node.module), wanted):
                    kept = [alias for alias in node.names if alias.name != "*"]
                    node.names = kept or [ast.alias("__doc__")]  # what is used of all is given anyway
                    self._give(str(node.module))
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if self._is_program(alias.name, self._attributes_of(alias.asname or alias.name)):
                        self._give(alias.name)

    def _attributes_of(self, module: str) -> list[str]:
        return [
            node.attr
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == module
        ]

    def _is_program(self, module: str, names: list[str]) -> bool:
        root = module.partition(".")[0]
        if root in OWN_NAMES:
            return True
        try:
            found = importlib.import_module("importlib.util").find_spec(root)
        except (ImportError, ValueError):
            found = None
        if found is not None and found.origin != "namespace":
            real = importlib.import_module(module) if root in sys.stdlib_module_names else None
            return real is not None and any(
                not hasattr(real, name) and name != "*" and self._has(name) for name in names
            )
        return self.entry_point in names or any(map(self._has, names))

    def _has(self, name: str) -> bool:
        try:
            self._find(name)
        except NameError:
            return False
        return True

    def _give(self, module: str) -> None:
        path = ""
        for part in module.split("."):
            path = f"{path}.{part}".lstrip(".")
            sys.modules[path] = sys.modules["solution"]

    def _adapt_frameworks(self) -> None:
        """Let `unittest.main` and `pytest.main` do nothing, since the tests are found and run here."""
        names = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
        if "unittest" in names:
            unittest = importlib.import_module("unittest")
            unittest.main = lambda *_, **__: None  # type: ignore[attr-defined]
            unittest.TextTestRunner.run = lambda _, suite: self._run_suite(suite)
        if "pytest" in names:
            pytest: Any = importlib.import_module("pytest")
            pytest.main = lambda *_, **__: 0
            pytest.fixture = _fixture

    def _collect(self, defined: Namespace) -> Iterator[Callable[[], Any]]:
        """The tests that nothing has called yet."""
        cases = []
        for name, value in defined.items():
            if isinstance(value, type) and value.__module__ == "tests":
                if "unittest" in sys.modules and issubclass(value, sys.modules["unittest"].TestCase):
                    cases.append(value)
                elif name.startswith("Test"):
                    yield from self._methods(value)
            elif isinstance(value, types.FunctionType) and value.__module__ == "tests":
                is_test = re.match(r"_?(test|check|run_test|verify)", name) and name not in self._explicit
                if is_test and not hasattr(value, "is_fixture") and not self._is_helper(name):
                    yield from self._calls(value, value)
        if cases and not self._suites_ran:
            unittest = sys.modules["unittest"]
            loader = unittest.defaultTestLoader
            suite = unittest.TestSuite(loader.loadTestsFromTestCase(case) for case in cases)
            yield lambda: self._run_suite(suite)

    def _is_helper(self, name: str) -> bool:
        """Whether another function of the tests calls this one."""
        called = (getattr(node.func, "id", "") for node in ast.walk(self._tree) if isinstance(node, ast.Call))
        return name != "check" and not name.startswith("test") and name in called

    def _methods(self, kind: type) -> Iterator[Callable[[], Any]]:
        """The test methods of a pytest-style class, each on an instance of its own."""
        for name in [name for name in dir(kind) if name.startswith("test")]:
            function = getattr(kind, name)
            for call in self._calls(function, kind, bound=True):

                def test(call: Any = call, function: Any = function) -> Any:
                    instance = kind()
                    for setup in ("setup_class", "setup", "setup_method"):
                        if method := getattr(instance, setup, None):
                            method(*[function] * (method.__code__.co_argcount - 1))
                    return call(instance)

                yield test

    def _calls(self, function: Any, marked: Any, bound: bool = False) -> Iterator[Callable[..., Any]]:
        """`function` with each of its sets of arguments."""
        marks = [*getattr(function, "pytestmark", []), *(getattr(marked, "pytestmark", []) if bound else [])]
        if any(mark.name in ("skip", "skipif", "xfail") for mark in marks):
            return
        sets: list[list[Namespace]] = [_parameters(mark) for mark in marks if mark.name == "parametrize"]
        for chosen in itertools.product(*sets):
            given = {name: value for arguments in chosen for name, value in arguments.items()}

            def call(*instance: Any, given: Namespace = given) -> Any:
                if function.__code__.co_argcount == len(given) + bound:
                    return function(*instance, **given)
                return function(*instance, **given, **self._fixtures(function, given, skip=bound))

            yield call

    def _fixtures(self, function: Any, given: Namespace, skip: bool = False) -> Namespace:
        """Arguments that pytest would find by their names, and the function under test."""
        names = _required(function)[skip:]
        found = {}
        for name in names:
            if name in given:
                continue
            fixture: Any = self._names.get(name)
            if hasattr(fixture, "is_fixture"):
                value = fixture(**self._fixtures(fixture, {}))
                found[name] = next(value) if isinstance(value, types.GeneratorType) else value
            elif name in _FIXTURES:
                found[name] = _FIXTURES[name]()
            elif len(names) == 1 and (
                name in (*_STANDS_FOR_PROGRAM, self.entry_point) or "test" not in function.__name__
            ):
                if not self.entry_point:
                    what = f"{function.__name__}({name}) needs to know the function"
                    raise Fault(f"{what}: give extra.entry_point")
                found[name] = self._find(self.entry_point)
            else:
                raise Fault(f"{function.__name__} needs a pytest fixture '{name}'")
        return found

    def _run_one(self, test: Callable[[], Any]) -> None:
        skips = [("unittest", "SkipTest"), ("_pytest.outcomes", "Skipped")]
        try:
            result = test()
            if isinstance(result, types.CoroutineType):
                importlib.import_module("asyncio").run(result)
        except tuple(getattr(sys.modules[module], name) for module, name in skips if module in sys.modules):
            if not self._may_skip:
                raise

    def _run_suite(self, suite: Any) -> Any:
        self._suites_ran = True
        unittest = sys.modules["unittest"]
        result = unittest.TestResult()
        first: list[BaseException] = []

        def note(_: Any, error: Any, *more: Any) -> None:
            if (more and more[0]) or not more:
                first.append((more or (error,))[0][1])

        result.addError = result.addFailure = result.addSubTest = note
        if not self._may_skip:  # so the program did
            result.addSkip = lambda case, reason: first.append(AssertionError(f"skipped: {reason}"))
        result.addUnexpectedSuccess = lambda case: first.append(AssertionError(f"{case} succeeds"))
        suite.run(result)
        if first:
            raise first[0]
        return result


def _required(function: Any) -> list[str]:
    """Parameters without a default."""
    code, optional = function.__code__, len(function.__defaults__ or ())
    positional = code.co_varnames[: code.co_argcount - optional]
    only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    return [*positional, *(name for name in only if name not in (function.__kwdefaults__ or {}))]


class _Counting(ast.NodeTransformer):
    """Count what holds: each assertion that can fail, and each condition that would raise."""

    def visit_Assert(self, node: ast.Assert) -> Any:
        self.generic_visit(node)
        if not (isinstance(node.test, ast.Constant) and node.test.value):
            node.test = _counted(node.test)
        return node

    def visit_If(self, node: ast.If) -> Any:
        leaves = any(
            isinstance(statement, ast.Raise)
            or _called(statement) in ("exit", "quit", "sys.exit")
            or _fails(statement)
            for statement in (*node.body, *node.orelse)
        )
        self.generic_visit(node)
        return [node, _held(node)] if leaves else node

    def visit_Try(self, node: ast.Try) -> Any:
        """`try: f(-1); assert False` with `except ValueError`: the handler is what has to be reached."""
        guarded = any(map(_fails, node.orelse))
        for handler in node.handlers:
            caught = {getattr(name, "id", "") for name in ast.walk(handler.type or ast.Name("Exception"))}
            escapes = not caught & {"Exception", "BaseException", "AssertionError"}
            if guarded or (escapes and any(map(_fails, node.body))):
                handler.body.insert(0, _held(handler))
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if not _ASSERTS.match(name):
            return node
        return ast.copy_location(_counted(ast.Constant(True), node), node)


def _fails(node: ast.stmt) -> bool:
    """Whether a statement always fails, as `assert False`, so that reaching it is what is tested."""
    if isinstance(node, ast.Assert):
        return isinstance(node.test, ast.Constant) and not node.test.value
    raised = ast.unparse(node.exc) if isinstance(node, ast.Raise) and node.exc else ""
    fails = _called(node) in ("fail", "self.fail", "pytest.fail")
    return fails or raised.partition("(")[0] in ("AssertionError", "Exception")


def _called(node: ast.AST) -> str:
    """The function that a statement calls, and does nothing else."""
    call = node.value if isinstance(node, ast.Expr) else None
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""


def _always_holds(node: ast.AST) -> bool:
    """`assert (f(2) == 4, "message")`, `assert f(2), 4` and `assertTrue(f(2), 4)` hold whatever is returned."""
    if isinstance(node, ast.Assert):
        if isinstance(node.test, ast.Tuple) and node.test.elts:
            return True
        test, message = node.test, node.msg
    elif (
        isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "assertTrue" and len(node.args) == 2
    ):
        test, message = node.args
    else:
        return False
    literal = isinstance(message, ast.List | ast.Tuple | ast.Dict | ast.Set | ast.Constant)
    return isinstance(test, ast.Call) and literal and not isinstance(getattr(message, "value", 0), str)


def _counted(*condition: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(_HELD, ast.Load()), [*condition], [])


def _held(node: ast.AST) -> ast.stmt:
    return ast.copy_location(ast.Expr(_counted(ast.Constant(True))), node)


def _are_pure(tree: ast.AST) -> bool:
    """Whether tests depend on what the program returns and raises only, so that they may as well run apart from it."""
    for node in ast.walk(tree):
        if {getattr(node, field, None) for field in ("id", "attr", "arg", "name")} & _SHARING:
            return False
        if isinstance(node, ast.Import):
            if not {alias.name.partition(".")[0] for alias in node.names} <= _PURE:
                return False
        elif isinstance(node, ast.ImportFrom):
            if str(node.module).partition(".")[0] not in (*_PURE, *OWN_NAMES, "None"):
                return False
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Is, ast.IsNot)):
            other = node.comparators[0]  # `x is None`, `type(x) is list`
            if not (isinstance(other, ast.Constant) or getattr(other, "id", "") in _BUILTINS):
                return False
    return True


def bound_names(table: symtable.SymbolTable) -> set[str]:
    """Names that a module binds."""
    return {
        symbol.get_name()
        for symbol in table.get_symbols()
        if symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()
    }


def free_names(table: symtable.SymbolTable) -> list[str]:
    """Names that a module reads and does not bind, sorted."""
    bound = bound_names(table)
    free: set[str] = set()
    waiting = [table]
    while waiting:
        scope = waiting.pop()
        free |= {
            symbol.get_name()
            for symbol in scope.get_symbols()
            if (symbol.is_global() or scope is table)
            and symbol.is_referenced()
            and symbol.get_name() not in bound
        }
        waiting += scope.get_children()
    return sorted(name for name in free if not (name.startswith("__") and name.endswith("__")))


def _parameters(mark: Any) -> list[Namespace]:
    """The sets of arguments of one `pytest.mark.parametrize`."""
    names, values = (*mark.args, mark.kwargs.get("argvalues", mark.kwargs.get("argnames")))[:2]
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    sets = []
    for value in values:
        marks = [mark.name for mark in getattr(value, "marks", ())]
        row = value.values if hasattr(value, "marks") else (value if len(names) > 1 else [value])
        if not {"skip", "skipif", "xfail"} & set(marks):
            sets.append(dict(zip(names, row)))  # noqa: B905  (the tests' own mistake shows in the call)
    return sets


def _fixture(function: Any = None, **settings: Any) -> Any:
    """`pytest.fixture`, without its scopes."""
    if function is None:
        return _fixture
    function.is_fixture = True
    return function


class _Captured:
    """pytest's `capsys`."""

    def __init__(self) -> None:
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()

    def readouterr(self) -> Any:
        streams: Any = (sys.stdout, sys.stderr)
        written = [stream.getvalue() for stream in streams]
        self.__init__()  # type: ignore[misc]
        return types.SimpleNamespace(out=written[0], err=written[1])


def _own_folder() -> Any:
    folder = importlib.import_module("pathlib").Path(os.getcwd(), f"tmp_path-{os.urandom(4).hex()}")
    folder.mkdir()
    return folder


_FIXTURES: dict[str, Callable[[], Any]] = {
    "capsys": _Captured,
    "monkeypatch": lambda: importlib.import_module("pytest").MonkeyPatch(),
    "tmp_path": _own_folder,
}


def _trace(error: BaseException) -> list[tuple[str, int]]:
    """File and line of each call on the way to `error`."""
    trace, steps = error.__traceback__, []
    while trace is not None:
        steps.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return steps


def line_of(error: BaseException, filename: str = "tests.py") -> int | None:
    """The last line of `filename` on the way to `error`."""
    return next((line for file, line in reversed(_trace(error)) if file == filename), None)


def describe(error: BaseException, place: str = "tests") -> str:
    """One line: what was raised, and at which line of the tests or the prompt."""
    line = line_of(error, f"{place}.py")
    words = f"{type(error).__name__}: {error}".strip(": ")
    return words[:300] + (f" (line {line} of the {place})" if line else "")
