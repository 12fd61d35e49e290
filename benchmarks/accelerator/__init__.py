"""Everything that one accelerator can tell, in one run of a few minutes.

program.py     the command line; starts processes that measure until all is known
process.py     such a process as its parent sees it
worker.py      such a process: one row after the other
record.py      what is known, written after every answer
presets.py     the sizes, and the rows in the order of their worth
notes.py       what a row writes down, and how it takes the time
inputs.py      gradients and weights, drawn on the device
problems.py    whole models: losses, shapes and batches
laws.py        what must hold on every device, to the bit
selection.py   clips beside other clips, and searches beside other searches
training.py    whole steps
curvature.py   the modes of the sharpness beside a gradient
kernels.py     what a clip is made of, by the profiler
"""
