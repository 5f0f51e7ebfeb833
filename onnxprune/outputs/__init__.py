"""Outputs of models: what each is, metrics of them and losses on them."""
