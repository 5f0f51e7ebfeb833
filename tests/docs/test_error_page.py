"""docs/questions/errors.md names every class of error with its exit code, and quotes messages that exist."""

import inspect
import re
from pathlib import Path

import pytest

from onnxprune import errors

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "questions" / "errors.md").read_text()
SOURCE = "".join(path.read_text() for path in sorted((ROOT / "onnxprune").rglob("*.py")))
CLASSES = {
    name: found.exit_code
    for name, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, errors.OnnxPruneError) and name not in ("OnnxPruneError", "UnsupportedFormError")
}
QUOTED = re.findall(r"^\| `([^`]+)` \|", TEXT.partition("## Messages")[2], re.M)


def test_every_class_stands_with_its_exit_code():
    found = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", TEXT, re.M)}
    assert found == CLASSES


@pytest.mark.parametrize("quoted", QUOTED)
def test_quoted_messages_exist(quoted):
    assert quoted in SOURCE


def test_messages_are_quoted():
    assert len(QUOTED) >= 10
