"""Files that are whole or absent, when processes are killed in the middle too."""

import os
import subprocess
import sys
import time

import pytest

from lvlm_interp import files

HOLDS = (
    "import sys, time, pathlib; from lvlm_interp.files import aside\n"
    "with aside(pathlib.Path(sys.argv[1])) as folder:\n"
    "    (folder / 'half').write_text('half'); print(folder.name, flush=True); time.sleep(60)"
)


def aged(folder, seconds=2 * files.YOUNG):
    then = time.time() - seconds
    os.utime(folder, (then, then))


@pytest.fixture
def holder(tmp_path):
    """A process in the middle of its work."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process, tmp_path / process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_what_a_killed_process_left_is_removed(holder, tmp_path):
    process, left = holder
    process.kill()
    process.wait()
    aged(left)
    with files.aside(tmp_path) as mine:
        assert os.listdir(tmp_path) == [mine.name]
    assert os.listdir(tmp_path) == []


def test_what_a_living_process_makes_stays(holder, tmp_path):
    _, theirs = holder
    aged(theirs)
    with files.aside(tmp_path):
        pass
    assert os.listdir(tmp_path) == [theirs.name] and (theirs / "half").is_file()


def test_a_process_that_has_just_begun_is_left_alone(tmp_path):
    """Between making its directory and holding its lock."""
    young, old = tmp_path / ".partial-young", tmp_path / ".partial-old"
    young.mkdir()
    old.mkdir()
    aged(old, 2 * files.LOCKLESS)
    files.sweep(tmp_path)
    assert os.listdir(tmp_path) == [young.name]
    files.sweep(tmp_path, alone=True)
    assert os.listdir(tmp_path) == []


def test_a_directory_of_the_user_is_never_swept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / ".partial-link").symlink_to(tmp_path / "mine")
    files.sweep(tmp_path, alone=True)
    assert (tmp_path / "mine").is_dir()
