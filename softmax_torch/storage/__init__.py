"""Files that survive a crash and run no code when read. Needs torch alone."""
