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


def load(name: str) -> None:
    """Imports the module that registers method `name`; nothing where it is no built-in one."""
    if name in MODULES:
        import_module(f"{__name__}.{MODULES[name]}")


def load_all() -> None:
    """Imports every built-in method, torch with them."""
    for name in MODULES:
        load(name)
