"""Removal as data: cost polynomials, selection under a budget, and the plan.

cost    MACs, parameters and bytes of every plan, exact      select   from scores and a budget to kept positions
plan    the plan file
"""

from onnxprune.plan.plan import DimPlan, Plan, SlicePlan, tool_version

__all__ = ["DimPlan", "Plan", "SlicePlan", "tool_version"]
