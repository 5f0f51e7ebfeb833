"""Fine-tuning as a user asks for it: options of a run as `Settings`, checked before any work begins."""

from collections.abc import Callable, Mapping
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options import RELATIVE_ERROR, TUNING, Options
from onnxprune.recover.levels import Recovery
from onnxprune.recover.settings import Settings
from onnxprune.system import plugins

OWN_OPTIONS = ("epochs", "lr", "batch_size", "device", "seed", "resume", "loss", "metric")
AUTO = ("weight_decay", "ema", "channels_last", "temperature")  # None where they are left to the tool
WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def settings_of(options: Options, device: str = "cpu") -> Settings:
    """The settings of fine-tuning in `options`; what they leave open stays open.

    Raises: UsageError for names and values that cannot be.
    """
    given = {"epochs": options.epochs, "lr": options.lr, "batch_size": options.batch_size}
    values = {name: value for name, value in given.items() if value is not None}
    values |= _asked(options.finetune)
    return Settings(
        **values,
        device=device,
        seed=options.seed,
        progress=options.progress,
        resume_dir=str(options.resume) if options.resume else None,
        loss=None if options.loss is None else plugins.find(options.loss, "--loss"),
        metric=own_metric(options.metric),
        regression=options.metric == RELATIVE_ERROR,
    )


def recovery_of(options: Options) -> Recovery:
    """The settings of recovery in `options`. Raises: UsageError for names and values that cannot be."""
    return Recovery(options.level, settings_of(options), options.device, options.resume)


def own_metric(metric: Any) -> Callable[..., Any] | None:
    """The user's own metric, None where there is none or a built-in one is named. Raises: UsageError."""
    return None if metric in (None, RELATIVE_ERROR) else plugins.find(metric, "--metric")


def check(options: Options) -> None:
    """Checks that the options of fine-tuning fit each other and the level of recovery. Raises: UsageError otherwise."""
    settings_of(options)
    if options.level == "finetune" or not (options.finetune or options.loss):
        return
    what = "--loss" if options.loss is not None else f"--finetune {next(iter(options.finetune))}"
    why = f"--recover is {options.level}" if options.data is not None else "there are no samples"
    raise UsageError(f"{what}: nothing is fine-tuned, for {why}; give --data and --recover finetune, or leave it out")


def _asked(given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise UsageError(f"finetune={given!r}: give a mapping such as {{'mixup': 0.2}}")
    found = {}
    for word, value in given.items():
        name = str(word).replace("-", "_")
        if name in OWN_OPTIONS:
            raise UsageError(f"--finetune {word}: that is an option of its own, --{name.replace('_', '-')}")
        if name not in TUNING:
            raise UsageError(f"--finetune {word}: unknown; choose of {', '.join(TUNING)}")
        found[name] = _converted(name, value, f"--finetune {word}={value}")
    return found


def _converted(name: str, value: Any, where: str) -> Any:
    kind = TUNING[name]
    if name in AUTO and (value is None or value == "auto"):
        return None
    if kind is str:
        # Configuration files and the command line read on and off as truth values.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else str(value)
    if kind is bool:
        word = str(value).lower()
        if word not in WORDS:
            raise UsageError(f"{where}: give true or false")
        return WORDS[word]
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: give a number") from error
    if isinstance(value, bool) or number != number or (kind is int and number != int(number)):
        raise UsageError(f"{where}: give a {'whole ' if kind is int else ''}number")
    return kind(number)
