"""Training: one file per stage, and the loop, checkpoints and logs that the stages share."""
