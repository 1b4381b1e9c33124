"""Where networks are while they run, in which type, and what a run will need."""
