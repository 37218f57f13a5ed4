"""What turns texts into vectors: `lexical`, models of the Provider service, and models in this process."""
