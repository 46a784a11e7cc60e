"""Find, without importing anything, the files of a package that a notebook's code depends on.

A name is followed to the module that defines it: ``from recsys_lib.models import BPR`` leads through the
package's ``__init__.py`` to ``bpr.py`` and to what that imports, not to the other models. So a change in one
model runs the chapters that use it and no others. Where the source does not tell (a star import, a module's
``__getattr__``, code that cannot be parsed), everything that might be meant counts.
"""

import ast
from collections.abc import Iterator
from pathlib import Path


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
        # files that modules may read at run time; nothing tells which module reads which
        self.data = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix not in {".py", ".pyc"} and "__pycache__" not in path.parts
        ]

    def closure(self, source: str) -> list[Path]:
        """The package's files that code depends on, through any number of imports.

        Args:
            source: Python code, such as that of all cells of a notebook.
        """
        try:
            tree = ast.parse(source)
        except SyntaxError:
            return [*self.modules.values(), *self.data]
        whole: set[str] = set()  # modules whose imports all count
        touched: set[str] = set()  # packages on the way: their own text counts, not all that they import
        waiting = list(self._imports(tree, module=""))
        while waiting:
            module, name = waiting.pop()
            parts = module.split(".")
            touched.update(".".join(parts[:depth]) for depth in range(1, len(parts)))
            for wanted in self._definitions(module, name, touched):
                if wanted not in whole:
                    whole.add(wanted)
                    waiting += self._imports(self._tree(wanted), wanted)
        if not whole:
            return []
        return (
            sorted(self.modules[module] for module in whole | touched if module in self.modules) + self.data
        )

    def _definitions(self, module: str, name: str | None, touched: set[str]) -> set[str]:
        """The modules to read in whole for one imported name (None: the module itself)."""
        if name is None:
            return {module} & self.modules.keys()
        if f"{module}.{name}" in self.modules:
            touched.add(module)
            return {f"{module}.{name}"}
        if module not in self.modules or not self._is_package(module):
            return {module} & self.modules.keys()
        tree = self._tree(module)
        touched.add(module)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        source = self._absolute(node, module)
                        return (
                            self._definitions(source, alias.name, touched) if source != module else {module}
                        )
        if any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in tree.body):
            return {other for other in self.modules if other == module or other.startswith(f"{module}.")}
        return {module}

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
