"""Current usage: leases that the meter spends in memory, gauges of projects and bytes, burst limits."""
