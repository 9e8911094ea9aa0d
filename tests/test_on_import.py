"""Running something once a module is imported, in fresh processes."""

import subprocess
import sys

import pytest


def run(script, cwd):
    done = subprocess.run([sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "first.py").write_text("value = 3\nprint('first')")
    (tmp_path / "second.py").write_text("import first\nprint('second', first.value)")
    return tmp_path


WATCH = "from trisparse.on_import import import_after; import sys; before = list(sys.meta_path);"


def test_before_and_after(folder):
    assert run(f"{WATCH} import_after('first', 'second'); print('-'); import first", folder) == [
        "-",
        "first",
        "second",
        "3",
    ]
    assert run(f"{WATCH} import first; import_after('first', 'second')", folder) == ["first", "second", "3"]


def test_nothing_stays_behind(folder):
    script = (
        f"{WATCH} import_after('first', 'second'); import first; assert sys.meta_path == before; print(first.__file__)"
    )
    assert run(script, folder)[-1].endswith("first.py")
    assert run(
        f"{WATCH} import_after('missing', 'second')\ntry: import missing\nexcept ImportError: print('no')", folder
    ) == ["no"]
