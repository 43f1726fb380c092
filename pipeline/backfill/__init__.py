"""Sign-ins from files: which files, their lines as messages, and the runs over them."""
