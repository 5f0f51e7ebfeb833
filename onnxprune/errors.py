"""The exceptions of onnxprune; each message says what, where, the numbers that disagree, and what to do next.

OnnxPruneError
|- UsageError         wrong option, path or combination of options
|- GraphError         unreadable, unsupported, missing external data
|- CouplingError      axes disagree: node, both axes, both lengths
|- BudgetError        cannot be met: the nearest reachable cost
|- VerificationError  cut and mask differ: largest difference, scale, first bad output
|- BridgeError        no torch function: op, domain, opset, node
|- DataError          samples do not fit the model: which input, both shapes
|- ProviderError      an execution provider was asked for and did not load
|- OutOfMemoryError   memory does not do, not even for the smallest batch: where, and what to do
"""


class OnnxPruneError(Exception):
    """Base of every error that a user can cause or mend; `exit_code` is what the command line returns."""

    exit_code = 2


class UsageError(OnnxPruneError):
    """A wrong option, path or combination of options."""


class GraphError(OnnxPruneError):
    """A model that cannot be read or kept whole."""


class CouplingError(OnnxPruneError):
    """Axes that ought to agree do not: the node, both axes and both lengths are in the message."""


class BudgetError(OnnxPruneError):
    """A target that cannot be met; the message names the nearest reachable cost."""

    exit_code = 1


class VerificationError(OnnxPruneError):
    """The cut model and the masked model differ."""

    exit_code = 3


class BridgeError(OnnxPruneError):
    """No torch function for an operator: op, domain, opset and node are in the message."""


class UnsupportedFormError(BridgeError):
    """A form of an operator that its torch function does not have; the bridge adds the node."""


class DataError(OnnxPruneError):
    """Samples that do not fit the model, or cannot be read."""


class ProviderError(OnnxPruneError):
    """An onnxruntime execution provider that was asked for and did not load."""


class OutOfMemoryError(OnnxPruneError):
    """Memory ran out, and no smaller batch was left to try."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, its kind where it says nothing: for our own errors and notes to quote."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def no_samples(command: str) -> UsageError:
    """The error of a command that measures on samples and was given none."""
    return UsageError(f"{command} measures on samples: give --data or --val")
