"""What tests share: networks, oracles, random networks."""
