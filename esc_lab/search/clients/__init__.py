"""Who answers the search's requests: a local model, an OpenAI-compatible endpoint, or recorded answers."""
