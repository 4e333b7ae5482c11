"""Selection of stored regions as labels: rules, calibrated thresholds, phrase counts, threshold
sweeps.
"""
