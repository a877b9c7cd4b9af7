"""Keep what long commands make: directories of shards with an index, and work that a killed run left to go on with."""
