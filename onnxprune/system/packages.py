"""Packages that some of our work needs and that are not part of the core."""

from onnxprune.errors import UsageError

# Package -> (what it is called where it is installed, the extra that brings it, what needs it).
EXTRAS = {
    "onnxruntime": ("onnxruntime", "cpu", "everything that runs a model; 'gpu' brings the one for CUDA"),
    "torch": ("torch", "train", "fine-tuning and most methods that look at samples; l1, l2 and fpgm do without"),
    "sklearn": ("scikit-learn", "train", "snacs and the data set 'digits'"),
    "scipy": ("scipy", "train", "the intervals of compare, the similarity of embeddings, quicker least squares"),
}


def missing(error: ImportError) -> UsageError | None:
    """The message where one of these packages is not installed; None where it is another that is missing."""
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in EXTRAS:
        return None
    package, extra, needed = EXTRAS[name]
    return UsageError(f"{package} is not installed, which is for {needed}: pip install 'onnxprune[{extra}]'")
