"""What enters the network and leaves it: pictures, words, numbers."""
