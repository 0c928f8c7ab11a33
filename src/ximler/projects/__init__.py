"""Canvas projects: life cycle, content and search. Owns `projects`."""
