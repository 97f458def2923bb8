"""The targets of stage two: Multi-Reference Preference Optimization (arXiv 2405.16388) as pure float64 arithmetic.

Input and output are arrays of log-probs; no model, file or tokenizer is involved. :func:`compute_targets` uses the files in this
order:

1. ``weights``: the weight of each reference for a pair, α (N, K); ``validation_weights``: the same from held-out pairs;
2. ``trust_region``: clip every reference except the anchor to a band around the anchor (CTRO);
3. ``aggregate``: combine K references into log π̃, the reference of the preference loss;
4. ``diagnostics``: which reference decides, and the effect of clipping.

``online_weights`` computes weights that change from step to step, and a step's targets with them. ``settings`` is the target's
part of the recipe's ``method``.
"""
