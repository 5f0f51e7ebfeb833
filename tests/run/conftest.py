import pytest
from networks import DIGITS

from onnxprune.options import Options
from onnxprune.run import schedule
from onnxprune.run.settings import resolved
from onnxprune.run.subject import prepare
from onnxprune.system.clock import Clock


@pytest.fixture(scope="module")
def digits():
    """(subject, outcome of l1) of the embedded model, with its samples."""
    options = Options(method="l1", data="digits")
    subject = prepare(DIGITS, options, Clock())
    return schedule.scored(subject, resolved(options), Clock())
