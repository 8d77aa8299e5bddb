"""Released checkpoints: folders that timm reads as they are, each traceable to the run that made it."""
