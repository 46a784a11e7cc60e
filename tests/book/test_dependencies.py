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
    assert again.closure("import math") == []
