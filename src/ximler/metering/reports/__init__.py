"""What users and operators are shown: usage against limits, usage over time, alerts."""
