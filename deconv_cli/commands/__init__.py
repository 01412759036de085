"""What a person touches: one file a command. Nothing here imports torch before a command runs."""
