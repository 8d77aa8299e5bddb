"""The commands of `clars`, a file for each noun."""
