"""What a person asks for, on top of the pipelines."""
