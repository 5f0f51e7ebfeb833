"""A pass of Olive that prunes: all options of the command line, under their names in Python.

    {"passes": {"prune": {"type": "OnnxPrune", "target": {"macs": 0.5}, "data": "samples.npz"}}}

Olive finds the class by a package configuration, see docs/recipes.md.
"""

from pathlib import Path
from typing import Any

from olive.hardware.accelerator import AcceleratorSpec  # type: ignore[import-not-found]
from olive.model import ONNXModelHandler  # type: ignore[import-not-found]
from olive.model.utils import resolve_onnx_path  # type: ignore[import-not-found]
from olive.passes import Pass  # type: ignore[import-not-found]
from olive.passes.pass_config import BasePassConfig, PassConfigParam  # type: ignore[import-not-found]

from onnxprune.options import TABLE, options_of
from onnxprune.run import pipeline
from onnxprune.system.atomic_files import beside


class OnnxPrune(Pass):
    """Prunes an ONNX model and proves the result; a target that is missed or a proof that fails ends the pass."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        """One parameter per option of the command line; None leaves the choice to onnxprune."""
        return {
            name: PassConfigParam(type_=Any, default_value=None, description=row.help or f"see {row.flag}")
            for name, row in TABLE.items()
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: BasePassConfig, output_model_path: str
    ) -> ONNXModelHandler:
        out = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        given = {name: value for name in TABLE if (value := getattr(config, name, None)) is not None}
        pipeline.prune(model.model_path, out, options_of(given, f"olive pass OnnxPrune of {model.model_path}"))
        if beside(out, ".data").exists():  # weights beside the model: Olive then takes the folder
            return ONNXModelHandler(model_path=str(out.parent), onnx_file_name=out.name)
        return ONNXModelHandler(model_path=str(out))
