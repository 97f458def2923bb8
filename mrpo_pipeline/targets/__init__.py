"""What stage two trains against: Multi-Reference Preference Optimization (arXiv 2405.16388) as pure float64 arithmetic.

No model, file or tokenizer is known here; arrays of log-probs go in and arrays of log-probs come out. To read the paper
in code, take the files in the order in which :func:`compute_targets` uses them:

1. ``weights``: how much each reference counts for a pair, α (N, K); ``validation_weights``: the same from held-out pairs;
2. ``trust_region``: every reference but the anchor clipped to a band round the anchor (CTRO);
3. ``aggregate``: K references become the one reference log π̃ of the preference loss;
4. ``diagnostics``: which reference decided, and what the clipping did.

``online_weights`` has the weights that change from step to step, and makes a step's targets with them. ``settings`` is the recipe's
part of a method.
"""
