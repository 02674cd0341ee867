"""What tests are made of: repositories, images, servers, and how to look at what became of them."""
