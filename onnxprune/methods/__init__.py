"""The methods, one module each, imported when one is asked for: listing the names needs no torch.

base         what a method is: Needs, Context, Outcome, @method
magnitude    l1, l2          fpgm      geometric median       bn       scales of BatchNormalization
taylor       first order     hessian   diagonal               random_  the control
snacs  paam  gss  aswl  cci            the five published ones
"""

from importlib import import_module

MODULES = {
    "aswl": "aswl",
    "bn": "bn",
    "cci": "cci.cci",
    "fpgm": "fpgm",
    "gss": "gss",
    "hessian": "hessian",
    "l1": "magnitude",
    "l2": "magnitude",
    "paam": "paam.paam",
    "random": "random_",
    "snacs": "snacs.snacs",
    "taylor": "taylor",
}

# What 'onnxprune methods' says of them, (needs, summary), so that a list of names needs neither torch nor onnx.
LISTED = {
    "aswl": ("data, training", "layer attentions decide where weights are zeroed (ASWL)"),
    "bn": ("weights", "|scale| of the BatchNormalization behind a unit"),
    "cci": ("data, training", "exactly k of every G weights stay (CCI, N:M)"),
    "fpgm": ("weights", "distance to the other units: what is near the geometric median goes"),
    "gss": ("training", "group lasso and variance of group norms while fine-tuning (GSS)"),
    "hessian": ("data, gradients", "second-order change of the loss, diagonal"),
    "l1": ("weights", "sum of absolute weights of a unit"),
    "l2": ("weights", "Euclidean norm of the weights of a unit"),
    "paam": ("data, gradients, training", "an attention network scores filters (PAAM)"),
    "random": ("weights", "uniform scores: the control"),
    "snacs": ("data", "conditional mutual information of connections, decides by itself how much"),
    "taylor": ("data, gradients", "squared first-order change of the loss"),
}


def load(name: str) -> None:
    """Imports the module that registers method `name`; nothing where it is no built-in one."""
    if name in MODULES:
        import_module(f"{__name__}.{MODULES[name]}")


def load_all() -> None:
    """Imports every built-in method, torch with them."""
    for name in MODULES:
        load(name)
