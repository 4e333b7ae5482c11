"""Which stored regions become labels: rules, their named sets, thresholds fitted on gold, and what a grid of them keeps."""
