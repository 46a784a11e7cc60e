"""Which of a package's files a notebook depends on."""

import pytest

from book.dependencies import Package

FILES = {
    "__init__.py": "",
    "base.py": "import math",
    "alone.py": "",
    "models/__init__.py": "from lib.models.one import One\nfrom .two import Two as Second\n",
    "models/one.py": "from lib.base import thing",
    "models/two.py": "from .. import alone",
    "lazy/__init__.py": "def __getattr__(name): ...",
    "lazy/inner.py": "",
    "late.py": "def f():\n    from lib.models import One",
    "typed.py": "if TYPE_CHECKING:\n    from lib.base import T\nelse:\n    import lib.alone",
    "ring.py": "import lib.gnir",
    "gnir.py": "import lib.ring",
}


@pytest.fixture
def package(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "lib" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Package(tmp_path, "lib")


@pytest.mark.parametrize(
    ("source", "files"),
    [
        ("import math, library", []),
        ("import lib", ["__init__.py"]),
        ("import lib.base", ["__init__.py", "base.py"]),
        ("from lib import base", ["__init__.py", "base.py"]),
        ("from lib.base import thing as other", ["__init__.py", "base.py"]),
        # a name leads to the module that defines it, and not to its neighbors
        ("from lib.models import One", ["__init__.py", "base.py", "models/__init__.py", "models/one.py"]),
        ("from lib.models import Second", ["__init__.py", "alone.py", "models/__init__.py", "models/two.py"]),
        (
            "from lib.models.two import Two",
            ["__init__.py", "alone.py", "models/__init__.py", "models/two.py"],
        ),
        ("from lib.models import unknown", ["__init__.py", "alone.py", "base.py", "models/*"]),
        ("from lib.models import *", ["__init__.py", "alone.py", "base.py", "models/*"]),
        ("import lib.models as m", ["__init__.py", "alone.py", "base.py", "models/*"]),
        (
            "def f():\n    from lib import late",
            ["__init__.py", "base.py", "late.py", "models/__init__.py", "models/one.py"],
        ),
        ("from lib.lazy import anything", ["__init__.py", "lazy/*"]),
        ("import lib.typed", ["__init__.py", "alone.py", "typed.py"]),
        ("import lib.ring", ["__init__.py", "gnir.py", "ring.py"]),
        ("import import", list(FILES)),
    ],
)
def test_closure(package, source, files):
    found = {path.relative_to(package.root / "lib").as_posix() for path in package.closure(source)}
    expected = {
        name
        for pattern in files
        for name in FILES
        if name == pattern or (name.startswith(pattern.rstrip("*")) and "*" in pattern)
    }
    assert found == expected


def test_files_that_are_no_modules_count_for_whoever_uses_the_package(package, tmp_path):
    (tmp_path / "lib" / "table.json").write_text("{}")
    again = Package(tmp_path, "lib")
    assert tmp_path / "lib" / "table.json" in again.closure("import lib.base")
    assert again.closure("import math") == {}


def test_files_of_a_part_that_nobody_uses_do_not_count(package, tmp_path):
    page = tmp_path / "lib" / "models" / "static" / "page.css"
    page.parent.mkdir()
    page.write_text("")
    again = Package(tmp_path, "lib")
    assert page not in again.closure("import lib.base")
    assert page in again.closure("from lib.models import One")
    assert page in again.closure("import import")


INIT = FILES["models/__init__.py"]


@pytest.mark.parametrize(
    ("text", "matters"),
    [
        # what brings other names, or only lists and describes them
        (f"{INIT}from lib.models.three import Three\n", False),
        (f"{INIT}import math\n", False),
        ("from lib.models.one import One, Other\nfrom .two import Two\n", False),
        ("from lib.models.one import One\n", False),
        (f'"""About this."""\n\n# a comment\n{INIT}\n__all__ = ["One"]\n', False),
        # where the name comes from
        ("from lib.models.two import Two as One\n", True),
        ("from lib.models.one import Other as One\n", True),
        ("from .one import One\n", True),
        (f"{INIT}from lib.models.two import One\n", True),
        (f"{INIT}from lib.models.two import *\n", True),
        ("def One(): ...\n", True),
        ("", True),
        # what may do something when the package is imported
        (f"{INIT}print('imported')\n", True),
        (f"{INIT}One.name = 'other'\n", True),
        (f"{INIT}VERSION = 2\n", True),
        (f"{INIT}__all__ = list(globals())\n", True),
        (f"{INIT}if True:\n    from lib.models.three import Three\n", True),
        (f"{INIT}def __getattr__(name): ...\n", True),
        ("from __future__ import annotations\n" + INIT, True),
        ("from lib models import One\n", True),
    ],
)
def test_what_matters_of_a_package_on_the_way(package, text, matters):
    (package.root / "lib" / "models" / "three.py").write_text("")
    before = Package(package.root, "lib").closure("from lib.models import One")
    (package.root / "lib" / "models" / "__init__.py").write_text(text)
    after = Package(package.root, "lib").closure("from lib.models import One")
    assert (after != before) is matters


@pytest.mark.parametrize(
    ("text", "followed"),
    [
        ("print('imported')", False),
        ("from lib.models.three import set_up\nset_up()", True),
        ("import lib.models.three\nlib.models.three.set_up()", True),
        ("from lib.models.three import Three\nthree.set_up()", True),
        ("from lib.models import three\nprint(three)", True),
        ("def set_up():\n    from lib.models import three", False),
        ("def set_up():\n    from lib.models import three\nset_up()", True),
        ("from lib.models.three import set_up\nglobals()['set_up']()", True),
        ("from lib.models.three import *", True),
    ],
)
def test_what_a_package_on_the_way_uses_itself_counts(package, text, followed):
    """The statements of ``__init__.py`` that do something lead to the modules that they use."""
    (package.root / "lib" / "models" / "three.py").write_text("")
    (package.root / "lib" / "models" / "__init__.py").write_text(f"{INIT}{text}\n")
    for source in ("from lib.models import One", "import lib.models.one"):
        found = Package(package.root, "lib").closure(source)
        assert (package.root / "lib" / "models" / "three.py" in found) is followed


def test_a_package_that_is_used_itself_counts_as_a_whole(package):
    found = package.closure("import lib.models\nfrom lib.models import One")
    assert found[package.root / "lib" / "models" / "__init__.py"] == INIT.encode()


def test_where_a_module_cannot_be_parsed_everything_counts(package):
    (package.root / "lib" / "base.py").write_text("import import")
    assert len(package.closure("from lib.models import One")) == len(FILES)
    assert len(package.closure("import lib.alone")) == 2


def test_a_function_of_a_package_counts_for_those_who_name_it(tmp_path):
    folder = tmp_path / "recsys_lib"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from recsys_lib.models.heavy import Heavy\n"
        "def load(path, **options):\n    from recsys_lib.models.heavy import read\n    return read(path)\n"
    )
    (folder / "metrics.py").write_text("def ndcg(): ...\n")
    (folder / "models" / "__init__.py").write_text("")
    (folder / "models" / "heavy.py").write_text("def read(path): ...\n")
    package = Package(tmp_path)

    def names(code: str) -> set[str]:
        return {path.name for path in package.closure(code)}

    assert "heavy.py" not in names("from recsys_lib.metrics import ndcg")
    assert "heavy.py" in names("from recsys_lib import load")
    assert "heavy.py" in names("import recsys_lib\nrecsys_lib.load('x')")
    # A decorator or a default that is computed runs when the package is imported.
    text = (folder / "__init__.py").read_text()
    (folder / "__init__.py").write_text(text.replace("def load", "@cache\ndef load"))
    assert "heavy.py" in {
        path.name for path in Package(tmp_path).closure("from recsys_lib.metrics import ndcg")
    }
