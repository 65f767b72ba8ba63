"""Where training examples come from. A batch is a function of (seed, task, turn): there is no state to save."""
