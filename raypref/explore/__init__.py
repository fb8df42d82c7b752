"""What the explorer's page knows beforehand: questions, the map of the population, bases by meaning."""
