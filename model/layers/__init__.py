"""Building blocks of the network, one concern per file."""
