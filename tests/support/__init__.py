"""Building blocks of tests: repositories, images, servers, and ways to examine them."""
