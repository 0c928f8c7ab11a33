"""How much of it is used now: leases that the meter spends in memory, gauges of what exists, burst limits."""
