"""The command line. Commands are imported when they are called, so that `ximler --help` is quick."""
