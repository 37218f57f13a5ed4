"""What makes a process a member of the mesh. Knows nothing of the services."""
