"""Commands that tell about a model or a method without writing a model.

inspection   what can be pruned, and why not       sensitivity   accuracy against what is removed, one Dim at a time
bench        latency of models                     compare       methods x budgets x seeds
"""
