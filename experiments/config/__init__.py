"""A run's configuration: the schema, how file and command line become one, and the words for what is wrong."""
