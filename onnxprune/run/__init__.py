"""One run, from files to files: the model at hand, the steps, the search, the promises, the straight line.

subject    the model at hand              schedule   scores in one shot or in steps
search     kept positions under a budget  targets    whether promises are kept
measuring  original and result            checks     what is refused at once
pipeline   the straight line              replay     a result checked by its plan
"""
