"""The models and their published folders; knows neither sampling nor training."""
