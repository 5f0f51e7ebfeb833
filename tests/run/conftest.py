import pytest
from networks import DIGITS

from onnxprune.methods import base
from onnxprune.options import Options
from onnxprune.run import schedule
from onnxprune.run.subject import prepare
from onnxprune.system.clock import Clock


@pytest.fixture(scope="module")
def digits():
    """(subject, outcome of l1) of the embedded model, with its samples."""
    options = Options(method="l1", data="digits")
    subject = prepare(DIGITS, options, Clock())
    return schedule.scored(subject, base.get("l1"), options, Clock())
