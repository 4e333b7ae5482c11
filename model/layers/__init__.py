"""Building blocks of the network, one concern a file."""
