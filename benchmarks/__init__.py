"""Speed and memory, each against a stated reference and a physical limit."""
