"""What every part of Ximler stands on: settings, errors, actor, clock, money, ids. Imports nothing of ours."""
