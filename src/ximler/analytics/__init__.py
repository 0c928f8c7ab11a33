"""Reports about the business, computed from billing's and metering's documents."""
