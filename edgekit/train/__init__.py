"""Recovery training: the loop, its checkpoints and the samples that it reads."""
