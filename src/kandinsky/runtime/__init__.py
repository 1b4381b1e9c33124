"""Where networks live while they run, in which type, and what a run will need."""
