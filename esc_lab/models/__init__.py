"""Language models: loading, adapters, tree attention, reply log-probabilities, generation."""
