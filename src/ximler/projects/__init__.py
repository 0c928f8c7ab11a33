"""Canvas projects: their life, their canvas, and finding them. Owns `projects`."""
