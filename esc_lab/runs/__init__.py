"""What a run is: its directory, identity and lineage."""
