"""CPU seconds that the proof takes on ResNet-50: of the normal form, the cut, and what is written.

Every second channel cut; without samples, or with --samples 32, which is what a run with --data takes.
python tools/bench_proof.py            this checkout
PYTHONPATH=OTHER python tools/bench_proof.py    another checkout of the package, side by side
"""

import argparse
import resource
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from onnxprune.plan.select import Selection
from onnxprune.run.finish import finish

TIMES: dict[str, float] = {}


@contextmanager
def timed(name: str):
    start = _used()
    yield
    TIMES[name] = min(TIMES.get(name, float("inf")), _used() - start)


def _used() -> float:
    """CPU seconds of this process, and of the copies of it in which native libraries are called."""
    copies = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + copies.ru_utime + copies.ru_stime


def exported(path: Path) -> None:
    """Writes ResNet-50 with a free batch size."""
    import torch
    from bench_models import resnet50

    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "N"}, "y": {0: "N"}}}
    torch.onnx.export(resnet50().eval(), (x,), str(path), opset_version=17, dynamo=False, **names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="an ONNX file instead of ResNet-50")
    parser.add_argument("--samples", type=int, default=0, help="as many rows of samples beside the random ones")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    from onnxprune import graph, surgery
    from onnxprune.coupling import analyze
    from onnxprune.graph import shapes
    from onnxprune.proof import comparison, normal_form

    with TemporaryDirectory() as folder:
        path = arguments.model
        if path is None:
            path = Path(folder) / "resnet50.onnx"
            exported(path)
        loaded = graph.load(path)
        model = graph.normalize(loaded)
        observed = shapes.observe(model)
        coupling = analyze(model, observed)
        selection = Selection(coupling, {dim: np.arange(dim.size) % 2 == 0 for dim in coupling.free})
        cut, masked = surgery.cut(selection), surgery.mask(selection)
        finished = finish(cut)
        feeds = comparison.random_feeds(model, observed)
        if arguments.samples:
            name, shape = next(iter((name, array.shape[1:]) for name, array in feeds[0].items()))
            rows = np.random.default_rng(0).normal(size=(arguments.samples, *shape)).astype(np.float32)
            feeds = [{name: rows}, *feeds]
        for _ in range(arguments.repeat):
            with timed("normal form"):
                normal_form.proven(loaded, model, observed)
            with timed("cut"):
                assert comparison.compare(cut, masked, feeds).ok
            with timed("result"):
                assert comparison.compare(finished, masked, feeds).ok
    for name, seconds in TIMES.items():
        print(f"{name:12} {seconds:6.2f} s")
    print(f"{'together':12} {sum(TIMES.values()):6.2f} s")


if __name__ == "__main__":
    main()
