"""What a picture is worth: the same objects score training and benchmarks."""
