"""Pure functions on tensors: no modules, no parameters, no global switches."""
