"""Stage two: a LoRA policy trained against cached references, none of them in memory.

Read ``train`` for the order of things, ``trainer`` for the loop, ``batches`` for which pairs make up a step.
"""
