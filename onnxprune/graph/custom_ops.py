"""Libraries of operators for onnxruntime that users bring: registered once, known to every session."""

from pathlib import Path

import onnxruntime as ort

from onnxprune.errors import UsageError, first_line

_LIBRARIES: list[str] = []


def register(library: str | Path) -> None:
    """Makes the operators in the shared library known to every session that is opened from now on.

    Raises: UsageError when there is no such file, or onnxruntime cannot load it.
    """
    path = Path(library)
    if not path.is_file():
        raise UsageError(
            f"--custom-ops {library}: no such file; give the library that onnxruntime loads, a .so or .dll"
        )
    whole = str(path.resolve())
    try:
        ort.SessionOptions().register_custom_ops_library(whole)
    except Exception as error:  # onnxruntime raises a dozen pybind types without a common base
        raise UsageError(
            f"--custom-ops {library}: onnxruntime cannot load it ({first_line(error)}); build it for {ort.__version__}"
        ) from error
    if whole not in _LIBRARIES:
        _LIBRARIES.append(whole)


def registered() -> tuple[str, ...]:
    """The whole paths of all libraries, for a process that is to know them as well."""
    return tuple(_LIBRARIES)


def session_options() -> ort.SessionOptions:
    """New options of a session, which knows the operators of all registered libraries."""
    settings = ort.SessionOptions()
    for library in _LIBRARIES:
        settings.register_custom_ops_library(library)
    return settings
