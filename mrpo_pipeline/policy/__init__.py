"""Stage two: a LoRA policy trained against cached references, none of them in memory.

``run`` starts from a recipe, ``train`` holds the sequence of steps, ``trainer`` the loop, ``sampler`` the pairs of each step.
"""
