"""What answers cost: the user's own prices, and those of the `genai-prices` package."""
