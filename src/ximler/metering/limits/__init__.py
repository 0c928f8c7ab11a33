"""What each user may use: plans, overrides, and the periods that usage is counted in."""
