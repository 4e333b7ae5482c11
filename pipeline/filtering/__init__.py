"""Selection of regions as labels: rules, calibration, phrase counts, threshold sweeps."""
