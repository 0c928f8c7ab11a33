"""Reports for users and operators: usage against limits, usage over time, alerts."""
