"""Files that appear together, whole, or not at all; folders of runs that were killed are removed by the next run.

A folder that we write in is called `.NAME.onnxprune-HOST-PID-START-...`: from that the next run tells whether the
process that made it is still there.
"""

import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from zlib import crc32

from onnxprune.errors import UsageError

MOST_NAME_BYTES = 255  # of a file, on most systems
OWNER = re.compile(r"onnxprune-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-\w+$")


@contextmanager
def staged(*targets: Path) -> Iterator[Mapping[Path, Path]]:
    """A path to write to for each of `targets`, in a folder beside it.

    What was written there takes its place when the block ends well, the first target last; else nothing changes.
    Raises: UsageError when a folder cannot be written, or a target is a link, a device or a folder.
    """
    with ExitStack() as stack:
        places = {target: _place(target, stack) for target in targets}
        yield places
        for target in reversed(targets):
            _move(places[target], target)


def replace_text(target: Path, content: str) -> None:
    """Writes `content` to `target`, whole or not at all. Raises: UsageError where it cannot be written."""
    with staged(target) as places:
        try:
            # Names of files may hold bytes that are no text.
            places[target].write_text(content, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise _refused(target, error) from error


@contextmanager
def rescued(written: Path, target: Path, texts: Mapping[str, str]) -> Iterator[None]:
    """Keeps the files beside `written`, and `texts` by name, in a folder `TARGET.unmeasured` as long as the block runs.

    Where a native library, or kill -9, ends the process meanwhile, that folder stays: what was made is not lost.
    """
    folder = rescue_of(target)
    with suppress(OSError):  # the run goes on without
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in written.parent.iterdir():
            _link(file, folder / file.name)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def rescue_of(target: Path) -> Path:
    """Where `rescued` keeps what will stand at `target`."""
    return beside(target, ".unmeasured")


def beside(target: Path, ending: str) -> Path:
    """The path of `target` with `ending` behind its name, of which a part has to do where both are too long."""
    name, room = os.fsencode(target.name), MOST_NAME_BYTES - len(ending)
    if len(name) > room:
        mark = f"-{crc32(name):08x}"
        name = name[: room - len(mark)].decode(errors="ignore").encode() + mark.encode()
    return target.with_name(os.fsdecode(name) + ending)


def _link(file: Path, copy: Path) -> None:
    """The same file under another name: it takes no room, and no time, where the file system can do that."""
    try:
        os.link(file, copy)
    except OSError:
        shutil.copyfile(file, copy)


def require_replaceable(target: Path) -> None:
    """Checks that `target` does not exist or is a plain file, which may be replaced. Raises: UsageError otherwise."""
    if target.is_symlink():
        raise UsageError(
            f"{target}: is a link to {os.readlink(target)}, which would be replaced; give the path of the file itself"
        )
    if target.is_dir():
        raise UsageError(f"{target}: is a folder; give the path of the file to write")
    if target.exists() and not target.is_file():
        raise UsageError(f"{target}: is {_kind(target)}, which is never replaced; give the path of a file")


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    kinds = {"a named pipe": stat.S_ISFIFO, "a socket": stat.S_ISSOCK}
    return next((name for name, holds in kinds.items() if holds(mode)), "a device")


def _place(target: Path, stack: ExitStack) -> Path:
    require_replaceable(target)
    try:
        # A name may have 255 bytes; what we add to it must fit as well.
        folder = scratch(target.parent, os.fsdecode(os.fsencode(f".{target.name}.")[:150]))
    except OSError as error:
        raise _refused(target, error) from error
    return Path(stack.enter_context(folder)) / target.name


def _move(written: Path, target: Path) -> None:
    """Renames all files beside `written` into the folder of `target`; weights come before the model that names them."""
    files = sorted(written.parent.iterdir(), key=lambda file: file.name == written.name)
    for file in files:
        require_replaceable(target.parent / file.name)
    try:
        for file in files:
            os.replace(file, target.parent / file.name)
    except OSError as error:
        raise _refused(target, error) from error


def _refused(target: Path, error: OSError) -> UsageError:
    return UsageError(f"{target}: cannot be written ({error.strerror or error}); choose another path")


# Folders of our own -----------------------------------------------------------------------------------------------


def scratch(parent: Path | None = None, name: str = "") -> tempfile.TemporaryDirectory[str]:
    """A folder of this process in `parent`, by default where the system keeps such.

    Those that dead processes left are removed, there and where the system keeps them.
    """
    common = Path(tempfile.gettempdir())
    place = parent or common
    for each in {place, common}:
        remove_leftovers(each)
    pid = os.getpid()
    return tempfile.TemporaryDirectory(dir=place, prefix=f"{name}onnxprune-{_host()}-{pid}-{_started(pid)}-")


def remove_leftovers(place: Path) -> None:
    """Removes from `place` the folders of ours of which the process is gone, as after kill -9."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            found = OWNER.search(entry.name)
            if found and found["host"] == _host() and entry.is_dir(follow_symlinks=False) and _is_dead(found):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_dead(owner: re.Match[str]) -> bool:
    pid = int(owner["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:  # of another user
        return False
    return _started(pid) != int(owner["start"])


def _host() -> str:
    """This machine and, in containers, the space in which process numbers count, in eight letters."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{crc32(f'{platform.node()} {space}'.encode()):08x}"


def _started(pid: int) -> int:
    """When process `pid` began, in ticks since the machine did; 0 where this system does not tell."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return 0
    return int(told.rpartition(")")[2].split()[19])
