"""`--quantize` is read strictly: every key, value and kind that is wrong is one clear line."""

import pytest

from onnxprune.errors import UsageError
from onnxprune.quantize import KINDS, check, parse


def test_a_kind_alone_has_its_defaults():
    asked = parse("int8")
    assert (asked.kind, asked["calibrate"], asked["per_channel"]) == ("int8", "minmax", True)
    assert str(asked) == "int8"


@pytest.mark.parametrize(
    "text",
    [
        "int8:calibrate=percentile,percentile=99.9,samples=64,per_channel=false",
        "dynamic:per_channel=false",
        "int4:block=128,symmetric=true,accuracy_level=1",
        "int8:reduce_range=true,exclude=/head/*+stem",
        *KINDS,
    ],
)
def test_what_is_asked_reads_as_itself_again(text):
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_nothing_asked_is_nothing():
    assert parse(None) is None
    assert parse("none") is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int7", "unknown; choose of int8, dynamic, int4, fp16"),
        ("", "unknown"),
        ("int8:", "'' is no key of int8"),
        ("int8:colour=red", "'colour' is no key of int8; choose of calibrate"),
        ("fp16:per_channel=true", "no key of fp16"),
        ("int4:block=48", "choose of 16, 32, 64, 128, 256"),
        ("int8:calibrate=median", "choose of minmax, percentile, entropy"),
        ("int8:calibrate", "give calibrate=VALUE"),
        ("int8:per_channel=yes", "choose of true, false"),
        ("int8:samples=0", "give a number from 1"),
        ("int8:samples=many", "give a number from 1"),
        ("int8:percentile=nan", "give a number from 50 to 100"),
        ("int8:samples=4,samples=5", "was given before"),
    ],
)
def test_what_cannot_be_asked_is_one_line(text, told):
    with pytest.raises(UsageError, match=r"^--quantize") as raised:
        parse(text)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_int8_without_samples_is_refused_before_the_work():
    with pytest.raises(UsageError, match="there are none; give --data, or --quantize dynamic"):
        check(parse("int8"), "cpu", has_samples=False)
    check(parse("int8"), "cpu", has_samples=False, has_ranges=True)
    check(parse("dynamic"), "cpu", has_samples=False)


def test_a_provider_without_integer_kernels_is_refused():
    with pytest.raises(UsageError, match="cuda provider has no integer kernels"):
        check(parse("int8"), "cuda", has_samples=True)
    check(parse("int8"), "tensorrt", has_samples=True)
    check(parse("fp16"), "cuda", has_samples=True)
