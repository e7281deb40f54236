"""Training on one's own data: what `perceivers fit PATH` does, as parts that can be used alone.

Needs the extra `train`: `pip install 'perceivers[train]'`. Lightning does the loops, devices and processes; what is here
reads data, chooses a model for them, and makes a run that was stopped end with the weights of one that was not.
"""
