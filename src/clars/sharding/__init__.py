"""What knows that there is more than one process."""
