"""The foundation: settings, errors, actor, clock, money, ids. Imports no other package of Ximler."""
