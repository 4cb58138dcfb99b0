"""The arena: whole talks of a supporter under test with simulated seekers, and what is measured of them."""
