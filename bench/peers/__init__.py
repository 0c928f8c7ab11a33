"""The libraries we are compared with, each used as its own documentation would have it used."""
