"""Real servers for the tests: private ones, started where they are needed, of which nothing stays behind."""
