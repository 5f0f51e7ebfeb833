"""Files that appear together, whole, or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from onnxprune.errors import UsageError


@contextmanager
def staged(*targets: Path) -> Iterator[Mapping[Path, Path]]:
    """A path to write to for each of `targets`, in a folder beside it.

    What was written there takes its place when the block ends well, the first target last; else nothing changes.
    Raises: UsageError when a folder cannot be written.
    """
    with ExitStack() as stack:
        places = {target: _place(target, stack) for target in targets}
        yield places
        for target in reversed(targets):
            _move(places[target], target)


def _place(target: Path, stack: ExitStack) -> Path:
    try:
        folder = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise _refused(target, error) from error
    return Path(stack.enter_context(folder)) / target.name


def _move(written: Path, target: Path) -> None:
    """Renames all files beside `written` into the folder of `target`; weights come before the model that names them."""
    try:
        for file in sorted(written.parent.iterdir(), key=lambda file: file.name == written.name):
            os.replace(file, target.parent / file.name)
    except OSError as error:
        raise _refused(target, error) from error


def _refused(target: Path, error: OSError) -> UsageError:
    return UsageError(f"{target}: cannot be written ({error.strerror or error}); choose another path")


def replace_text(path: Path, content: str) -> None:
    """Writes `content` beside `path` and renames it. Raises: UsageError where it cannot be written."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())  # temporary files are private, reports are not
        os.replace(temporary, path)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
