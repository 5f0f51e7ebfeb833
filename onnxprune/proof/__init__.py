"""The proof that the cut model computes what the masked model computes.

comparison    the two models run side by side              inside        values inside both
differences   how far two arrays are apart                 normal_form   the normal form against the model as given
"""
