"""Find, without importing anything, what of a package's files a notebook's code depends on.

A name is followed to the module that defines it: ``from recsys_lib.models import BPR`` leads through the
package's ``__init__.py`` to ``bpr.py`` and to what that imports, not to the other models. So a change in one
model runs the chapters that use it and no others.

A module counts with its whole text, and with the files that are no modules in its folder and in those around
it. Of an ``__init__.py`` on the way count only the import of each name that is used, and whatever else may do
something when the package is imported; so one more export runs no chapter.
Where the source does not tell (a star import, a module's ``__getattr__``, code that cannot be parsed),
everything that might be meant counts.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

# Who reads one of these may read what is written nowhere near it.
_READS_THE_REST = {"__all__", "__doc__", "dir", "eval", "exec", "globals", "locals", "vars"}


class Package:
    """The modules of a package and what each of them imports.

    Args:
        root: the folder that holds the package's folder.
        name: the package's name.
    """

    def __init__(self, root: Path, name: str = "recsys_lib") -> None:
        self.name = name
        self.root = root
        folder = root / name
        self.modules = {self._module_name(path): path for path in sorted(folder.rglob("*.py"))}
        # files that modules may read at run time; nothing tells which module of a folder reads which
        self.data = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts
        ]

    def closure(self, source: str) -> dict[Path, bytes]:
        """The package's files that code depends on, through any number of imports.

        Args:
            source: Python code, such as that of all cells of a notebook.

        Returns:
            What counts of each file: its content, or the part of it whose change matters.
        """
        try:
            whole, names = self._used(ast.parse(source))
            found = {self.modules[package]: self._text(package, used) for package, used in names.items()}
        except SyntaxError:
            whole, found = set(self.modules), {}
        if not whole and not found:
            return {}
        found |= {self.modules[name]: self.modules[name].read_bytes() for name in whole}
        # Those of a part of the package that nobody asks for are read by nobody.
        folders = {folder for path in found for folder in path.parents}
        read = [path for path in self.data if self._nearest_package(path) in folders]
        return dict(sorted({**found, **{path: path.read_bytes() for path in read}}.items()))

    def _nearest_package(self, path: Path) -> Path:
        """The innermost folder around a file that holds modules."""
        packages = {module.parent for module in self.modules.values()}
        return next(folder for folder in path.parents if folder in packages or folder == self.root)

    def _used(self, tree: ast.Module) -> tuple[set[str], dict[str, set[str]]]:
        """The modules that count as a whole, and the packages on the way with the names used of each."""
        whole: set[str] = set()
        names: dict[str, set[str]] = {}
        seen: set[tuple[str, str | None]] = set()
        waiting = list(self._imports(tree, module=""))
        while waiting:
            module, name = waiting.pop()
            if (module, name) in seen:
                continue
            seen.add((module, name))
            parts = module.split(".")
            passed: dict[str, set[str]] = {".".join(parts[:depth]): set() for depth in range(1, len(parts))}
            if name is not None and f"{module}.{name}" in self.modules:
                wanted = {f"{module}.{name}"}
                passed[module] = {name}
            elif name is not None and self._passes_on(module, name):
                wanted = set()
                passed[module] = {name}
            elif name is not None and self._finds_names_itself(module):
                wanted = {other for other in self.modules if f"{other}.".startswith(f"{module}.")}
            else:
                wanted = {module}
            for package in passed.keys() & self.modules.keys():
                names.setdefault(package, set()).update(passed[package])
                waiting += self._imports(self._part(package, passed[package]), package)
            for found in wanted & self.modules.keys():
                whole.add(found)
                waiting += self._imports(self._tree(found), found)
        return whole, names

    def _passes_on(self, module: str, name: str) -> bool:
        """Whether a name of a package is one that its ``__init__.py`` imports."""
        return self._is_package(module) and any(
            name == _bound(alias)
            for node in self._tree(module).body
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        )

    def _finds_names_itself(self, module: str) -> bool:
        """Whether a package has a ``__getattr__``, which may import anything below it."""
        return self._is_package(module) and any(
            isinstance(node, ast.FunctionDef) and node.name == "__getattr__"
            for node in self._tree(module).body
        )

    def _part(self, package: str, names: set[str]) -> ast.Module:
        """What counts of a package on the way to some of its names.

        That is every statement that may do something, and the imports of what these statements and whoever
        asks for the names use, each for itself.
        """
        tree = self._tree(package)
        acting = [node for node in tree.body if not _only_names(node)]
        words = {node.id for part in acting for node in ast.walk(part) if isinstance(node, ast.Name)}
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        if words & _READS_THE_REST or (defined - {"__getattr__"}) & (words | names):
            return tree
        kept: list[ast.stmt] = []
        for node in tree.body:
            if node in acting:
                kept.append(node)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    # importing one of its modules also makes the module a name of the package
                    path = (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
                    if _bound(alias) in {*names, *words, "*"} or words & set(path.split(".")):
                        one = [ast.alias(alias.name, alias.asname)]
                        kept.append(
                            ast.ImportFrom(node.module, one, node.level)
                            if isinstance(node, ast.ImportFrom)
                            else ast.Import(one)
                        )
        return ast.Module(kept, [])

    def _text(self, package: str, names: set[str]) -> bytes:
        """The text of what counts of a package on the way."""
        return ast.unparse(self._part(package, names)).encode()

    def _imports(self, tree: ast.AST, module: str) -> Iterator[tuple[str, str | None]]:
        """The package's own modules and names that code imports, anywhere in it."""
        for node in _executed(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if self._inside(alias.name):
                        yield alias.name, None
            elif isinstance(node, ast.ImportFrom):
                source = self._absolute(node, module)
                if self._inside(source):
                    for alias in node.names:
                        yield source, None if alias.name == "*" else alias.name

    def _absolute(self, node: ast.ImportFrom, module: str) -> str:
        """The full name of the module that an ``import from`` names, relative ones resolved."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        up = node.level - 1 if self._is_package(module) else node.level
        base = parts[: len(parts) - up]
        return ".".join([*base, *([node.module] if node.module else [])])

    def _inside(self, module: str) -> bool:
        return module == self.name or module.startswith(f"{self.name}.")

    def _is_package(self, module: str) -> bool:
        return module in self.modules and self.modules[module].name == "__init__.py"

    def _tree(self, module: str) -> ast.Module:
        return ast.parse(self.modules[module].read_text("utf8"))

    def _module_name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _bound(alias: ast.alias) -> str:
    """The name that an import gives to what it imports."""
    return alias.asname or alias.name.split(".")[0]


def _only_names(node: ast.stmt) -> bool:
    """Whether a statement of an ``__init__.py`` does no more than describe, import or list names."""
    if isinstance(node, ast.ImportFrom):
        return node.module != "__future__"  # which changes what the other statements mean
    if isinstance(node, ast.Assign):
        listed = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
        plain = all(isinstance(name, ast.Constant) for name in listed)
        return plain and [ast.unparse(target) for target in node.targets] == ["__all__"]
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.FunctionDef):  # its body runs for whoever calls it, and that one names it
        given = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        plain = not node.decorator_list and all(isinstance(value, ast.Constant) for value in given)
        return plain and node.name != "__getattr__"  # which Python calls by itself
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING" and not node.orelse
    return isinstance(node, ast.Import)


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node that can be executed: not what stands under ``if TYPE_CHECKING``."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)
