"""Keys for programs that act for a user. Owns `apikeys`."""
