"""The "Ranks" tab of TensorBoard and the pages made of the same charts; measures nothing.

A package of its own, since TensorBoard imports it at every start: `import rankmon` would load JAX,
and an error there would end the whole TensorBoard command. NumPy and tensorboard only.
"""
