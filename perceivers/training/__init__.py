"""Training on one's own data: what `perceivers fit PATH` does, as parts that can be used alone.

Needs the extra `train`: `pip install 'perceivers[train]'`. Lightning runs the loops, devices and processes; the modules here
read data, choose a model for them, and make a run that was stopped end with the weights of one that was not.
"""
