"""What makes vectors of texts: `lexical`, models of the Provider service, and models in this process."""
