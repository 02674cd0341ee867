"""Real servers for the tests: private, started when needed, and removed without a trace."""
